//! What a checkpoint has to offer, and how a recipe takes it: every tensor once, in the shape that the graph needs.

use crate::error::{Error, WeightProblem};
use mlpack_tensor::Shape;
use std::collections::{BTreeMap, BTreeSet};

/// The tensors of a checkpoint by role: the names that a description gives them.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Shape>,
    used: BTreeSet<String>,
    wide: BTreeSet<String>,
    joined: BTreeMap<String, Vec<String>>,
    problems: Vec<WeightProblem>,
}

impl Weights {
    /// The tensors that are there.
    pub fn new(tensors: BTreeMap<String, Shape>) -> Weights {
        Weights { tensors, ..Weights::default() }
    }

    /// Makes one linear map of several with the same inputs: a matrix of all their rows, and a vector where all of them have one. The
    /// graph takes it like one that is stored. `parts` have their numbers of rows; where a tensor is not what it should be, nothing
    /// is joined, so that what is missing is missed under its own name.
    pub fn join(&mut self, role: &str, parts: &[(&str, u64)], columns: u64) -> bool {
        let is = |tensor: &str, shape: &[u64]| self.tensors.get(tensor).is_some_and(|found| found.dims() == shape);
        let matrices = parts.iter().all(|(part, rows)| is(&format!("{part}.weight"), &[*rows, columns]));
        let biased = parts.iter().any(|(part, _)| self.has(&format!("{part}.bias")));
        let biases = parts.iter().all(|(part, rows)| is(&format!("{part}.bias"), &[*rows]));
        if !matrices || biased != biases || self.has(&format!("{role}.weight")) {
            return false;
        }
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        for (suffix, shape) in [("weight", &[rows, columns][..]), ("bias", &[rows])] {
            if suffix == "bias" && !biased {
                continue;
            }
            let tensors: Vec<String> = parts.iter().map(|(part, _)| format!("{part}.{suffix}")).collect();
            self.used.extend(tensors.iter().cloned());
            self.joined.insert(format!("{role}.{suffix}"), tensors);
            self.tensors.insert(format!("{role}.{suffix}"), Shape::from(shape));
        }
        true
    }

    /// Keeps a tensor in float32, and what is computed with it, where the graph has a narrower type.
    pub fn widen(&mut self, role: &str) {
        self.wide.insert(role.to_owned());
    }

    /// Whether it is kept in float32.
    pub fn is_wide(&self, role: &str) -> bool {
        self.wide.contains(role)
    }

    /// Whether there is such a tensor.
    pub fn has(&self, role: &str) -> bool {
        self.tensors.contains_key(role)
    }

    /// The rows of a matrix that is there.
    pub fn rows(&self, role: &str) -> Option<u64> {
        self.tensors.get(role).filter(|shape| shape.rank() == 2).map(|shape| shape.dims()[0])
    }

    /// Takes a tensor of a shape; what is not there or has another shape becomes a problem.
    pub fn take(&mut self, role: &str, shape: &[u64]) {
        self.used.insert(role.to_owned());
        match self.tensors.get(role) {
            None => self.problems.push(WeightProblem::Missing { role: role.to_owned(), shape: shape.into() }),
            Some(found) if found.dims() != shape => self.problems.push(WeightProblem::Shape {
                role: role.to_owned(),
                expected: shape.into(),
                found: found.clone(),
            }),
            Some(_) => {}
        }
    }

    /// Leaves a tensor out on purpose.
    pub fn leave(&mut self, role: &str) {
        self.used.insert(role.to_owned());
    }

    /// What was joined, each from what; or every problem, those of tensors that nothing took among them.
    pub fn finish(mut self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let unused = self.tensors.keys().filter(|role| !self.used.contains(*role));
        self.problems.extend(unused.map(|role| WeightProblem::Unused { role: role.clone() }));
        if self.problems.is_empty() { Ok(self.joined) } else { Err(Error::Weights { problems: self.problems }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(tensors: &[(&str, &[u64])]) -> Weights {
        Weights::new(tensors.iter().map(|(name, shape)| ((*name).to_owned(), Shape::from(*shape))).collect())
    }

    fn join(weights: &mut Weights) -> bool {
        weights.join("qk", &[("q", 6), ("k", 2)], 4)
    }

    #[test]
    fn maps_with_the_same_inputs_become_one() {
        let mut joined = weights(&[("q.weight", &[6, 4]), ("k.weight", &[2, 4]), ("q.bias", &[6]), ("k.bias", &[2])]);
        assert!(join(&mut joined));
        joined.take("qk.weight", &[8, 4]);
        joined.take("qk.bias", &[8]);
        let parts = joined.finish().unwrap();
        assert_eq!(parts["qk.weight"], ["q.weight", "k.weight"]);
        assert_eq!(parts["qk.bias"], ["q.bias", "k.bias"]);
    }

    #[test]
    fn what_does_not_fit_together_stays_apart() {
        for tensors in [
            &[("q.weight", &[6, 4][..])][..],
            &[("q.weight", &[6, 4]), ("k.weight", &[2, 5])],
            &[("q.weight", &[6, 4]), ("k.weight", &[3, 4])],
            &[("q.weight", &[6, 4]), ("k.weight", &[2, 4]), ("k.bias", &[2])],
            &[("q.weight", &[6, 4]), ("k.weight", &[2, 4]), ("qk.weight", &[8, 4])],
        ] {
            let mut apart = weights(tensors);
            assert!(!join(&mut apart), "{tensors:?}");
            let Err(Error::Weights { problems }) = apart.finish() else { panic!("nothing was taken: {tensors:?}") };
            assert_eq!(problems.len(), tensors.len());
        }
    }
}
