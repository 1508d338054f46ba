//! The searches of `reference::search`, one group in each lane.
//!
//! Two things differ from the scalar text, and neither changes a bit. Codes stay floats, because small integers are exact
//! in either form. And `nearest_int` is a true rounding here, which is the same below 2^22: lanes that leave that range
//! (or whose sums are not finite) are reported as strays, and the caller encodes their blocks with the scalar code.

use super::lanes::Lanes;
use crate::reference::iq4;
use crate::reference::search::{GROUP_MAX_EPS, GUARDED_GRID, Grid, Loss};

/// Where rounding is certain to agree with `nearest_int`.
const ROUND_LIMIT: f32 = 4_000_000.0;

/// Transposes groups of `N` values, one after the other in `rows`, so that each lane holds a group.
#[inline(always)]
pub(super) fn columns<V: Lanes, const N: usize>(rows: &[f32]) -> [V; N] {
    let mut out = [V::splat(0.0); N];
    let mut at = 0;
    while at < N {
        out[at..at + 8].copy_from_slice(&V::tile(rows, N, at));
        at += 8;
    }
    out
}

/// Scale and minimum of each group, and the lanes that need the scalar code.
pub(super) struct Lines<V> {
    pub scale: V,
    pub min: V,
    /// Lanes whose values do not rise above their minimum: their codes are 0.
    pub flat: u32,
    pub strays: u32,
}

/// Extent and weighted sums of each group.
struct Extent<V> {
    low: V,
    min: V,
    max: V,
    sum_w: V,
    sum_x: V,
}

#[inline(always)]
fn extent<V: Lanes, const N: usize>(x: &[V; N], w: &[V; N]) -> Extent<V> {
    let (mut low, mut max) = (x[0], x[0]);
    let mut sum_w = w[0];
    let mut sum_x = sum_w.mul(x[0]);
    for i in 1..N {
        low = x[i].lesser(low);
        max = x[i].greater(max);
        sum_w = sum_w.add(w[i]);
        sum_x = sum_x.add(w[i].mul(x[i]));
    }
    Extent { low, min: V::splat(0.0).lesser(low), max, sum_w, sum_x }
}

/// `reference::search::LineFit::solve`: where the line exists, and the line.
#[inline(always)]
fn solve<V: Lanes>(e: &Extent<V>, sum_l: V, sum_l2: V, sum_xl: V) -> (V::Mask, V, V) {
    let zero = V::splat(0.0);
    let det = e.sum_w.mul(sum_l2).sub(sum_l.mul(sum_l));
    let scale = e.sum_w.mul(sum_xl).sub(e.sum_x.mul(sum_l)).div(det);
    let min = sum_l2.mul(e.sum_x).sub(sum_l.mul(sum_xl)).div(det);
    let positive = zero.lt(min);
    (zero.lt(det), V::select(positive, sum_xl.div(sum_l2), scale), V::select(positive, zero, min))
}

#[inline(always)]
fn error_of<V: Lanes, const N: usize>(x: &[V; N], w: &[V; N], codes: &[V; N], scale: V, min: V, loss: Loss) -> V {
    let mut sum = V::splat(0.0);
    for i in 0..N {
        let diff = scale.mul(codes[i]).add(min).sub(x[i]);
        let lost = match loss {
            Loss::Square => diff.mul(diff),
            Loss::Absolute => diff.abs(),
        };
        sum = sum.add(w[i].mul(lost));
    }
    sum
}

