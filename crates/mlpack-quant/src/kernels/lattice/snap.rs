//! Cells that are snapped to the grid for one scale: lanes are neighbours.

use super::Picks;

/// Snapped cells, eight at a time: the best neighbours that each lane has seen, until one of them is chosen for all eight
/// cells at once.
pub(super) struct Queue<'a> {
    errors: [[f32; 8]; 8],
    /// Which chunk of the list the best neighbour of a lane is in.
    chunks: [[f32; 8]; 8],
    lists: [&'a [[u16; 8]]; 8],
    /// Where the packed codes go.
    targets: [(usize, usize); 8],
    len: usize,
}

impl<'a> Queue<'a> {
    #[inline(always)]
    pub fn new() -> Self {
        Queue { errors: [[0.0; 8]; 8], chunks: [[0.0; 8]; 8], lists: [&[]; 8], targets: [(0, 0); 8], len: 0 }
    }

    /// Weighs the neighbours of a cell, `values` being what the levels stand for. Returns whether the queue is full.
    #[inline(always)]
    pub fn push<V: Picks, const N: usize>(
        &mut self,
        list: &'a [[u16; 8]],
        x: &[f32; N],
        weights: &[f32; N],
        values: V,
        target: (usize, usize),
    ) -> bool {
        let (errors, chunks) = weigh::<V, N>(list, x, weights, values);
        let at = self.len % 8;
        errors.store(&mut self.errors[at]);
        chunks.store(&mut self.chunks[at]);
        (self.lists[at], self.targets[at]) = (list, target);
        self.len = at + 1;
        self.len == 8
    }

    /// Chooses the neighbours of all cells in the queue: the smallest error, and the first in the list of equal ones.
    #[inline(always)]
    pub fn drain<V: Picks>(&mut self, snapped: &mut [[u16; 8]; 8]) {
        let places = first_of_smallest::<V>(&self.errors, &self.chunks);
        for i in 0..self.len {
            let (k, c) = self.targets[i];
            snapped[k][c] = self.lists[i].as_flattened()[places[i] as usize];
        }
        self.len = 0;
    }
}

/// In each lane, the smallest error of the neighbours in that lane, and the first chunk that it is in. `values` are what the
/// levels stand for.
#[inline(always)]
fn weigh<V: Picks, const N: usize>(list: &[[u16; 8]], x: &[f32; N], weights: &[f32; N], values: V) -> (V, V) {
    // A cell has no more than eight errors at each place: they are looked up.
    let mut errors = [V::splat(0.0); N];
    for (i, error) in errors.iter_mut().enumerate() {
        let diff = values.sub(V::splat(x[i]));
        *error = V::splat(weights[i]).mul(diff).mul(diff);
    }
    let (mut best, mut chunk) = (V::splat(f32::MAX), V::splat(0.0));
    let mut number = V::splat(0.0);
    for packed in list {
        let mut codes = V::codes(packed);
        let mut sum = errors[0].pick::<N>(codes);
        for error in &errors[1..] {
            codes = V::next::<N>(codes);
            sum = sum.add(error.pick::<N>(codes));
        }
        let better = sum.lt(best);
        best = V::select(better, sum, best);
        chunk = V::select(better, number, chunk);
        number = number.add(V::splat(1.0));
    }
    (best, chunk)
}

/// For each row of errors the place of the smallest: eight times its chunk, plus its lane; the first of equal ones.
#[inline(always)]
fn first_of_smallest<V: Picks>(errors: &[[f32; 8]; 8], chunks: &[[f32; 8]; 8]) -> [u32; 8] {
    let (errors, chunks) = (V::tile(errors.as_flattened(), 8, 0), V::tile(chunks.as_flattened(), 8, 0));
    let (mut best, mut chunk, mut lane) = (errors[0], chunks[0], V::splat(0.0));
    for i in 1..8 {
        let earlier = V::and(errors[i].eq(best), chunks[i].lt(chunk));
        let better = V::or(errors[i].lt(best), earlier);
        best = V::select(better, errors[i], best);
        chunk = V::select(better, chunks[i], chunk);
        lane = V::select(better, V::splat(i as f32), lane);
    }
    let mut places = [0; 8];
    chunk.mul(V::splat(8.0)).add(lane).integers(&mut places);
    places
}
