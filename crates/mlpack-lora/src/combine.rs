//! Combining the deltas of several adapters other than by their weighted sum.
//!
//! ```text
//!   sum               Σ w·δ                                           the default, and exact
//!   magnitude-prune   Σ w·keep(δ)                                     keep: the share of a tensor with the largest magnitudes
//!   ties              Σ w·agree(keep(δ)) / how many agree             agree: with the sign of Σ keep(δ)
//!   dare              Σ w·drop(δ) / density                           drop: each element by a coin of its own
//! ```
//! δ is what an adapter alone, with weight 1, adds to a tensor of the checkpoint: the full matrix, in float64. That is other
//! than PEFT's `add_weighted_adapter`, which combines the factors A and B, whose products then have terms that no adapter
//! has. The formulas are those of `peft/utils/merge_utils.py` (PEFT 0.21); coins are SplitMix64 of seed, adapter, tensor and
//! element, so they are the same in every run and whatever the slabs.

use crate::Error;
use std::sync::{Mutex, OnceLock};

/// How deltas of several adapters become one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Combine {
    /// Their weighted sum.
    #[default]
    Sum,
    /// TIES: the largest, then those that agree with the majority's sign.
    Ties {
        /// The share of a tensor's elements that stays.
        density: f64,
    },
    /// DARE: some at random, the others scaled up.
    Dare {
        /// The probability that an element stays.
        density: f64,
        /// Where the coins begin.
        seed: u64,
    },
    /// The largest.
    MagnitudePrune {
        /// The share of a tensor's elements that stays.
        density: f64,
    },
}

impl Combine {
    /// What an option asks for.
    ///
    /// # Errors
    /// [`Error::Combine`] for another name, and for a density that is not above 0 and at most 1.
    pub fn parse(name: &str, density: f64, seed: u64) -> Result<Combine, Error> {
        if !(density > 0.0 && density <= 1.0) {
            return Err(Error::Combine { name: name.to_owned(), density });
        }
        Ok(match name {
            "sum" => Combine::Sum,
            "ties" => Combine::Ties { density },
            "dare" => Combine::Dare { density, seed },
            "magnitude-prune" => Combine::MagnitudePrune { density },
            _ => return Err(Error::Combine { name: name.to_owned(), density }),
        })
    }

    /// The number of elements of a tensor that stay because of their magnitude; `None` where that does not decide.
    pub(crate) fn kept(self, elements: u64) -> Option<u64> {
        match self {
            Combine::Ties { density } | Combine::MagnitudePrune { density } => {
                (density < 1.0).then_some((density * elements as f64) as u64)
            }
            Combine::Sum | Combine::Dare { .. } => None,
        }
    }

    /// Combines the deltas of one element, which are in the order of adapters, each with its weight. `coin` says for DARE
    /// whether an adapter's stays.
    pub(crate) fn element(self, deltas: &[(f64, f64)], coin: impl Fn(usize) -> bool) -> f64 {
        match self {
            Combine::Sum | Combine::MagnitudePrune { .. } => deltas.iter().map(|(delta, weight)| weight * delta).sum(),
            Combine::Dare { density, .. } => {
                let kept = deltas.iter().enumerate().filter(|(i, _)| coin(*i));
                kept.map(|(_, (delta, weight))| weight * (delta / density)).sum()
            }
            Combine::Ties { .. } => {
                let total: f64 = deltas.iter().map(|(delta, _)| delta).sum();
                let majority = if total >= 0.0 { 1.0 } else { -1.0 };
                let agree = deltas.iter().filter(|(delta, _)| *delta != 0.0 && delta.signum() == majority);
                let (sum, count) = agree.fold((0.0, 0u32), |(sum, n), (delta, weight)| (sum + weight * delta, n + 1));
                sum / f64::from(count.max(1))
            }
        }
    }
}

/// Coins for the elements of one tensor.
pub(crate) struct Coins {
    seed: u64,
    density: f64,
}

impl Coins {
    /// The coins of an adapter for a tensor.
    pub(crate) fn new(seed: u64, density: f64, adapter: usize, tensor: &str) -> Coins {
        let start = split_mix(seed ^ split_mix(adapter as u64 + 1));
        let named = tensor.bytes().fold(start, |hash, byte| split_mix(hash ^ u64::from(byte)));
        Coins { seed: named, density }
    }

    /// Whether an element stays.
    pub(crate) fn keeps(&self, element: u64) -> bool {
        // 53 bits, as many as float64 has below 1.
        (split_mix(self.seed ^ split_mix(element)) >> 11) as f64 / (1u64 << 53) as f64 <= self.density
    }
}

fn split_mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The least magnitudes that stay, for each target and adapter, once they are known.
#[derive(Debug, Default)]
pub(crate) struct Thresholds {
    by_target: Vec<Vec<OnceLock<f64>>>,
    one_at_a_time: Mutex<()>,
}

