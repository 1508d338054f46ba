//! The searches for scales that the block types share (ggml b11434, `ggml-quants.c`).
//!
//! Each takes a group of values and finds the scale (and minimum) whose integers fit best under weighted least
//! squares. Expression order is part of the format: floating-point sums are taken left to right, one rounding for each
//! operation, so that the same values always give the same bytes. Where ggml's C leaves a value in an integer type
//! that is too small, the wrap is kept.

/// Groups whose largest magnitude (or scale) is below this are all zeros.
pub(crate) const GROUP_MAX_EPS: f32 = 1e-15;

/// 1.5 * 2^23: adding it leaves the nearest integer, ties to even, in the low mantissa bits.
pub(crate) const ROUND_MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even. Beyond 2^22 (and for NaN) the result is ggml's: low bits without meaning.
#[inline(always)]
pub(crate) fn nearest_int(value: f32) -> i32 {
    ((value + ROUND_MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// C's conversion to a signed integer on x86-64: towards zero, `i32::MIN` when it does not fit. Narrower integers
/// are its low bits.
#[inline]
pub(crate) fn truncate(value: f32) -> i32 {
    if value.abs() < 2_147_483_648.0 { value as i32 } else { i32::MIN }
}

/// What makes [`fit_symmetric`] weigh a value.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    /// Its own square.
    Square,
    /// A given weight.
    Given(&'a [f32]),
}

impl Weights<'_> {
    #[inline]
    fn at(self, i: usize, x: f32) -> f32 {
        match self {
            Weights::Square => x * x,
            Weights::Given(w) => w[i],
        }
    }
}

/// The first value of the largest magnitude, with that magnitude.
#[inline]
pub(crate) fn signed_max(x: &[f32]) -> (f32, f32) {
    let (mut max, mut amax) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > amax {
            (amax, max) = (v.abs(), v);
        }
    }
    (max, amax)
}

/// Fits `x ~ scale * (code - nmax)` with codes in `0..2 * nmax`: 19 scales around the one that maps the largest
/// magnitude to `-nmax`, the best by explained squared error (`make_qx_quants`, type 1).
pub(crate) fn fit_symmetric(nmax: i32, x: &[f32], codes: &mut [i8], weights: Weights) -> f32 {
    let (max, amax) = signed_max(x);
    if amax < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let code = |iscale: f32, v: f32| nearest_int(iscale * v).clamp(-nmax, nmax - 1);
    let sums = |iscale: f32| {
        let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
        for (i, &v) in x.iter().enumerate() {
            let l = code(iscale, v) as f32;
            let w = weights.at(i, v);
            sumlx += w * v * l;
            suml2 += w * l * l;
        }
        (sumlx, suml2)
    };
    let mut best_iscale = -(nmax as f32) / max;
    let (sumlx, suml2) = sums(best_iscale);
    let mut scale = if suml2 != 0.0 { sumlx / suml2 } else { 0.0 };
    let mut best = scale * sumlx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let iscale = -(nmax as f32 + 0.1 * step as f32) / max;
        let (sumlx, suml2) = sums(iscale);
        if suml2 > 0.0 && sumlx * sumlx > best * suml2 {
            best_iscale = iscale;
            scale = sumlx / suml2;
            best = scale * sumlx;
        }
    }
    for (l, &v) in codes.iter_mut().zip(x) {
        *l = (nmax + code(best_iscale, v)) as i8;
    }
    scale
}

