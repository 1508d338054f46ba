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

/// A value of each group with its weight, and its code in the candidate at hand.
///
/// The three lie side by side because apart they would be 2 KiB each, and the processor takes a load for one of a store
/// that is a multiple of 4 KiB away until it has compared whole addresses.
#[derive(Clone, Copy)]
pub(super) struct Cell<V> {
    x: V,
    w: V,
    code: V,
}

#[inline(always)]
pub(super) fn cells<V: Lanes, const N: usize>(x: &[V; N], w: &[V; N]) -> [Cell<V>; N] {
    let mut cells = [Cell { x: x[0], w: w[0], code: x[0] }; N];
    for i in 1..N {
        cells[i] = Cell { x: x[i], w: w[i], code: x[i] };
    }
    cells
}

/// Scale and minimum of each group, and the lanes that need the scalar code.
#[derive(Clone, Copy)]
pub(super) struct Lines<V> {
    pub scale: V,
    pub min: V,
    /// Lanes whose values do not rise above their minimum: their codes are 0.
    pub flat: u32,
    pub strays: u32,
}

/// Extent and weighted sums of each group.
#[derive(Clone, Copy)]
struct Extent<V> {
    low: V,
    min: V,
    max: V,
    sum_w: V,
    sum_x: V,
}

#[inline(always)]
fn extent<V: Lanes, const N: usize>(cells: &[Cell<V>; N]) -> Extent<V> {
    let first = &cells[0];
    let (mut low, mut max) = (first.x, first.x);
    let mut sum_w = first.w;
    let mut sum_x = sum_w.mul(first.x);
    for cell in &cells[1..] {
        low = cell.x.lesser(low);
        max = cell.x.greater(max);
        sum_w = sum_w.add(cell.w);
        sum_x = sum_x.add(cell.w.mul(cell.x));
    }
    Extent { low, min: V::splat(0.0).lesser(low), max, sum_w, sum_x }
}

/// `reference::search::LineFit::solve`: where the line exists, and the line.
#[inline(always)]
fn solve<V: Lanes>(e: &Extent<V>, [sum_l, sum_l2, sum_xl]: [V; 3]) -> (V::Mask, V, V) {
    let zero = V::splat(0.0);
    let det = e.sum_w.mul(sum_l2).sub(sum_l.mul(sum_l));
    let scale = e.sum_w.mul(sum_xl).sub(e.sum_x.mul(sum_l)).div(det);
    let min = sum_l2.mul(e.sum_x).sub(sum_l.mul(sum_xl)).div(det);
    let positive = zero.lt(min);
    (zero.lt(det), V::select(positive, sum_xl.div(sum_l2), scale), V::select(positive, zero, min))
}

#[inline(always)]
fn error_of<V: Lanes, const N: usize>(cells: &[Cell<V>; N], scale: V, min: V, loss: Loss) -> V {
    let mut sum = V::splat(0.0);
    for cell in cells {
        let diff = scale.mul(cell.code).add(min).sub(cell.x);
        let lost = match loss {
            Loss::Square => diff.mul(diff),
            Loss::Absolute => diff.abs(),
        };
        sum = sum.add(cell.w.mul(lost));
    }
    sum
}

/// A search under way.
#[derive(Clone, Copy)]
struct Progress<V: Lanes> {
    extent: Extent<V>,
    scale: V,
    min: V,
    best: V,
    inside: V::Mask,
}

/// The first candidate of a search: the line through minimum and maximum.
#[inline(always)]
fn start<V: Lanes, const N: usize>(cells: &mut [Cell<V>; N], top: V, loss: Loss) -> Progress<V> {
    let extent = extent(cells);
    let rise = extent.max.sub(extent.min);
    let iscale = top.div(rise);
    let scale = V::splat(1.0).div(iscale);
    let finite = V::and(is_finite(extent.sum_x), is_finite(extent.sum_w));
    let inside = V::and(finite, iscale.mul(rise).abs().lt(V::splat(ROUND_LIMIT)));
    for cell in cells.iter_mut() {
        cell.code = iscale.mul(cell.x.sub(extent.min)).cut_positive(top).round();
    }
    let best = error_of(cells, scale, extent.min, loss);
    Progress { extent, scale, min: extent.min, best, inside }
}

/// Weighted sums over the codes of a candidate, which are left in the cells.
///
/// Cutting to the range of codes before rounding is the same as after it, and it keeps a guarded candidate that aims
/// beyond them in range. Targets grow with the values, so those of the smallest and the largest value tell whether any lane
/// needs to be cut at all; most candidates need it at most from below.
#[inline(always)]
fn try_scale<V: Lanes, const N: usize>(
    cells: &mut [Cell<V>; N],
    e: &Extent<V>,
    iscale: V,
    min: V,
    nmax: f32,
) -> [V; 3] {
    let (low, high) = (iscale.mul(e.low.sub(min)), iscale.mul(e.max.sub(min)));
    let (floor, ceiling) = (V::splat(-0.45), V::splat(nmax + 0.45));
    if V::bits(V::and(low.lt(ceiling), high.lt(ceiling))) != lane_bits::<V>() {
        sums::<V, N, true, true>(cells, iscale, min, nmax)
    } else if V::bits(V::and(floor.lt(low), floor.lt(high))) != lane_bits::<V>() {
        sums::<V, N, true, false>(cells, iscale, min, nmax)
    } else {
        sums::<V, N, false, false>(cells, iscale, min, nmax)
    }
}