impl Thresholds {
    pub(crate) fn new(targets: usize, adapters: usize) -> Thresholds {
        let row = || (0..adapters).map(|_| OnceLock::new()).collect();
        Thresholds { by_target: (0..targets).map(|_| row()).collect(), one_at_a_time: Mutex::default() }
    }

    /// The threshold of an adapter for a target. `pass` hands all of the adapter's deltas to a visitor, in any order, as
    /// often as it is called.
    pub(crate) fn threshold<E>(
        &self,
        target: usize,
        adapter: usize,
        kept: u64,
        pass: impl FnMut(&mut dyn FnMut(&[f64])) -> Result<(), E>,
    ) -> Result<f64, E> {
        let slot = &self.by_target[target][adapter];
        if let Some(found) = slot.get() {
            return Ok(*found);
        }
        let _guard = self.one_at_a_time.lock().expect("no thread panics holding the lock");
        if let Some(found) = slot.get() {
            return Ok(*found);
        }
        let found = nth_largest_magnitude(kept, pass)?;
        Ok(*slot.get_or_init(|| found))
    }
}

/// Values that are sorted at once when so few are left.
const SORTED: u64 = 1 << 18;

/// The `n`th largest magnitude of values that are handed out again and again: by the leading bits, sixteen at a time, until
/// those that share them are few enough to sort. Infinite for `n` of 0.
fn nth_largest_magnitude<E>(n: u64, mut pass: impl FnMut(&mut dyn FnMut(&[f64])) -> Result<(), E>) -> Result<f64, E> {
    if n == 0 {
        return Ok(f64::INFINITY);
    }
    // Magnitudes are ordered as their bits are.
    let bits = |v: &f64| v.to_bits() & (u64::MAX >> 1);
    let (mut prefix, mut known, mut left) = (0u64, 0u32, n);
    loop {
        let shift = 48 - known;
        let mut counts = vec![0u64; 1 << 16];
        let shares = |b: u64| known == 0 || b >> (64 - known) == prefix;
        pass(&mut |values| {
            for b in values.iter().map(bits).filter(|b| shares(*b)) {
                counts[(b >> shift & 0xffff) as usize] += 1;
            }
        })?;
        let Some(bucket) = (0..counts.len()).rev().find(|i| {
            if counts[*i] >= left {
                return true;
            }
            left -= counts[*i];
            false
        }) else {
            // Fewer values than are asked for: all of them stay.
            return Ok(0.0);
        };
        prefix = prefix << 16 | bucket as u64;
        known += 16;
        if known == 64 {
            return Ok(f64::from_bits(prefix));
        }
        if counts[bucket] <= SORTED {
            let mut together = Vec::with_capacity(counts[bucket] as usize);
            pass(&mut |values| together.extend(values.iter().map(bits).filter(|b| b >> (64 - known) == prefix)))?;
            together.sort_unstable_by(|a, b| b.cmp(a));
            return Ok(f64::from_bits(together[left as usize - 1]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_largest_is_that_of_a_sort() {
        let values: Vec<f64> = (0..400_000u64).map(|i| (split_mix(i) as i64 >> 40) as f64 * 1e-6).collect();
        let mut sorted: Vec<f64> = values.iter().map(|v| v.abs()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for n in [1, 2, 1000, 200_000, 399_999, 400_000] {
            let found = nth_largest_magnitude(n, |visit| {
                values.chunks(1000).for_each(visit);
                Ok::<(), ()>(())
            });
            assert_eq!(found, Ok(sorted[n as usize - 1]), "{n}");
        }
        let same = nth_largest_magnitude(3, |visit| {
            visit(&[1.0; 300_000]);
            Ok::<(), ()>(())
        });
        assert_eq!(same, Ok(1.0), "equal values that never become few");
    }

    #[test]
    fn ties_takes_the_mean_of_those_that_agree() {
        let ties = Combine::Ties { density: 0.5 };
        let never = |_| unreachable!("only DARE tosses coins");
        // The sum of the deltas is positive, so the second is left out.
        assert_eq!(ties.element(&[(3.0, 1.0), (-1.0, 5.0), (1.0, 2.0)], never), (3.0 + 2.0) / 2.0);
        assert_eq!(ties.element(&[(0.0, 1.0), (0.0, 1.0)], never), 0.0);
    }

    #[test]
    fn coins_fall_as_often_as_the_density_says_and_apart_for_each_tensor() {
        let coins = |adapter, tensor| -> Vec<bool> {
            let coins = Coins::new(7, 0.3, adapter, tensor);
            (0..100_000).map(|i| coins.keeps(i)).collect()
        };
        let first = coins(0, "a");
        let heads = first.iter().filter(|kept| **kept).count();
        assert!((29_000..31_000).contains(&heads), "{heads}");
        for other in [coins(1, "a"), coins(0, "b")] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            // 0.3² + 0.7² of them by chance.
            assert!((57_000..59_000).contains(&same), "{same}");
        }
        assert_eq!(first, coins(0, "a"));
    }
}
