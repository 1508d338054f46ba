//! Adapters laid over a base: which tensors change, and by what.

use crate::{Adapter, Error, Misfit, Pair, Unmatched};
use mlpack_safetensors::{Checkpoint, TensorInfo};
use mlpack_tensor::nearest;
use std::collections::BTreeMap;

/// One adapter's contribution to one base tensor: `scale * B @ A`.
#[derive(Debug)]
pub struct Change {
    /// The adapter, as an index into [`Overlay::adapters`].
    pub adapter: usize,
    /// The factors.
    pub pair: Pair,
    /// The adapter's weight times its scale for this module.
    pub scale: f64,
}

/// Adapters laid over a base checkpoint. Without adapters it changes nothing.
#[derive(Debug, Default)]
pub struct Overlay {
    adapters: Vec<(Adapter, f64)>,
    // By position of the base tensor in the checkpoint.
    changes: BTreeMap<usize, Vec<Change>>,
}

impl Overlay {
    /// Pairs every adapter tensor with a base tensor. Each adapter comes with its weight (1 for a plain merge).
    ///
    /// # Errors
    /// [`Error::Unmatched`] with every tensor that is not used; [`Error::Misfit`] with every shape that does not fit.
    pub fn new(adapters: Vec<(Adapter, f64)>, base: &Checkpoint) -> Result<Overlay, Error> {
        let mut changes: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
        for (i, (adapter, weight)) in adapters.iter().enumerate() {
            let mut unmatched: Vec<Unmatched> = adapter.unmatched().to_vec();
            let mut misfits = Vec::new();
            for pair in adapter.pairs() {
                let name = format!("{}.weight", pair.module);
                let Some(position) = base.position(&name) else {
                    unmatched.extend(no_base(pair, &name, base));
                    continue;
                };
                misfits.extend(check_shapes(adapter, pair, &base.tensors()[position]));
                let scale = weight * adapter.config().scale_of(&pair.module);
                changes.entry(position).or_default().push(Change { adapter: i, pair: pair.clone(), scale });
            }
            let path = adapter.weights().path().to_owned();
            if !unmatched.is_empty() {
                suggest(&mut unmatched, base);
                return Err(Error::Unmatched { path, total: adapter.weights().entries().len(), unmatched });
            }
            if !misfits.is_empty() {
                return Err(Error::Misfit { path, base: base.dir().to_owned(), misfits });
            }
        }
        Ok(Overlay { adapters, changes })
    }

    /// The adapters with their weights, in the order given.
    pub fn adapters(&self) -> &[(Adapter, f64)] {
        &self.adapters
    }

    /// Positions of the base tensors that change, in checkpoint order.
    pub fn changed(&self) -> impl Iterator<Item = usize> + '_ {
        self.changes.keys().copied()
    }

    /// What changes the base tensor at `position`; empty when nothing does.
    pub fn changes(&self, position: usize) -> &[Change] {
        self.changes.get(&position).map_or(&[], Vec::as_slice)
    }
}

fn no_base<'a>(pair: &'a Pair, wanted: &'a str, base: &'a Checkpoint) -> impl Iterator<Item = Unmatched> + 'a {
    let nearest = nearest(wanted, base.tensors().iter().map(|t| t.name.as_str()), 1).first().map(|n| (*n).to_owned());
    [&pair.a, &pair.b].into_iter().map(move |entry| Unmatched::NoBase {
        key: entry.name.clone(),
        wanted: wanted.to_owned(),
        nearest: nearest.clone(),
    })
}

/// Names the nearest base tensor for keys of unknown form, which the adapter alone could not.
fn suggest(unmatched: &mut [Unmatched], base: &Checkpoint) {
    for u in unmatched {
        if let Unmatched::UnknownForm { key, nearest: found } = u {
            *found = nearest(key, base.tensors().iter().map(|t| t.name.as_str()), 1).first().map(|n| (*n).to_owned());
        }
    }
}

/// A must be `[r, in]`, B `[out, r]`, the base `[out, in]`, r what the config says; all three in float dtypes.
fn check_shapes(adapter: &Adapter, pair: &Pair, base: &TensorInfo) -> Vec<Misfit> {
    let mut misfits = Vec::new();
    for (key, dtype) in [(&pair.a.name, pair.a.dtype), (&pair.b.name, pair.b.dtype), (&base.name, base.dtype)] {
        if !dtype.is_float() {
            misfits.push(Misfit {
                key: key.clone(),
                base: base.name.clone(),
                expected: "F32, F16, BF16 or F64".to_owned(),
                found: dtype.to_string(),
            });
        }
    }
    let rank = adapter.config().rank_of(&pair.module);
    let &[rows, cols] = base.shape.dims() else {
        let expected = "a base tensor with 2 dimensions (a linear layer)".to_owned();
        misfits.push(Misfit::shape(&pair.a.name, &base.name, expected, &base.shape));
        return misfits;
    };
    if pair.a.shape.dims() != [rank, cols] {
        let expected = format!("[{rank}, {cols}] (r {rank}; the base is {})", base.shape);
        misfits.push(Misfit::shape(&pair.a.name, &base.name, expected, &pair.a.shape));
    }
    if pair.b.shape.dims() != [rows, rank] {
        let expected = format!("[{rows}, {rank}] (r {rank}; the base is {})", base.shape);
        misfits.push(Misfit::shape(&pair.b.name, &base.name, expected, &pair.b.shape));
    }
    misfits
}
