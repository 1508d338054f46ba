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
    problems: Vec<WeightProblem>,
}

impl Weights {
    /// The tensors that are there.
    pub fn new(tensors: BTreeMap<String, Shape>) -> Weights {
        Weights { tensors, used: BTreeSet::new(), wide: BTreeSet::new(), problems: Vec::new() }
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

    /// Every problem, those of tensors that nothing took among them.
    pub fn finish(mut self) -> Result<(), Error> {
        let unused = self.tensors.keys().filter(|role| !self.used.contains(*role));
        self.problems.extend(unused.map(|role| WeightProblem::Unused { role: role.clone() }));
        if self.problems.is_empty() { Ok(()) } else { Err(Error::Weights { problems: self.problems }) }
    }
}
