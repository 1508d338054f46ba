//! The values of a metric over the steps of a run, as a record keeps them.

use super::record::RunRecord;
use std::collections::BTreeMap;

/// Most values kept of one curve; of more, this many at even distances, the first and the last among them.
const MAX_KEPT: usize = 1000;
/// Most curves kept.
const MAX_CURVES: usize = 64;
/// Metrics that begin so are about the machine, not the model.
const OF_THE_MACHINE: &str = "system/";

/// Step and value, both as text.
pub type Curve = Vec<(String, String)>;

/// Logged values by metric, in the order of their steps.
pub(super) type Logged = BTreeMap<String, Vec<(i64, String)>>;

/// Keeps curves in a record: metrics with more than one value.
pub(super) fn keep(record: &mut RunRecord, logged: Logged) {
    let curves = logged.into_iter().filter(|(key, points)| points.len() > 1 && !key.starts_with(OF_THE_MACHINE));
    for (key, points) in curves.take(MAX_CURVES) {
        if points.len() > MAX_KEPT {
            record.thinned.insert(key.clone(), points.len().to_string());
        }
        let kept = thin(points).into_iter().map(|(step, value)| (step.to_string(), value)).collect();
        record.curves.insert(key, kept);
    }
}

fn thin(points: Vec<(i64, String)>) -> Vec<(i64, String)> {
    let n = points.len();
    if n <= MAX_KEPT {
        return points;
    }
    let mut next = 0;
    let mut kept = Vec::with_capacity(MAX_KEPT);
    for (i, point) in points.into_iter().enumerate() {
        if i == next * (n - 1) / (MAX_KEPT - 1) {
            kept.push(point);
            next += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_ends_and_even_distances() {
        for n in [2, 999, 1000, 1001, 1999, 50_000] {
            let kept = thin((0..n).map(|i| (i as i64, i.to_string())).collect());
            assert_eq!(kept.len(), n.min(MAX_KEPT), "{n}");
            assert_eq!((kept[0].0, kept.last().unwrap().0), (0, n as i64 - 1), "{n}");
            assert!(kept.windows(2).all(|w| w[0].0 < w[1].0), "{n}");
        }
    }
}
