//! The search of `reference::cells`: lanes are candidate scales where codes are rounded and summed, and neighbours where a
//! cell is snapped to the grid.

use super::snap::Queue;
use super::{Picks, positive};
use crate::reference::cells::{Fitted, Fitter, Group, LEVELS, Refit, Scalar, Search, highest};
use crate::reference::lattice::{Cell, Lattice};
use std::marker::PhantomData;

/// Candidates come in chunks of eight, at most four.
const CANDIDATES: usize = 32;

/// A value whose place between two levels is this near to the middle may be nearer to the level that it is not rounded to:
/// the inverse of the scale and its product with the value are rounded, by less than a fifth of this.
const TIE: f32 = 0.5 - 1.0 / 65536.0;

/// The search in lanes of `V`.
pub(super) struct Searched<V>(PhantomData<V>);

impl<V: Picks> Fitter for Searched<V> {
    #[inline(always)]
    fn fit<const M: usize, const N: usize, const C: usize>(
        group: &Group<M>,
        lattice: &Lattice<N>,
        search: Search<C>,
        max: f32,
        first: f32,
    ) -> Fitted {
        match fit::<V, M, N, C>(group, lattice, search, max, first) {
            Some(fitted) => fitted,
            None => Scalar::fit(group, lattice, search, max, first),
        }
    }

    #[inline(always)]
    fn fit_positive(nmax: i32, x: &[f32; 256], weights: &[f32; 256]) -> [f32; 8] {
        positive::fit_positive::<V>(nmax, x, weights)
    }
}

/// What a search keeps for each cell and candidate.
struct Trials {
    /// Packed codes.
    codes: [[u16; CANDIDATES]; 8],
    /// Bit c: whether candidate c had an index.
    indexed: [u32; 8],
}

/// [`Fitter::fit`] with `C` chunks of candidates. `None` where rounding is not certain to be that of the scalar code, or
/// scales are so large or small that the rounding errors which [`TIE`] allows for are not what they are elsewhere.
#[inline(always)]
fn fit<V: Picks, const M: usize, const N: usize, const C: usize>(
    group: &Group<M>,
    lattice: &Lattice<N>,
    search: Search<C>,
    max: f32,
    first: f32,
) -> Option<Fitted> {
    if !(max > 1e-25 && max < 1e25 && all_below::<V, M>(group.magnitudes, 1e4 * max)) {
        return None;
    }
    let (mut ids, mut scales) = ([V::splat(0.0); C], [V::splat(0.0); C]);
    for (c, (id, scale)) in ids.iter_mut().zip(&mut scales).enumerate() {
        let steps = V::load(&STEPS[c]).sub(V::splat(search.tries as f32));
        *id = V::splat(highest::<N>()).add(steps.mul(V::splat(search.step))).div(V::splat(max));
        *scale = V::splat(1.0).div(*id);
    }
    let trials = snap_all::<V, M, N, C>(group, lattice, (2 * search.tries + 1) as usize, &ids, &scales);
    let (sumqx, sumq2) = sums_of_trials::<V, M, N, C>(group, &trials);
    let (mut scale, mut best, mut winner) = (first, 0.0f32, None);
    for c in 0..(2 * search.tries + 1) as usize {
        if sumq2[c] > 0.0 && sumqx[c] * sumqx[c] > best * sumq2[c] {
            scale = sumqx[c] / sumq2[c];
            best = scale * sumqx[c];
            winner = Some(c);
        }
    }
    let mut codes = [0u16; 8];
    let mut indexed = if search.refit == Refit::Group { 0u32 } else { u32::MAX };
    if let Some(c) = winner {
        indexed = 0;
        for k in 0..M / N {
            codes[k] = trials.codes[k][c];
            indexed |= (trials.indexed[k] >> c & 1) << k;
        }
    }
    let cells = (1u32 << (M / N)) - 1;
    let missing = !indexed & cells;
    let chosen = match search.refit {
        Refit::Unindexed => missing,
        Refit::Group if missing == 0 => 0,
        Refit::Group | Refit::Always => cells,
    };
    if scale > 0.0 && chosen != 0 {
        refit::<V, M, N>(group, lattice, &mut scale, &mut codes, chosen)?;
    }
    let mut indices = [0; 8];
    for (index, &codes) in indices.iter_mut().zip(&codes).take(M / N) {
        *index = lattice.index_of(&Lattice::<N>::unpack(codes));
    }
    Some(Fitted { scale, indices })
}

const STEPS: [[f32; 8]; 4] = {
    let mut steps = [[0.0; 8]; 4];
    let mut i = 0;
    while i < 32 {
        steps[i / 8][i % 8] = i as f32;
        i += 1;
    }
    steps
};

/// Whether all magnitudes are below a limit; false where one is NaN.
#[inline(always)]
fn all_below<V: Picks, const M: usize>(x: &[f32; M], limit: f32) -> bool {
    let mut bits = 0xff;
    for part in x.as_chunks::<8>().0 {
        bits &= V::bits(V::load(part).abs().lt(V::splat(limit)));
    }
    bits == 0xff
}

