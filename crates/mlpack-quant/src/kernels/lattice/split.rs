//! The search of `reference::iq1`, eight groups at a time: lanes are groups where values are sorted, split and summed, and
//! neighbours where a cell is snapped to the grid.

use super::Picks;
use super::snap::Queue;
use crate::kernels::search::columns;
use crate::reference::iq1::{self, Found, LEVELS};
use crate::reference::lattice::{IQ1, Lattice};

/// Eight groups of `M` values.
struct Groups<V, const M: usize> {
    x: [V; M],
    weights: [V; M],
    /// The place of each value in the order of its group, equal ones as they come.
    ranks: [V; M],
}

/// The best split of each group; shifts are -1 where there is none.
#[derive(Clone, Copy)]
struct Splits<V> {
    scale: V,
    score: V,
    first: V,
    second: V,
    shifts: V,
}

#[inline(always)]
pub(super) fn find_iq1_s<V: Picks>(x: &[f32; 256], weights: &[f32; 256]) -> Found<8, 4> {
    let Some(groups) = Groups::<V, 32>::of(x, weights) else { return iq1::find_iq1_s(x, weights) };
    let mut splits = split_alike(&groups);
    let zero = V::splat(0.0);
    let mirrored = splits.scale.lt(zero);
    splits.shifts = V::select(mirrored, V::splat(1.0).sub(splits.shifts), splits.shifts);
    let mut found = Found::zeros();
    groups.snap(x, weights, &splits, mirrored, [zero.lt(splits.shifts); 4], iq1::IQ1_S_EPS, &mut found, 0);
    found
}

#[inline(always)]
pub(super) fn find_iq1_m<V: Picks>(x: &[f32; 256], weights: &[f32; 256]) -> Found<16, 2> {
    let mut found = Found::zeros();
    for (half, (part, part_weights)) in x.as_chunks::<128>().0.iter().zip(weights.as_chunks::<128>().0).enumerate() {
        let Some(groups) = Groups::<V, 16>::of(part, part_weights) else { return iq1::find_iq1_m(x, weights) };
        let mut splits = split_halves(&groups);
        let mirrored = splits.scale.lt(V::splat(0.0));
        splits.shifts = V::select(mirrored, V::splat(3.0).sub(splits.shifts), splits.shifts);
        let (one, two) = (splits.shifts.eq(V::splat(1.0)), splits.shifts.eq(V::splat(2.0)));
        let three = splits.shifts.eq(V::splat(3.0));
        let down = [V::or(two, three), V::or(one, three)];
        groups.snap(part, part_weights, &splits, mirrored, down, iq1::IQ1_M_EPS, &mut found, 8 * half);
    }
    found
}

impl<V: Picks, const M: usize> Groups<V, M> {
    /// `None` where a value is NaN, which has no place in an order.
    #[inline(always)]
    fn of(x: &[f32], weights: &[f32]) -> Option<Self> {
        let x: [V; M] = columns(x);
        let mut numbers = x[0].eq(x[0]);
        for v in &x[1..] {
            numbers = V::and(numbers, v.eq(*v));
        }
        if V::bits(numbers) != 0xff {
            return None;
        }
        Some(Groups { x, weights: columns(weights), ranks: ranks(&x) })
    }

    /// Values in their order, those that `keep` leaves out being zeros.
    #[inline(always)]
    fn sorted(&self, values: &[V; M], keep: std::ops::Range<usize>) -> [V; M] {
        let mut sorted = [[0.0f32; 8]; M];
        let (mut ranks, mut row) = ([0u32; 8], [0.0f32; 8]);
        for i in keep {
            self.ranks[i].integers(&mut ranks);
            values[i].store(&mut row);
            for lane in 0..8 {
                sorted[ranks[lane] as usize % M][lane] = row[lane];
            }
        }
        let mut out = *values;
        for (out, row) in out.iter_mut().zip(&sorted) {
            *out = V::load(row);
        }
        out
    }

    /// Sums of weighted values and of weights up to each place in the order; only the values in `keep` count.
    #[inline(always)]
    fn running_sums<const S: usize>(&self, keep: std::ops::Range<usize>) -> [[V; S]; 2] {
        let mut weighted = self.x;
        for (v, w) in weighted.iter_mut().zip(&self.weights) {
            *v = w.mul(*v);
        }
        let mut sums = [[V::splat(0.0); S]; 2];
        for (sums, values) in sums.iter_mut().zip([&weighted, &self.weights]) {
            let sorted = self.sorted(values, keep.clone());
            for j in 0..M {
                sums[j + 1] = sums[j].add(sorted[j]);
            }
        }
        sums
    }

