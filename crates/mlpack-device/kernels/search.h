// The searches for scales that block types share: mlpack-quant's src/reference/search.rs, operation for operation. Sums go
// left to right, with one rounding each. `n` is a constant wherever these are called, so that loops are unrolled and the
// values of a group stay in registers; codes are computed again from the best candidate rather than kept.
#ifndef MLPACK_SEARCH_H
#define MLPACK_SEARCH_H

#include "dual.h"

#define GROUP_MAX_EPS 1e-15f

// Whether every value counts by its square, or by a weight of its own.
#define BY_SQUARE 0
#define BY_WEIGHT 1

// The first value of the largest magnitude.
DUAL float signed_max(int n, const float *x, float *magnitude) {
    float max = 0.0f, amax = 0.0f;
    UNROLL
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) > amax) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    }
    *magnitude = amax;
    return max;
}

DUAL void symmetric_sums(int nmax, int n, const float *x, int by, const float *weights, float iscale, float *lx, float *l2) {
    float sumlx = 0.0f, suml2 = 0.0f;
    UNROLL
    for (int i = 0; i < n; i++) {
        const float l = (float)clamp(nearest_int(iscale * x[i]), -nmax, nmax - 1);
        const float w = by == BY_SQUARE ? x[i] * x[i] : weights[i];
        sumlx += w * x[i] * l;
        suml2 += w * l * l;
    }
    *lx = sumlx;
    *l2 = suml2;
}

// x ~ scale * (code - nmax): 19 scales around the one of the largest magnitude, the best by explained squared error.
DUAL float fit_symmetric(int nmax, int n, const float *x, int by, const float *weights, uint8_t *codes) {
    float amax;
    const float max = signed_max(n, x, &amax);
    if (amax < GROUP_MAX_EPS) {
        UNROLL
        for (int i = 0; i < n; i++) {
            codes[i] = 0;
        }
        return 0.0f;
    }
    float sumlx, suml2;
    float best_iscale = -(float)nmax / max;
    symmetric_sums(nmax, n, x, by, weights, best_iscale, &sumlx, &suml2);
    float scale = suml2 != 0.0f ? sumlx / suml2 : 0.0f;
    float best = scale * sumlx;
    KEEP_LOOP
    for (int step = -9; step <= 9; step++) {
        if (step == 0) {
            continue;
        }
        const float iscale = -((float)nmax + 0.1f * (float)step) / max;
        symmetric_sums(nmax, n, x, by, weights, iscale, &sumlx, &suml2);
        if (suml2 > 0.0f && sumlx * sumlx > best * suml2) {
            best_iscale = iscale;
            scale = sumlx / suml2;
            best = scale * sumlx;
        }
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        codes[i] = (uint8_t)(nmax + clamp(nearest_int(best_iscale * x[i]), -nmax, nmax - 1));
    }
    return scale;
}

// x ~ scale * (code - nmax) by up to five rounds of moving single codes. Groups of 16.
DUAL float fit_by_moves(int nmax, const float *x, uint8_t *codes) {
    float amax;
    const float max = signed_max(16, x, &amax);
    if (amax < GROUP_MAX_EPS) {
        UNROLL
        for (int i = 0; i < 16; i++) {
            codes[i] = 0;
        }
        return 0.0f;
    }
    int now[16];
    const float iscale = -(float)nmax / max;
    float sumlx = 0.0f, suml2 = 0.0f;
    UNROLL
    for (int i = 0; i < 16; i++) {
        now[i] = clamp(nearest_int(iscale * x[i]), -nmax, nmax - 1);
        const float w = x[i] * x[i], l = (float)now[i];
        sumlx += w * x[i] * l;
        suml2 += w * l * l;
    }
    KEEP_LOOP
    for (int round = 0; round < 5; round++) {
        int changed = 0;
        UNROLL
        for (int i = 0; i < 16; i++) {
            const float old = (float)now[i];
            const float w = x[i] * x[i];
            float slx = sumlx - w * x[i] * old;
            if (slx > 0.0f) {
                float sl2 = suml2 - w * old * old;
                const int moved = clamp(nearest_int(x[i] * sl2 / slx), -nmax, nmax - 1);
                if (moved != now[i]) {
                    const float l = (float)moved;
                    slx += w * x[i] * l;
                    sl2 += w * l * l;
                    if (sl2 > 0.0f && slx * slx * suml2 > sumlx * sumlx * sl2) {
                        now[i] = moved;
                        sumlx = slx;
                        suml2 = sl2;
                        changed = 1;
                    }
                }
            }
        }
        if (!changed) {
            break;
        }
    }
    UNROLL
    for (int i = 0; i < 16; i++) {
        codes[i] = (uint8_t)(now[i] + nmax);
    }
    return suml2 > 0.0f ? sumlx / suml2 : 0.0f;
}

