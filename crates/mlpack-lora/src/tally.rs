//! How much each tensor changes: the norm of the difference over the norm of the base.

use crate::Overlay;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Independent sums over a row, so that additions need not wait for each other.
const LANES: usize = 4;

/// Sums over the rows of every target. Rows are added in their order, whichever worker is first, so the sums do not
/// depend on slabs and threads.
#[derive(Debug, Default)]
pub struct ChangeTally {
    targets: Vec<Mutex<Sums>>,
}

#[derive(Debug, Default)]
struct Sums {
    done: RowSums,
    next: u64,
    waiting: BTreeMap<u64, RowSums>,
}

/// Sums of squares over one row or more.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowSums {
    changed: f64,
    base: f64,
}

/// How much one tensor changes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TensorChange {
    /// The Euclidean norm of what was added.
    pub change: f64,
    /// That of the base tensor.
    pub base: f64,
}

impl TensorChange {
    /// The first over the second; infinite for a change of a tensor that was zero.
    pub fn relative(&self) -> f64 {
        if self.change == 0.0 { 0.0 } else { self.change / self.base }
    }
}

impl ChangeTally {
    /// Nothing is summed yet.
    pub fn new(overlay: &Overlay) -> ChangeTally {
        ChangeTally { targets: overlay.targets().iter().map(|_| Mutex::default()).collect() }
    }

    /// Adds rows.
    pub(crate) fn add(&self, target: usize, rows: &[u64], all: &[RowSums]) {
        let mut sums = self.targets[target].lock().expect("no thread panics holding the lock");
        for (row, of_row) in rows.iter().zip(all) {
            // Rows of a convolution can be cut by a slab, and then come twice.
            if *row >= sums.next {
                sums.waiting.insert(*row, *of_row);
            }
        }
        sums.drain();
    }

    /// The changes, in the order of [`Overlay::targets`].
    pub fn finish(&self) -> Vec<TensorChange> {
        let finish = |sums: &Mutex<Sums>| {
            let mut sums = sums.lock().expect("no thread panics holding the lock");
            let waiting = std::mem::take(&mut sums.waiting);
            waiting.into_values().for_each(|row| sums.done.add(row));
            TensorChange { change: sums.done.changed.sqrt(), base: sums.done.base.sqrt() }
        };
        self.targets.iter().map(finish).collect()
    }
}

impl Sums {
    fn drain(&mut self) {
        while let Some(row) = self.waiting.remove(&self.next) {
            self.done.add(row);
            self.next += 1;
        }
    }
}

impl RowSums {
    /// Those of one row: the merged values, and how far each is from the base's.
    pub(crate) fn of(values: &[f64], change: &[f64]) -> RowSums {
        let (mut changed, mut base) = ([0.0; LANES], [0.0; LANES]);
        let mut add = |values: &[f64; LANES], change: &[f64; LANES]| {
            for lane in 0..LANES {
                let before = values[lane] - change[lane];
                changed[lane] += change[lane] * change[lane];
                base[lane] += before * before;
            }
        };
        let (value_chunks, value_rest) = values.as_chunks::<LANES>();
        let (change_chunks, change_rest) = change.as_chunks::<LANES>();
        value_chunks.iter().zip(change_chunks).for_each(|(v, c)| add(v, c));
        let (mut v, mut c) = ([0.0; LANES], [0.0; LANES]);
        v[..value_rest.len()].copy_from_slice(value_rest);
        c[..change_rest.len()].copy_from_slice(change_rest);
        add(&v, &c);
        RowSums { changed: changed.iter().sum(), base: base.iter().sum() }
    }

    fn add(&mut self, other: RowSums) {
        self.changed += other.changed;
        self.base += other.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_the_order_of_rows() {
        let values: Vec<f64> = (0..35).map(|i| f64::from(i) * 0.1).collect();
        let change: Vec<f64> = (0..35).map(|i| f64::from(i % 5) * 0.01).collect();
        let tally = |order: &[u64]| {
            let tally = ChangeTally { targets: vec![Mutex::default()] };
            for row in order {
                let range = *row as usize * 7..(*row as usize + 1) * 7;
                tally.add(0, &[*row], &[RowSums::of(&values[range.clone()], &change[range])]);
            }
            tally.finish()[0]
        };
        let forward = tally(&[0, 1, 2, 3, 4]);
        assert_eq!(tally(&[4, 2, 0, 3, 1]), forward);
        let square = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!((forward.change - square(&change)).abs() < 1e-12);
    }
}