/// `reference::search::fit_line`, without the codes: super-blocks need them only where a scale rounds to zero.
#[inline(always)]
pub(super) fn fit_line<V: Lanes, const N: usize>(
    nmax: f32,
    x: &[V; N],
    w: &[V; N],
    grid: Grid,
    loss: Loss,
) -> Lines<V> {
    let (zero, top) = (V::splat(0.0), V::splat(nmax));
    let limit = V::splat(ROUND_LIMIT);
    let e = extent(x, w);
    let constant = e.max.eq(e.min);
    let mut min = e.min;
    let mut inside = V::and(is_finite(e.sum_x), is_finite(e.sum_w));
    let mut codes = [zero; N];

    let iscale = top.div(e.max.sub(min));
    let mut scale = V::splat(1.0).div(iscale);
    inside = V::and(inside, iscale.mul(e.max.sub(min)).abs().lt(limit));
    inside = V::and(inside, iscale.mul(e.low.sub(min)).abs().lt(limit));
    for i in 0..N {
        codes[i] = iscale.mul(x[i].sub(min)).round().greater(zero).lesser(top);
    }
    let mut best = error_of(x, w, &codes, scale, min, loss);

    for step in 0..=grid.steps {
        let factor = V::splat(grid.start + grid.step * f32::from(step) + nmax);
        let iscale = factor.div(e.max.sub(min));
        inside = V::and(inside, iscale.mul(e.max.sub(min)).abs().lt(limit));
        inside = V::and(inside, iscale.mul(e.low.sub(min)).abs().lt(limit));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..N {
            let code = iscale.mul(x[i].sub(min)).round().greater(zero).lesser(top);
            codes[i] = code;
            let wl = w[i].mul(code);
            sum_l = sum_l.add(wl);
            sum_l2 = sum_l2.add(wl.mul(code));
            sum_xl = sum_xl.add(wl.mul(x[i]));
        }
        let (exists, new_scale, new_min) = solve(&e, sum_l, sum_l2, sum_xl);
        let error = error_of(x, w, &codes, new_scale, new_min, loss);
        let better = V::and(exists, error.lt(best));
        best = V::select(better, error, best);
        scale = V::select(better, new_scale, scale);
        min = V::select(better, new_min, min);
    }
    Lines {
        scale: V::select(constant, zero, scale),
        min: V::select(constant, e.min, min).neg(),
        flat: V::bits(constant),
        strays: !V::bits(V::or(inside, constant)) & lane_bits::<V>(),
    }
}

#[inline(always)]
fn is_finite<V: Lanes>(v: V) -> V::Mask {
    v.abs().lt(V::splat(f32::INFINITY))
}

#[inline(always)]
pub(super) fn lane_bits<V: Lanes>() -> u32 {
    u32::MAX >> (32 - V::N)
}

/// The inverse scale and the minimum that the codes of a line come from: those of its candidate.
pub(super) struct Source<V> {
    pub iscale: V,
    pub min: V,
}

/// `reference::search::fit_line_guarded`.
#[inline(always)]
pub(super) fn fit_line_guarded<V: Lanes, const N: usize>(nmax: f32, x: &[V; N], w: &[V; N]) -> (Lines<V>, Source<V>) {
    let grid = GUARDED_GRID;
    let (zero, top) = (V::splat(0.0), V::splat(nmax));
    let limit = V::splat(ROUND_LIMIT);
    let e = extent(x, w);
    let rises = e.min.lt(e.max);
    let mut min = e.min;
    let mut best_min = min;

    let mut codes = [zero; N];

    let iscale = top.div(e.max.sub(min));
    let mut best_iscale = iscale;
    let mut scale = V::splat(1.0).div(iscale);
    let mut inside = V::and(is_finite(e.sum_x), is_finite(e.sum_w));
    inside = V::and(inside, iscale.mul(e.max.sub(min)).abs().lt(limit));
    for i in 0..N {
        codes[i] = iscale.mul(x[i].sub(min)).round().greater(zero).lesser(top);
    }
    let mut best = error_of(x, w, &codes, scale, min, Loss::Square);

    for step in 0..=grid.steps {
        let factor = V::splat(grid.start + grid.step * f32::from(step) + nmax);
        let iscale = factor.div(e.max.sub(min));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..N {
            // A target that is NaN or not above zero gives code 0; the rest is cut to the top before it is rounded.
            let code = iscale.mul(x[i].sub(min)).greater(zero).lesser(top).round();
            codes[i] = code;
            let wl = w[i].mul(code);
            sum_l = sum_l.add(wl);
            sum_l2 = sum_l2.add(wl.mul(code));
            sum_xl = sum_xl.add(wl.mul(x[i]));
        }
        let (exists, new_scale, new_min) = solve(&e, sum_l, sum_l2, sum_xl);
        let error = error_of(x, w, &codes, new_scale, new_min, Loss::Square);
        let better = V::and(exists, error.lt(best));
        best = V::select(better, error, best);
        best_iscale = V::select(better, iscale, best_iscale);
        best_min = V::select(better, min, best_min);
        scale = V::select(better, new_scale, scale);
        min = V::select(better, new_min, min);
    }
    // A NaN extent neither rises nor is flat: it strays.
    let flat = V::or(e.max.lt(e.min), e.max.eq(e.min));
    let lines = Lines {
        scale: V::select(rises, scale, zero),
        min: V::select(rises, min, e.min).neg(),
        flat: V::bits(flat),
        strays: !V::bits(V::or(inside, flat)) & lane_bits::<V>(),
    };
    (lines, Source { iscale: best_iscale, min: best_min })
}