// Least and largest value, the least at most zero; with the sums of weights and of weighted values.
struct extent {
    float min, max, sum_w, sum_x;
};

DUAL struct extent extent_of(int n, const float *x, const float *weights) {
    struct extent e;
    e.min = x[0];
    e.max = x[0];
    e.sum_w = weights[0];
    e.sum_x = e.sum_w * x[0];
    UNROLL
    for (int i = 1; i < n; i++) {
        if (x[i] < e.min) {
            e.min = x[i];
        }
        if (x[i] > e.max) {
            e.max = x[i];
        }
        e.sum_w += weights[i];
        e.sum_x += weights[i] * x[i];
    }
    if (e.min > 0.0f) {
        e.min = 0.0f;
    }
    return e;
}

// How the error of a value counts.
#define LOSS_SQUARE 0
#define LOSS_ABSOLUTE 1
// Squared, and codes are kept in range before they are rounded.
#define LOSS_GUARDED 2

DUAL int line_code(int nmax, int loss, float iscale, float v, float min) {
    const float target = iscale * (v - min);
    if (loss == LOSS_GUARDED) {
        return target > 0.0f ? nearest_int(target < (float)nmax ? target : (float)nmax) : 0;
    }
    return clamp(nearest_int(target), 0, nmax);
}

DUAL float line_error(int n, const float *x, const float *weights, int loss, const float *codes, float scale, float min) {
    float sum = 0.0f;
    UNROLL
    for (int i = 0; i < n; i++) {
        const float diff = scale * codes[i] + min - x[i];
        sum += weights[i] * (loss == LOSS_ABSOLUTE ? fabsf(diff) : diff * diff);
    }
    return sum;
}

// x ~ scale * code - min with codes from 0 to nmax: candidates (nmax + start + step * i) / (max - min), where min is the best found so far. The minimum that is
// returned is not negative.
DUAL float fit_line(int nmax, int n, const float *x, const float *weights, float start, float step, int steps, int loss,
                    uint8_t *codes, float *negated_min) {
    struct extent e = extent_of(n, x, weights);
    float min = e.min;
    if (loss == LOSS_GUARDED ? e.max <= e.min : e.max == e.min) {
        UNROLL
        for (int i = 0; i < n; i++) {
            codes[i] = 0;
        }
        *negated_min = -min;
        return 0.0f;
    }
    float trial[32];
    // The candidate whose codes are the result: the first one's are rounded as without guard.
    float kept_iscale = (float)nmax / (e.max - e.min), kept_min = min;
    int kept_loss = loss == LOSS_GUARDED ? LOSS_SQUARE : loss;
    float scale = 1.0f / kept_iscale;
    UNROLL
    for (int i = 0; i < n; i++) {
        trial[i] = (float)line_code(nmax, kept_loss, kept_iscale, x[i], min);
    }
    float best_error = line_error(n, x, weights, loss, trial, scale, min);
    KEEP_LOOP
    for (int i = 0; i <= steps; i++) {
        const float iscale = (start + step * (float)i + (float)nmax) / (e.max - min);
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
        UNROLL
        for (int j = 0; j < n; j++) {
            const float c = (float)line_code(nmax, loss, iscale, x[j], min);
            trial[j] = c;
            sum_l += weights[j] * c;
            sum_l2 += weights[j] * c * c;
            sum_xl += weights[j] * c * x[j];
        }
        const float det = e.sum_w * sum_l2 - sum_l * sum_l;
        if (det > 0.0f) {
            float new_scale = (e.sum_w * sum_xl - e.sum_x * sum_l) / det;
            float new_min = (sum_l2 * e.sum_x - sum_l * sum_xl) / det;
            if (new_min > 0.0f) {
                new_min = 0.0f;
                new_scale = sum_xl / sum_l2;
            }
            const float error = line_error(n, x, weights, loss, trial, new_scale, new_min);
            if (error < best_error) {
                best_error = error;
                scale = new_scale;
                kept_iscale = iscale;
                kept_min = min;
                kept_loss = loss;
                min = new_min;
            }
        }
    }
    UNROLL
    for (int i = 0; i < n; i++) {
        codes[i] = (uint8_t)line_code(nmax, kept_loss, kept_iscale, x[i], kept_min);
    }
    *negated_min = -min;
    return scale;
}