/// Fits `x ~ scale * (code - nmax)` by up to five rounds of moving single codes (`make_q3_quants` with rmse).
pub(crate) fn fit_symmetric_by_moves(nmax: i32, x: &[f32], codes: &mut [i8]) -> f32 {
    let (max, amax) = signed_max(x);
    if amax < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -(nmax as f32) / max;
    let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
    for (l, &v) in codes.iter_mut().zip(x) {
        let new = nearest_int(iscale * v).clamp(-nmax, nmax - 1);
        *l = new as i8;
        let w = v * v;
        sumlx += w * v * new as f32;
        suml2 += w * new as f32 * new as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (l, &v) in codes.iter_mut().zip(x) {
            let old = f32::from(*l);
            let w = v * v;
            let mut slx = sumlx - w * v * old;
            if slx > 0.0 {
                let mut sl2 = suml2 - w * old * old;
                let new = nearest_int(v * sl2 / slx).clamp(-nmax, nmax - 1);
                if new != i32::from(*l) {
                    slx += w * v * new as f32;
                    sl2 += w * new as f32 * new as f32;
                    if sl2 > 0.0 && slx * slx * suml2 > sumlx * sumlx * sl2 {
                        *l = new as i8;
                        (sumlx, suml2) = (slx, sl2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    for l in codes {
        *l += nmax as i8;
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}

/// The candidate scales of a search for a scale and a minimum: `(nmax + start + step * i) / (max - min)` for
/// `i` in `0..=steps`.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub start: f32,
    pub step: f32,
    pub steps: u8,
}

/// Weighted sums over a group, and the line through it that they give.
struct LineFit {
    sum_w: f32,
    sum_x: f32,
}

impl LineFit {
    /// Scale and minimum of the least-squares line for these codes, the minimum not above zero; `None` when the codes
    /// are all the same.
    #[inline]
    fn solve(&self, sum_l: f32, sum_l2: f32, sum_xl: f32) -> Option<(f32, f32)> {
        let det = self.sum_w * sum_l2 - sum_l * sum_l;
        if det > 0.0 {
            let scale = (self.sum_w * sum_xl - self.sum_x * sum_l) / det;
            let min = (sum_l2 * self.sum_x - sum_l * sum_xl) / det;
            Some(if min > 0.0 { (sum_xl / sum_l2, 0.0) } else { (scale, min) })
        } else {
            None
        }
    }
}

/// How the error of one value counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Squared.
    Square,
    /// Absolute.
    Absolute,
}

impl Loss {
    #[inline]
    fn of(self, diff: f32) -> f32 {
        match self {
            Loss::Square => diff * diff,
            Loss::Absolute => diff.abs(),
        }
    }
}

/// Smallest value, at most zero, and largest value; with the sums of weights and weighted values.
fn extent(x: &[f32], weights: &[f32]) -> (f32, f32, LineFit) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    (min, max, LineFit { sum_w, sum_x })
}

/// Fits `x ~ scale * code - min` with codes in `0..=nmax` (`make_qkx2_quants`). Returns the scale and the minimum, which
/// is not negative.
pub(crate) fn fit_line(nmax: i32, x: &[f32], weights: &[f32], grid: Grid, loss: Loss, codes: &mut [u8]) -> (f32, f32) {
    let code = |iscale: f32, v: f32, min: f32| nearest_int(iscale * (v - min)).clamp(0, nmax) as u8;
    let (mut min, max, fit) = extent(x, weights);
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let iscale = nmax as f32 / (max - min);
    let mut scale = 1.0 / iscale;
    for (l, &v) in codes.iter_mut().zip(x) {
        *l = code(iscale, v, min);
    }
    let error = |codes: &[u8], scale: f32, min: f32| {
        let mut sum = 0.0f32;
        for ((&l, &v), &w) in codes.iter().zip(x).zip(weights) {
            sum += w * loss.of(scale * f32::from(l) + min - v);
        }
        sum
    };
    let mut best_error = error(codes, scale, min);
    let mut trial = [0u8; 32];
    let trial = &mut trial[..x.len()];
    for i in 0..=grid.steps {
        let iscale = (grid.start + grid.step * f32::from(i) + nmax as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((l, &v), &w) in trial.iter_mut().zip(x).zip(weights) {
            *l = code(iscale, v, min);
            let c = f32::from(*l);
            sum_l += w * c;
            sum_l2 += w * c * c;
            sum_xl += w * c * v;
        }
        if let Some((new_scale, new_min)) = fit.solve(sum_l, sum_l2, sum_xl) {
            let new_error = error(trial, new_scale, new_min);
            if new_error < best_error {
                codes.copy_from_slice(trial);
                (best_error, scale, min) = (new_error, new_scale, new_min);
            }
        }
    }
    (scale, -min)
}

/// The grid of [`fit_line_guarded`], the same for every type.
pub(crate) const GUARDED_GRID: Grid = Grid { start: -0.9, step: 0.05, steps: 36 };

/// [`fit_line`] for importance weights: a finer grid, and codes that stay in range when the fitted minimum comes close to
/// the maximum (`make_qkx3_quants`).
pub(crate) fn fit_line_guarded(nmax: i32, x: &[f32], weights: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let grid = GUARDED_GRID;
    let (mut min, max, fit) = extent(x, weights);
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let iscale = nmax as f32 / (max - min);
    let mut scale = 1.0 / iscale;
    for (l, &v) in codes.iter_mut().zip(x) {
        *l = nearest_int(iscale * (v - min)).clamp(0, nmax) as u8;
    }
    let error = |codes: &[u8], scale: f32, min: f32| {
        let mut sum = 0.0f32;
        for ((&l, &v), &w) in codes.iter().zip(x).zip(weights) {
            let diff = scale * f32::from(l) + min - v;
            sum += w * (diff * diff);
        }
        sum
    };
    let mut best_error = error(codes, scale, min);
    let mut trial = [0u8; 32];
    let trial = &mut trial[..x.len()];
    for i in 0..=grid.steps {
        let iscale = (grid.start + grid.step * f32::from(i) + nmax as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((l, &v), &w) in trial.iter_mut().zip(x).zip(weights) {
            let target = iscale * (v - min);
            let limited = if target < nmax as f32 { target } else { nmax as f32 };
            *l = if target > 0.0 { nearest_int(limited) as u8 } else { 0 };
            let c = f32::from(*l);
            sum_l += w * c;
            sum_l2 += w * c * c;
            sum_xl += w * c * v;
        }
        if let Some((new_scale, new_min)) = fit.solve(sum_l, sum_l2, sum_xl) {
            let new_error = error(trial, new_scale, new_min);
            if new_error < best_error {
                codes.copy_from_slice(trial);
                (best_error, scale, min) = (new_error, new_scale, new_min);
            }
        }
    }
    (scale, -min)
}

/// Fits `x ~ scale * code` for values that are scales or minima, so not negative as a rule (`make_qp_quants`).
pub(crate) fn fit_positive(nmax: i32, x: &[f32], codes: &mut [u8], weights: &[f32]) -> f32 {
    let mut max = 0.0f32;
    for &v in x {
        max = if max > v { max } else { v };
    }
    if max < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let mut iscale = nmax as f32 / max;
    let scale = 1.0 / iscale;
    let mut best = 0.0f32;
    for (&v, &w) in x.iter().zip(weights) {
        let l = nearest_int(iscale * v) as u8;
        let diff = v - scale * f32::from(l);
        best += w * diff * diff;
    }
    for step in (-4..=4).filter(|&step| step != 0) {
        let trial = (0.1 * step as f32 + nmax as f32) / max;
        let scale = 1.0 / trial;
        let mut error = 0.0f32;
        for (&v, &w) in x.iter().zip(weights) {
            let l = nearest_int(trial * v).min(nmax);
            let diff = v - scale * l as f32;
            error += w * diff * diff;
        }
        if error < best {
            (best, iscale) = (error, trial);
        }
    }
    let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
    for ((l, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
        let new = nearest_int(iscale * v).min(nmax);
        *l = new as u8;
        sumlx += w * v * new as f32;
        suml2 += w * new as f32 * new as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((l, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
            let old = f32::from(*l);
            let mut slx = sumlx - w * v * old;
            let mut sl2 = suml2 - w * old * old;
            if slx > 0.0 && sl2 > 0.0 {
                let new = nearest_int(v * sl2 / slx).min(nmax);
                if new != i32::from(*l) {
                    slx += w * v * new as f32;
                    sl2 += w * new as f32 * new as f32;
                    if slx * slx * suml2 > sumlx * sumlx * sl2 {
                        *l = new as u8;
                        (sumlx, suml2) = (slx, sl2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}