/// What the codes stand for, as a table for [`Picks::pick`].
#[inline(always)]
fn levels<V: Picks, const N: usize>() -> V {
    V::load(if N == 8 { &[1.0, 3.0, 5.0, 0.0, 1.0, 3.0, 5.0, 0.0] } else { &LEVELS })
}

/// Rounds all cells for all candidates, and snaps those that have no index.
#[inline(always)]
fn snap_all<V: Picks, const M: usize, const N: usize, const C: usize>(
    group: &Group<M>,
    lattice: &Lattice<N>,
    count: usize,
    ids: &[V; C],
    scales: &[V; C],
) -> Trials {
    let mut trials = Trials { codes: [[0; CANDIDATES]; 8], indexed: [0; 8] };
    let mut errors = Errors([[0.0; CANDIDATES]; 32]);
    for k in 0..M / N {
        let x: &[f32; N] = group.magnitudes[N * k..].first_chunk().expect("cells tile the group");
        let roots: &[f32; N] = group.roots[N * k..].first_chunk().expect("cells tile the group");
        let mut numbers = [[0u32; 8]; CANDIDATES / 8];
        let mut ties = 0u32;
        for (c, numbers) in numbers.iter_mut().enumerate().take(C) {
            let half = ids[c].mul(V::splat(0.5));
            let (mut number, mut worst) = (V::splat(0.0), V::splat(0.0));
            for &v in x.iter().rev() {
                let (code, off) = round::<V, N>(half, V::splat(v));
                number = number.mul(V::splat(f32::from(Lattice::<N>::LEVELS))).add(code);
                worst = worst.greater(off);
            }
            number.integers(numbers);
            ties |= V::bits(V::splat(TIE).lt(worst)) << (8 * c);
        }
        // Neighbouring candidates often round alike, and then they have the same neighbours.
        let numbers = numbers.as_flattened();
        let mut starts = 1 | ties | ties << 1;
        for c in 1..count {
            starts |= u32::from(numbers[c] != numbers[c - 1]) << c;
        }
        let (mut start, mut weighed) = (0, false);
        while start < count {
            let after = starts >> start >> 1;
            let end = count.min(start + 1 + after.trailing_zeros() as usize);
            let cell = lattice.cell(numbers[start] as usize);
            if cell.is_point() {
                trials.codes[k][start..end].fill(Lattice::<N>::pack(&lattice.points[usize::from(cell.index)]));
                trials.indexed[k] |= ((1u64 << end) - (1u64 << start)) as u32;
            } else {
                if !weighed {
                    errors.weigh(x, roots, scales);
                    weighed = true;
                }
                let (list, len) = list_of(lattice, cell, ties >> start & 1 == 1);
                let list = &list.as_flattened()[..len];
                let mut from = start;
                while from < end {
                    let window = from.min(CANDIDATES - 8);
                    let best = errors.best_of::<V, N>(list, window);
                    for c in from..end.min(window + 8) {
                        trials.codes[k][c] = best[c - window].to_bits() as u16;
                    }
                    from = window + 8;
                }
            }
            start = end;
        }
    }
    trials
}

/// The weighted squared errors of a cell for each place, code and candidate. A sum over the places of a neighbour looks them
/// up.
struct Errors([[f32; CANDIDATES]; 32]);

impl Errors {
    #[inline(always)]
    fn weigh<V: Picks, const N: usize, const C: usize>(&mut self, x: &[f32; N], roots: &[f32; N], scales: &[V; C]) {
        for level in 0..usize::from(Lattice::<N>::LEVELS) {
            for (c, scale) in scales.iter().enumerate() {
                let value = scale.mul(V::splat(LEVELS[level]));
                for i in 0..N {
                    let diff = value.sub(V::splat(x[i]));
                    let error = V::splat(roots[i]).mul(diff).mul(diff);
                    error.store(&mut self.0[32 / N * i + level][8 * c..]);
                }
            }
        }
    }

    /// For eight candidates from `window` on, the bits of the packed codes of the best neighbour. At most three chunks of
    /// candidates come before the window.
    #[inline(always)]
    fn best_of<V: Picks, const N: usize>(&self, list: &[u16], window: usize) -> [f32; 8] {
        let window = window.min(CANDIDATES - 8);
        let bits = if N == 8 { 2 } else { 3 };
        let (mut best, mut codes) = (V::splat(f32::MAX), V::splat(f32::from_bits(u32::from(list[0]))));
        for &packed in list {
            let mut sum = V::splat(0.0);
            for i in 0..N {
                let row = 32 / N * i + (usize::from(packed) >> (bits * i)) % (32 / N);
                let error = V::load(self.0[row][window..window + 8].first_chunk().expect("eight candidates"));
                sum = if i == 0 { error } else { sum.add(error) };
            }
            let better = sum.lt(best);
            best = V::select(better, sum, best);
            codes = V::select(better, V::splat(f32::from_bits(u32::from(packed))), codes);
        }
        let mut out = [0.0; 8];
        codes.store(&mut out);
        out
    }
}

