//! Adapters laid over a base: which tensors change, and by what.

use crate::build::Builder;
use crate::combine::Thresholds;
use crate::target::Target;
use crate::{Adapter, Combine, Error};
use mlpack_safetensors::Checkpoint;
use mlpack_tensor::Dtype;
use std::collections::BTreeMap;

/// What is asked of an overlay.
#[derive(Clone, Debug, Default)]
pub struct OverlayOptions {
    /// Adapters, or parts of them, may change nothing.
    pub allow_empty: bool,
    /// How deltas of several adapters become one.
    pub combine: Combine,
}

/// Adapters laid over a base checkpoint. Without adapters it changes nothing.
#[derive(Debug, Default)]
pub struct Overlay {
    adapters: Vec<(Adapter, f64)>,
    targets: Vec<Target>,
    // By position of the base tensor in the checkpoint.
    by_position: BTreeMap<usize, usize>,
    tied: Option<bool>,
    notes: Vec<String>,
    combine: Combine,
    thresholds: Thresholds,
}

impl Overlay {
    /// Finds the place of every adapter tensor. Each adapter comes with its weight (1 for a plain merge).
    ///
    /// # Errors
    /// Every problem of every adapter: tensors that are not used ([`Error::Unmatched`]), that do not fit
    /// ([`Error::Misfit`]), that change nothing ([`Error::Unchanged`]); several together as [`Error::Several`].
    pub fn new(adapters: Vec<(Adapter, f64)>, base: &Checkpoint, options: &OverlayOptions) -> Result<Overlay, Error> {
        if adapters.is_empty() {
            return Ok(Overlay::default());
        }
        let mut builder = Builder::new(base)?;
        for (i, (adapter, weight)) in adapters.iter().enumerate() {
            builder.add(i, adapter, *weight, options);
        }
        let built = builder.finish(&adapters, options)?;
        let positions = built.targets.iter().enumerate();
        let by_position = positions.filter(|(_, t)| !t.is_new).filter_map(|(i, t)| Some((t.target.base?, i))).collect();
        let targets: Vec<Target> = built.targets.into_iter().map(|t| t.target).collect();
        let thresholds = Thresholds::new(targets.len(), adapters.len());
        let (tied, mut notes, combine) = (built.tied, built.notes, options.combine);
        let fp8 = targets.iter().filter(|target| matches!(target.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)).count();
        if fp8 > 0 {
            notes.push(format!(
                "{fp8} of the tensors that the adapters change are FP8: sums are rounded to FP8 again with the \
                 base's scales, and cut where they leave its range"
            ));
        }
        Ok(Overlay { adapters, targets, by_position, tied, notes, combine, thresholds })
    }

    /// The adapters with their weights, in the order given.
    pub fn adapters(&self) -> &[(Adapter, f64)] {
        &self.adapters
    }

    /// The tensors that change, in checkpoint order, then those that are new.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// What happens to the base tensor at a position of the checkpoint, as an index into [`Overlay::targets`].
    pub fn target_of(&self, position: usize) -> Option<usize> {
        self.by_position.get(&position).copied()
    }

    /// The targets that the base has no tensor of that name for.
    pub fn new_targets(&self) -> impl Iterator<Item = usize> + '_ {
        let known: Vec<usize> = self.by_position.values().copied().collect();
        (0..self.targets.len()).filter(move |i| !known.contains(i))
    }

    /// Bytes that merging any rows of a target needs besides its slab: right factors in float64.
    pub fn fixed_byte_len(&self, target: usize) -> u64 {
        self.targets[target].panel_byte_len()
    }

    /// Bytes that merging needs for each element of a slab, besides value, change and product.
    pub fn bytes_per_element(&self) -> u64 {
        if self.combine == Combine::Sum { 0 } else { 8 * self.adapters.len() as u64 }
    }

    /// How deltas of several adapters become one.
    pub fn combine(&self) -> Combine {
        self.combine
    }

    pub(crate) fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// What `tie_word_embeddings` has to be in the result's config, where the adapters change it.
    pub fn tied(&self) -> Option<bool> {
        self.tied
    }

    /// What a person should know about how the adapters were understood.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}