/// Scale of each group, the inverse scale that gives its codes (0 for groups of zeros, whose codes are 0 too), and the
/// lanes that need the scalar code.
pub(super) struct Scales<V> {
    pub scale: V,
    pub iscale: V,
    pub strays: u32,
}

/// `reference::search::fit_symmetric`. With no weights, values weigh their squares.
#[inline(always)]
pub(super) fn fit_symmetric<V: Lanes, const N: usize>(nmax: f32, x: &[V; N], w: Option<&[V; N]>) -> Scales<V> {
    let zero = V::splat(0.0);
    let (mut max, mut amax) = (zero, zero);
    let mut weight = [zero; N];
    let mut weighted = [zero; N];
    for i in 0..N {
        let magnitude = x[i].abs();
        let larger = amax.lt(magnitude);
        max = V::select(larger, x[i], max);
        amax = V::select(larger, magnitude, amax);
        weight[i] = match w {
            Some(w) => w[i],
            None => x[i].mul(x[i]),
        };
        weighted[i] = weight[i].mul(x[i]);
    }
    let mut best_iscale = V::splat(-nmax).div(max);
    let (sumlx, suml2) = symmetric_sums(nmax, x, &weight, &weighted, best_iscale);
    let finite = V::and(V::and(is_finite(sumlx), is_finite(suml2)), is_finite(amax));
    let mut scale = V::select(suml2.eq(zero), zero, sumlx.div(suml2));
    let mut best = scale.mul(sumlx);
    for step in -9..=9 {
        if step == 0 {
            continue;
        }
        let iscale = V::splat(-(nmax + 0.1 * step as f32)).div(max);
        let (sumlx, suml2) = symmetric_sums(nmax, x, &weight, &weighted, iscale);
        let better = V::and(zero.lt(suml2), best.mul(suml2).lt(sumlx.mul(sumlx)));
        let new_scale = sumlx.div(suml2);
        best_iscale = V::select(better, iscale, best_iscale);
        scale = V::select(better, new_scale, scale);
        best = V::select(better, new_scale.mul(sumlx), best);
    }
    let zeros = amax.lt(V::splat(GROUP_MAX_EPS));
    Scales {
        scale: V::select(zeros, zero, scale),
        iscale: V::select(zeros, zero, best_iscale),
        strays: !V::bits(V::or(finite, zeros)) & lane_bits::<V>(),
    }
}

/// What [`fit_symmetric_by_moves`] finds: scales, and the codes that they come from.
pub(super) struct Moved<V> {
    pub scale: V,
    pub codes: [V; 16],
    pub strays: u32,
}

/// `reference::search::fit_symmetric_by_moves`. Lanes that are done go through the motions until all are: a round without a
/// change changes nothing.
#[inline(always)]
pub(super) fn fit_symmetric_by_moves<V: Lanes>(nmax: f32, x: &[V; 16]) -> Moved<V> {
    let zero = V::splat(0.0);
    let (lowest, highest) = (V::splat(-nmax), V::splat(nmax - 1.0));
    let limit = V::splat(ROUND_LIMIT);
    let (mut max, mut amax) = (zero, zero);
    for v in x {
        let magnitude = v.abs();
        let larger = amax.lt(magnitude);
        max = V::select(larger, *v, max);
        amax = V::select(larger, magnitude, amax);
    }
    let iscale = lowest.div(max);
    let mut codes = [zero; 16];
    let (mut weight, mut weighted) = ([zero; 16], [zero; 16]);
    let (mut sumlx, mut suml2) = (zero, zero);
    for i in 0..16 {
        let code = iscale.mul(x[i]).round().greater(lowest).lesser(highest);
        codes[i] = code;
        weight[i] = x[i].mul(x[i]);
        weighted[i] = weight[i].mul(x[i]);
        sumlx = sumlx.add(weighted[i].mul(code));
        suml2 = suml2.add(weight[i].mul(code).mul(code));
    }
    let mut inside = V::and(V::and(is_finite(sumlx), is_finite(suml2)), is_finite(amax));
    for _ in 0..5 {
        let mut changed = zero.lt(zero);
        for i in 0..16 {
            let old = codes[i];
            let slx = sumlx.sub(weighted[i].mul(old));
            let sl2 = suml2.sub(weight[i].mul(old).mul(old));
            let positive = zero.lt(slx);
            let target = x[i].mul(sl2).div(slx);
            inside = V::and(inside, V::or(target.abs().lt(limit), V::not(positive)));
            let new = target.round().greater(lowest).lesser(highest);
            let new_slx = slx.add(weighted[i].mul(new));
            let new_sl2 = sl2.add(weight[i].mul(new).mul(new));
            let better = sumlx.mul(sumlx).mul(new_sl2).lt(new_slx.mul(new_slx).mul(suml2));
            let moves = V::and(V::and(positive, V::not(new.eq(old))), V::and(zero.lt(new_sl2), better));
            codes[i] = V::select(moves, new, old);
            sumlx = V::select(moves, new_slx, sumlx);
            suml2 = V::select(moves, new_sl2, suml2);
            changed = V::or(changed, moves);
        }
        if V::bits(changed) == 0 {
            break;
        }
    }
    let zeros = amax.lt(V::splat(GROUP_MAX_EPS));
    let scale = V::select(zero.lt(suml2), sumlx.div(suml2), zero);
    for code in &mut codes {
        *code = V::select(zeros, zero, code.add(V::splat(nmax)));
    }
    Moved { scale: V::select(zeros, zero, scale), codes, strays: !V::bits(V::or(inside, zeros)) & lane_bits::<V>() }
}