    /// Gives codes to the values, snaps the cells to the grid and finds the scale again where one was moved. `down` says of
    /// each cell of a group whether it is shifted down. What comes out begins at group `at`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the two callers have nothing else in common")]
    fn snap<const G: usize, const C: usize>(
        &self,
        x: &[f32],
        weights: &[f32],
        splits: &Splits<V>,
        mirrored: V::Mask,
        down: [V::Mask; C],
        eps: f32,
        found: &mut Found<G, C>,
        at: usize,
    ) {
        let lattice: &Lattice<8> = &IQ1;
        let (zero, one) = (V::splat(0.0), V::splat(1.0));
        let mut amax = self.x[0].abs();
        for v in &self.x[1..] {
            amax = amax.greater(v.abs());
        }
        let live = V::bits(V::not(V::or(amax.lt(V::splat(eps)), splits.shifts.lt(zero))));
        let scale = V::select(mirrored, splits.scale.neg(), splits.scale);
        let mut scales = [0.0f32; 8];
        scale.store(&mut scales);
        let tables = [table::<V>(0), table::<V>(1)];
        let mut codes = [[0u16; 8]; 8];
        let mut queue = Queue::new();
        let mut moved = 0u32;
        for k in 0..C {
            let mut number = zero;
            for i in (8 * k..8 * k + 8).rev() {
                let first = V::select(self.ranks[i].lt(splits.first), zero, one);
                let code = first.add(V::select(self.ranks[i].lt(splits.second), zero, one));
                number = number.mul(V::splat(3.0)).add(V::select(mirrored, V::splat(2.0).sub(code), code));
            }
            let mut numbers = [0u32; 8];
            number.integers(&mut numbers);
            let down = V::bits(down[k]);
            for g in (0..8).filter(|g| live >> g & 1 == 1) {
                let cell = lattice.cell(numbers[g] as usize);
                if cell.is_point() {
                    codes[k][g] = Lattice::pack(&lattice.points[usize::from(cell.index)]);
                    continue;
                }
                moved |= 1 << g;
                let from = M * g + 8 * k;
                let x: &[f32; 8] = x[from..].first_chunk().expect("cells tile the group");
                let weights: &[f32; 8] = weights[from..].first_chunk().expect("cells tile the group");
                let values = V::splat(scales[g]).mul(tables[(down >> g & 1) as usize]);
                if queue.push(lattice.neighbours(cell).0, x, weights, values, (k, g)) {
                    queue.drain::<V>(&mut codes);
                }
            }
        }
        queue.drain::<V>(&mut codes);
        let (mut sumqx, mut sumq2) = (zero, zero);
        for k in 0..C {
            let mut lanes = V::codes(&codes[k]);
            for i in 8 * k..8 * k + 8 {
                let q = V::select(down[k], tables[1].pick::<8>(lanes), tables[0].pick::<8>(lanes));
                sumqx = sumqx.add(self.weights[i].mul(q).mul(self.x[i]));
                sumq2 = sumq2.add(self.weights[i].mul(q).mul(q));
                lanes = V::next::<8>(lanes);
            }
        }
        let better = V::bits(V::and(zero.lt(sumqx), zero.lt(sumq2))) & moved;
        let (mut refitted, mut shifts) = ([0.0f32; 8], [0u32; 8]);
        sumqx.div(sumq2).store(&mut refitted);
        splits.shifts.greater(zero).integers(&mut shifts);
        for g in (0..8).filter(|g| live >> g & 1 == 1) {
            found.scales[at + g] = if better >> g & 1 == 1 { refitted[g] } else { scales[g] };
            found.shifts[at + g] = shifts[g] as usize;
            for k in 0..C {
                found.indices[at + g][k] = lattice.index_of(&Lattice::<8>::unpack(codes[k][g]));
            }
        }
    }
}

/// The levels of a shift, as a table for [`Picks::pick`].
#[inline(always)]
fn table<V: Picks>(shift: usize) -> V {
    let [a, b, c] = LEVELS[shift];
    V::load(&[a, b, c, 0.0, a, b, c, 0.0])
}

#[inline(always)]
fn ranks<V: Picks, const M: usize>(x: &[V; M]) -> [V; M] {
    let (zero, one) = (V::splat(0.0), V::splat(1.0));
    let mut ranks = [zero; M];
    for (i, rank) in ranks.iter_mut().enumerate() {
        *rank = V::splat(i as f32);
    }
    for i in 0..M {
        let mut rank = ranks[i];
        for j in i + 1..M {
            let step = V::select(x[j].lt(x[i]), one, zero);
            rank = rank.add(step);
            ranks[j] = ranks[j].sub(step);
        }
        ranks[i] = rank;
    }
    ranks
}

impl<V: Picks> Splits<V> {
    #[inline(always)]
    fn none() -> Self {
        let zero = V::splat(0.0);
        Splits { scale: zero, score: V::splat(-f32::MAX), first: zero, second: zero, shifts: V::splat(-1.0) }
    }

    /// Whether a split may be better in any lane, from its sums.
    #[inline(always)]
    fn may_improve(&self, sumqx: V, sumq2: V) -> V::Mask {
        self.score.mul(sumq2).lt(sumqx.mul(sumqx))
    }