#[inline(always)]
fn sums<V: Lanes, const N: usize, const BELOW: bool, const ABOVE: bool>(
    cells: &mut [Cell<V>; N],
    iscale: V,
    min: V,
    nmax: f32,
) -> [V; 3] {
    let (zero, top) = (V::splat(0.0), V::splat(nmax));
    let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
    for cell in cells {
        let mut target = iscale.mul(cell.x.sub(min));
        if ABOVE {
            target = target.cut_positive(top);
        } else if BELOW {
            target = target.cut_below();
        }
        let code = target.round();
        cell.code = code;
        let wl = cell.w.mul(code);
        sum_l = sum_l.add(wl);
        sum_l2 = sum_l2.add(wl.mul(code));
        sum_xl = sum_xl.add(wl.mul(cell.x));
    }
    [sum_l, sum_l2, sum_xl]
}

/// `reference::search::fit_line`, without the codes: super-blocks need them only where a scale rounds to zero.
#[inline(always)]
pub(super) fn fit_line<V: Lanes, const N: usize>(
    nmax: f32,
    cells: &mut [Cell<V>; N],
    grid: Grid,
    loss: Loss,
) -> Lines<V> {
    let top = V::splat(nmax);
    let limit = V::splat(ROUND_LIMIT);
    let mut p = start(cells, top, loss);
    for step in 0..=grid.steps {
        let factor = V::splat(grid.start + grid.step * f32::from(step) + nmax);
        let rise = p.extent.max.sub(p.min);
        let iscale = factor.div(rise);
        let low = iscale.mul(p.extent.low.sub(p.min));
        p.inside = V::and(p.inside, V::and(iscale.mul(rise).abs().lt(limit), low.abs().lt(limit)));
        let sums = try_scale(cells, &p.extent, iscale, p.min, nmax);
        let (exists, scale, min) = solve(&p.extent, sums);
        let error = error_of(cells, scale, min, loss);
        let better = V::and(exists, error.lt(p.best));
        p.best = V::select(better, error, p.best);
        p.scale = V::select(better, scale, p.scale);
        p.min = V::select(better, min, p.min);
    }
    let flat = p.extent.max.eq(p.extent.min);
    finish(&p, flat)
}

/// The result of a search; for flat groups the scale is zero and the minimum that of the values.
#[inline(always)]
fn finish<V: Lanes>(p: &Progress<V>, flat: V::Mask) -> Lines<V> {
    Lines {
        scale: V::select(flat, V::splat(0.0), p.scale),
        min: V::select(flat, p.extent.min, p.min).neg(),
        flat: V::bits(flat),
        strays: !V::bits(V::or(p.inside, flat)) & lane_bits::<V>(),
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
pub(super) fn fit_line_guarded<V: Lanes, const N: usize>(nmax: f32, cells: &mut [Cell<V>; N]) -> (Lines<V>, Source<V>) {
    let grid = GUARDED_GRID;
    let top = V::splat(nmax);
    let mut p = start(cells, top, Loss::Square);
    let mut source = Source { iscale: top.div(p.extent.max.sub(p.min)), min: p.min };
    for step in 0..=grid.steps {
        let factor = V::splat(grid.start + grid.step * f32::from(step) + nmax);
        let iscale = factor.div(p.extent.max.sub(p.min));
        let sums = try_scale(cells, &p.extent, iscale, p.min, nmax);
        let (exists, scale, min) = solve(&p.extent, sums);
        let error = error_of(cells, scale, min, Loss::Square);
        let better = V::and(exists, error.lt(p.best));
        source.iscale = V::select(better, iscale, source.iscale);
        source.min = V::select(better, p.min, source.min);
        p.best = V::select(better, error, p.best);
        p.scale = V::select(better, scale, p.scale);
        p.min = V::select(better, min, p.min);
    }
    // A NaN extent neither rises nor is flat: it strays.
    let flat = V::or(p.extent.max.lt(p.extent.min), p.extent.max.eq(p.extent.min));
    (finish(&p, flat), source)
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
        let code = iscale.mul(x[i]).round().cut_signed(lowest, highest);
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
            let new = target.round().cut_signed(lowest, highest);
            let differs = V::and(positive, V::not(new.eq(old)));
            if V::bits(differs) == 0 {
                continue;
            }
            let new_slx = slx.add(weighted[i].mul(new));
            let new_sl2 = sl2.add(weight[i].mul(new).mul(new));
            let better = sumlx.mul(sumlx).mul(new_sl2).lt(new_slx.mul(new_slx).mul(suml2));
            let moves = V::and(differs, V::and(zero.lt(new_sl2), better));
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
        let code = iscale.mul(x[i]).round().cut_signed(lowest, highest);
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