#[inline(always)]
fn symmetric_sums<V: Lanes, const N: usize>(
    nmax: f32,
    x: &[V; N],
    weight: &[V; N],
    weighted: &[V; N],
    iscale: V,
) -> (V, V) {
    let (lowest, highest) = (V::splat(-nmax), V::splat(nmax - 1.0));
    let (mut sumlx, mut suml2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..N {
        let code = iscale.mul(x[i]).round().greater(lowest).lesser(highest);
        sumlx = sumlx.add(weighted[i].mul(code));
        suml2 = suml2.add(weight[i].mul(code).mul(code));
    }
    (sumlx, suml2)
}

/// `reference::iq4::fit_group`: the scale of each group, and the lanes that need the scalar code.
#[inline(always)]
pub(super) fn fit_uneven<V: Lanes>(x: &[V; 32], w: &[V; 32]) -> (V, u32) {
    let zero = V::splat(0.0);
    let (mut max, mut amax) = (zero, zero);
    for v in x {
        let magnitude = v.abs();
        let larger = amax.lt(magnitude);
        max = V::select(larger, *v, max);
        amax = V::select(larger, magnitude, amax);
    }
    let lowest = f32::from(iq4::VALUES[0]);
    let first = max.neg().div(V::splat(lowest));
    let (sumqx, sumq2) = uneven_sums(x, w, V::splat(1.0).div(first));
    let zeros = amax.lt(V::splat(GROUP_MAX_EPS));
    let finite = V::and(V::and(is_finite(sumqx), is_finite(sumq2)), is_finite(amax));
    let mut d = V::select(zero.lt(sumq2), sumqx.div(sumq2), zero);
    let mut best = d.mul(sumqx);
    for step in -iq4::TRIES..=iq4::TRIES {
        let id = V::splat(step as f32 + lowest).div(max);
        let (sumqx, sumq2) = uneven_sums(x, w, id);
        let better = V::and(zero.lt(sumq2), best.mul(sumq2).lt(sumqx.mul(sumqx)));
        let new = sumqx.div(sumq2);
        best = V::select(better, new.mul(sumqx), best);
        d = V::select(better, new, d);
    }
    (V::select(zeros, zero, d), !V::bits(V::or(finite, zeros)) & lane_bits::<V>())
}

#[inline(always)]
fn uneven_sums<V: Lanes>(x: &[V; 32], w: &[V; 32], id: V) -> (V, V) {
    let mut values = [0.0f32; 16];
    for (value, &v) in values.iter_mut().zip(&iq4::VALUES) {
        *value = f32::from(v);
    }
    let (mut sumqx, mut sumq2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..32 {
        let q = id.mul(x[i]).step(&iq4::MIDPOINTS, &values);
        let wq = w[i].mul(q);
        sumqx = sumqx.add(wq.mul(x[i]));
        sumq2 = sumq2.add(wq.mul(q));
    }
    (sumqx, sumq2)
}