    /// Takes a split where it is better.
    #[inline(always)]
    fn improve(&mut self, sumqx: V, sumq2: V, at: (usize, usize), shifts: usize) {
        let better = V::and(V::splat(0.0).lt(sumq2), self.may_improve(sumqx, sumq2));
        let scale = sumqx.div(sumq2);
        self.scale = V::select(better, scale, self.scale);
        self.score = V::select(better, scale.mul(sumqx), self.score);
        self.first = V::select(better, V::splat(at.0 as f32), self.first);
        self.second = V::select(better, V::splat(at.1 as f32), self.second);
        self.shifts = V::select(better, V::splat(shifts as f32), self.shifts);
    }
}

/// `reference::iq1::split_alike`. The middle levels of the two shifts differ in their sign only, so one product serves both.
#[inline(always)]
fn split_alike<V: Picks>(groups: &Groups<V, 32>) -> Splits<V> {
    let [sumx, sumw] = groups.running_sums::<33>(0..32);
    let mut levels = [[V::splat(0.0); 3]; 2];
    for (levels, values) in levels.iter_mut().zip(&LEVELS) {
        for (level, &value) in levels.iter_mut().zip(values) {
            *level = V::splat(value);
        }
    }
    // Sums of the last run, for each second boundary: by shift, with the values and squared.
    let mut last = [[V::splat(0.0); 4]; 33];
    for (last, (x, w)) in last.iter_mut().zip(sumx.iter().zip(&sumw)) {
        for (s, levels) in levels.iter().enumerate() {
            last[s] = sumx[32].sub(*x).mul(levels[2]);
            last[2 + s] = sumw[32].sub(*w).mul(levels[2]).mul(levels[2]);
        }
    }
    let mut best = Splits::none();
    for i1 in 0..=32 {
        let first = [sumx[i1].mul(levels[0][0]), sumx[i1].mul(levels[1][0])];
        let square = [sumw[i1].mul(levels[0][0]).mul(levels[0][0]), sumw[i1].mul(levels[1][0]).mul(levels[1][0])];
        for i2 in i1..=32 {
            let middle = sumx[i2].sub(sumx[i1]).mul(levels[0][1]);
            let middle2 = sumw[i2].sub(sumw[i1]).mul(levels[0][1]).mul(levels[0][1]);
            let qx = [first[0].add(middle).add(last[i2][0]), first[1].sub(middle).add(last[i2][1])];
            let q2 = [square[0].add(middle2).add(last[i2][2]), square[1].add(middle2).add(last[i2][3])];
            if V::bits(V::or(best.may_improve(qx[0], q2[0]), best.may_improve(qx[1], q2[1]))) != 0 {
                best.improve(qx[0], q2[0], (i1, i2), 0);
                best.improve(qx[1], q2[1], (i1, i2), 1);
            }
        }
    }
    best
}

/// `reference::iq1::split_halves`.
#[inline(always)]
fn split_halves<V: Picks>(groups: &Groups<V, 16>) -> Splits<V> {
    let zero = V::splat(0.0);
    let halves = [groups.running_sums::<17>(0..8), groups.running_sums::<17>(8..16)];
    // By shift and half: the sums of all values at the top level, and what each boundary adds to the squares.
    let mut top = [zero; 4];
    let (mut lower, mut upper) = ([[zero; 4]; 17], [[zero; 4]; 17]);
    for s in 0..2 {
        let v = LEVELS[s];
        let steps = [V::splat(v[0] * v[0] - v[1] * v[1]), V::splat(v[1] * v[1] - v[2] * v[2])];
        for h in 0..2 {
            let [px, pw] = &halves[h];
            top[2 * s + h] = px[16].mul(V::splat(v[2]));
            let squares = pw[16].mul(V::splat(v[2])).mul(V::splat(v[2]));
            for i in 0..=16 {
                lower[i][2 * s + h] = squares.add(pw[i].mul(steps[0]));
                upper[i][2 * s + h] = pw[i].mul(steps[1]);
            }
        }
    }
    let mut best = Splits::none();
    for i1 in 0..=16 {
        for i2 in i1..=16 {
            let (mut qx, mut q2) = ([zero; 4], [zero; 4]);
            for h in 0..2 {
                let sum = halves[h][0][i1].add(halves[h][0][i2]);
                for s in 0..2 {
                    qx[2 * s + h] = top[2 * s + h].sub(sum);
                    q2[2 * s + h] = lower[i1][2 * s + h].add(upper[i2][2 * s + h]);
                }
            }
            let (mut sumqx, mut sumq2) = ([zero; 4], [zero; 4]);
            let mut improves = zero.lt(zero);
            for shifts in 0..4 {
                let (a, b) = (shifts & 2, 2 * (shifts & 1) + 1);
                (sumqx[shifts], sumq2[shifts]) = (qx[a].add(qx[b]), q2[a].add(q2[b]));
                improves = V::or(improves, best.may_improve(sumqx[shifts], sumq2[shifts]));
            }
            if V::bits(improves) != 0 {
                for shifts in 0..4 {
                    best.improve(sumqx[shifts], sumq2[shifts], (i1, i2), shifts);
                }
            }
        }
    }
    best
}