// The search with importance: a finer grid, the same for every type.
DUAL float fit_line_guarded(int nmax, int n, const float *x, const float *weights, uint8_t *codes, float *negated_min) {
    return fit_line(nmax, n, x, weights, -0.9f, 0.05f, 36, LOSS_GUARDED, codes, negated_min);
}

// x ~ scale * code for values that are scales or minima, not negative as a rule.
DUAL float fit_positive(int nmax, int n, const float *x, uint8_t *codes, const float *weights) {
    float max = 0.0f;
    for (int i = 0; i < n; i++) {
        max = max > x[i] ? max : x[i];
    }
    if (max < GROUP_MAX_EPS) {
        for (int i = 0; i < n; i++) {
            codes[i] = 0;
        }
        return 0.0f;
    }
    float iscale = (float)nmax / max;
    float best = 0.0f;
    {
        const float scale = 1.0f / iscale;
        for (int i = 0; i < n; i++) {
            const uint8_t l = (uint8_t)nearest_int(iscale * x[i]);
            const float diff = x[i] - scale * (float)l;
            best += weights[i] * diff * diff;
        }
    }
    KEEP_LOOP
    for (int step = -4; step <= 4; step++) {
        if (step == 0) {
            continue;
        }
        const float trial = (0.1f * (float)step + (float)nmax) / max;
        const float scale = 1.0f / trial;
        float error = 0.0f;
        for (int i = 0; i < n; i++) {
            const int code = nearest_int(trial * x[i]);
            const int l = code < nmax ? code : nmax;
            const float diff = x[i] - scale * (float)l;
            error += weights[i] * diff * diff;
        }
        if (error < best) {
            best = error;
            iscale = trial;
        }
    }
    float sumlx = 0.0f, suml2 = 0.0f;
    for (int i = 0; i < n; i++) {
        const int code = nearest_int(iscale * x[i]);
        const int l = code < nmax ? code : nmax;
        codes[i] = (uint8_t)l;
        sumlx += weights[i] * x[i] * (float)l;
        suml2 += weights[i] * (float)l * (float)l;
    }
    KEEP_LOOP
    for (int round = 0; round < 5; round++) {
        int changed = 0;
        for (int i = 0; i < n; i++) {
            const float w = weights[i], old = (float)codes[i];
            float slx = sumlx - w * x[i] * old;
            float sl2 = suml2 - w * old * old;
            if (slx > 0.0f && sl2 > 0.0f) {
                const int code = nearest_int(x[i] * sl2 / slx);
                const int moved = code < nmax ? code : nmax;
                if (moved != (int)codes[i]) {
                    slx += w * x[i] * (float)moved;
                    sl2 += w * (float)moved * (float)moved;
                    if (slx * slx * suml2 > sumlx * sumlx * sl2) {
                        codes[i] = (uint8_t)moved;
                        sumlx = slx;
                        suml2 = sl2;
                        changed = 1;
                    }
                }
            }
        }
        if (!changed) {
            break;
        }
    }
    return suml2 > 0.0f ? sumlx / suml2 : 0.0f;
}

#endif
