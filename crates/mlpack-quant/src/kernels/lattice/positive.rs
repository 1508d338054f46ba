//! `reference::search::fit_positive`, eight groups at a time.

use super::Picks;
use crate::kernels::search::columns;
use crate::reference::cells::{Fitter, Scalar};
use crate::reference::search::GROUP_MAX_EPS;

#[inline(always)]
pub(super) fn fit_positive<V: Picks>(nmax: i32, x: &[f32; 256], weights: &[f32; 256]) -> [f32; 8] {
    let (scale, strays) = fit(nmax as f32, &columns::<V, 32>(x), &columns::<V, 32>(weights));
    if strays != 0 {
        return Scalar::fit_positive(nmax, x, weights);
    }
    let mut scales = [0.0; 8];
    scale.store(&mut scales);
    scales
}

/// Scales, and the lanes in which a code leaves the range where floats stand for it.
#[inline(always)]
fn fit<V: Picks>(nmax: f32, x: &[V; 32], w: &[V; 32]) -> (V, u32) {
    let (zero, top) = (V::splat(0.0), V::splat(nmax));
    let (mut max, mut amax) = (zero, zero);
    let mut numbers = zero.eq(zero);
    for v in x {
        numbers = V::and(numbers, v.eq(*v));
        max = max.greater(*v);
        amax = amax.greater(v.abs());
    }
    let zeros = max.lt(V::splat(GROUP_MAX_EPS));
    // Values below zero are few and small, and their codes wrap: 256 is added to them.
    let mut inside = V::and(numbers, V::and(max.lt(V::splat(1e25)), amax.lt(max.mul(V::splat(50.0)))));
    let mut iscale = top.div(max);
    let scale = V::splat(1.0).div(iscale);
    let mut best = zero;
    for i in 0..32 {
        let diff = x[i].sub(scale.mul(wrapped(iscale.mul(x[i]).round())));
        best = best.add(w[i].mul(diff).mul(diff));
    }
    for step in -4..=4 {
        if step == 0 {
            continue;
        }
        let trial = V::splat(0.1 * step as f32 + nmax).div(max);
        let scale = V::splat(1.0).div(trial);
        let mut error = zero;
        for i in 0..32 {
            let diff = x[i].sub(scale.mul(trial.mul(x[i]).round().lesser(top)));
            error = error.add(w[i].mul(diff).mul(diff));
        }
        let better = error.lt(best);
        best = V::select(better, error, best);
        iscale = V::select(better, trial, iscale);
    }
    let mut codes = [zero; 32];
    let (mut sumlx, mut suml2) = (zero, zero);
    for i in 0..32 {
        let new = iscale.mul(x[i]).round().lesser(top);
        codes[i] = wrapped(new);
        sumlx = sumlx.add(w[i].mul(x[i]).mul(new));
        suml2 = suml2.add(w[i].mul(new).mul(new));
    }
    for _ in 0..5 {
        let mut changed = zero.lt(zero);
        for i in 0..32 {
            let (old, weighted) = (codes[i], w[i].mul(x[i]));
            let slx = sumlx.sub(weighted.mul(old));
            let sl2 = suml2.sub(w[i].mul(old).mul(old));
            let positive = V::and(zero.lt(slx), zero.lt(sl2));
            let target = x[i].mul(sl2).div(slx);
            let known = V::and(target.lt(V::splat(4e6)), V::splat(-250.0).lt(target));
            inside = V::and(inside, V::or(known, V::not(positive)));
            let new = target.round().lesser(top);
            let differs = V::and(positive, V::not(new.eq(old)));
            let slx = slx.add(weighted.mul(new));
            let sl2 = sl2.add(w[i].mul(new).mul(new));
            let better = sumlx.mul(sumlx).mul(sl2).lt(slx.mul(slx).mul(suml2));
            let moves = V::and(differs, better);
            codes[i] = V::select(moves, wrapped(new), old);
            sumlx = V::select(moves, slx, sumlx);
            suml2 = V::select(moves, sl2, suml2);
            changed = V::or(changed, moves);
        }
        if V::bits(changed) == 0 {
            break;
        }
    }
    let scale = V::select(zero.lt(suml2), sumlx.div(suml2), zero);
    (V::select(zeros, zero, scale), !V::bits(V::or(inside, V::and(numbers, zeros))) & 0xff)
}

/// A code as the reference keeps it in eight bits.
#[inline(always)]
fn wrapped<V: Picks>(code: V) -> V {
    V::select(code.lt(V::splat(0.0)), code.add(V::splat(256.0)), code)
}