/// The code of a value, and how far from it the value is.
#[inline(always)]
fn round<V: Picks, const N: usize>(half_id: V, x: V) -> (V, V) {
    // Half of `id * v - 1`: halving is exact, wherever it is done.
    let place = half_id.mul(x).sub(V::splat(0.5)).cut_positive(V::splat(f32::from(Lattice::<N>::LEVELS - 1)));
    let code = place.round();
    (code, place.sub(code).abs())
}

#[inline(always)]
fn list_of<const N: usize>(lattice: &Lattice<N>, cell: Cell, tie: bool) -> (&[[u16; 8]], usize) {
    if tie { lattice.neighbours(cell) } else { lattice.contenders(cell) }
}

/// The weighted sums of every candidate.
#[inline(always)]
fn sums_of_trials<V: Picks, const M: usize, const N: usize, const C: usize>(
    group: &Group<M>,
    trials: &Trials,
) -> ([f32; CANDIDATES], [f32; CANDIDATES]) {
    let levels = levels::<V, N>();
    let (mut sumqx, mut sumq2) = ([V::splat(0.0); C], [V::splat(0.0); C]);
    for k in 0..M / N {
        let mut codes = [V::codes(&[0; 8]); C];
        for (codes, packed) in codes.iter_mut().zip(trials.codes[k].as_chunks().0) {
            *codes = V::codes(packed);
        }
        for i in N * k..N * k + N {
            let w = V::splat(group.weights[i]);
            let qx = w.mul(V::splat(group.magnitudes[i])).mul(levels);
            let q2 = w.mul(levels).mul(levels);
            for c in 0..C {
                sumqx[c] = sumqx[c].add(qx.pick::<N>(codes[c]));
                sumq2[c] = sumq2[c].add(q2.pick::<N>(codes[c]));
                codes[c] = V::next::<N>(codes[c]);
            }
        }
    }
    let (mut all_qx, mut all_q2) = ([0.0; CANDIDATES], [0.0; CANDIDATES]);
    for c in 0..C {
        sumqx[c].store(&mut all_qx[8 * c..]);
        sumq2[c].store(&mut all_q2[8 * c..]);
    }
    (all_qx, all_q2)
}

/// Rounds the chosen cells again for the scale found, then finds the scale for the codes. `None` as for [`fit`].
#[inline(always)]
fn refit<V: Picks, const M: usize, const N: usize>(
    group: &Group<M>,
    lattice: &Lattice<N>,
    scale: &mut f32,
    codes: &mut [u16; 8],
    chosen: u32,
) -> Option<()> {
    let id = 1.0 / *scale;
    if !(*scale > 1e-30 && *scale < 1e30 && all_below::<V, M>(group.magnitudes, 1e5 * *scale)) {
        return None;
    }
    let half = V::splat(id).mul(V::splat(0.5));
    let mut rounded = [0u32; M];
    let mut ties = 0u64;
    for (e, (x, out)) in group.magnitudes.as_chunks().0.iter().zip(rounded.as_chunks_mut().0).enumerate() {
        let (code, off) = round::<V, N>(half, V::load(x));
        code.integers(out);
        ties |= u64::from(V::bits(V::splat(TIE).lt(off))) << (8 * e);
    }
    let mut snapped = [[0u16; 8]; 8];
    let mut queue = Queue::new();
    for (k, rounded) in rounded.as_chunks::<N>().0.iter().enumerate() {
        if chosen >> k & 1 == 0 {
            continue;
        }
        let x: &[f32; N] = group.magnitudes[N * k..].first_chunk().expect("cells tile the group");
        let roots: &[f32; N] = group.roots[N * k..].first_chunk().expect("cells tile the group");
        let mut number = 0;
        for &code in rounded.iter().rev() {
            number = number * usize::from(Lattice::<N>::LEVELS) + code as usize;
        }
        let cell = lattice.cell(number);
        if cell.is_point() {
            snapped[k][0] = Lattice::<N>::pack(&lattice.points[usize::from(cell.index)]);
        } else {
            let tie = ties >> (N * k) & ((1 << N) - 1) != 0;
            let values = levels::<V, N>().mul(V::splat(*scale));
            queue.push(list_of(lattice, cell, tie).0, x, roots, values, (k, 0));
        }
    }
    queue.drain::<V>(&mut snapped);
    for (k, codes) in codes.iter_mut().enumerate().take(M / N) {
        if chosen >> k & 1 == 1 {
            *codes = snapped[k][0];
        }
    }
    let (mut sumqx, mut sumq2) = (0.0f32, 0.0f32);
    for (k, &codes) in codes.iter().enumerate().take(M / N) {
        for (i, code) in Lattice::<N>::unpack(codes).into_iter().enumerate() {
            let (v, w, q) = (group.magnitudes[N * k + i], group.weights[N * k + i], LEVELS[usize::from(code)]);
            sumqx += w * v * q;
            sumq2 += w * q * q;
        }
    }
    if sumq2 > 0.0 {
        *scale = sumqx / sumq2;
    }
    Some(())
}
