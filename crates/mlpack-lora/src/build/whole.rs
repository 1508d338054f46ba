//! What an adapter brings whole: parameters that were trained as they are, saved embeddings, rows of trained tokens.

use super::{Builder, Described, Work};
use crate::key::Role;
use crate::matrix::Matrix;
use crate::names::Found;
use crate::target::{Form, Part, Rect, Replaced, Target, matrix_dims};
use crate::{Adapter, Combine, Error, Misfit, OverlayOptions, Unmatched};
use mlpack_tensor::{Dtype, Shape};

/// A parameter that an adapter brings whole.
pub(super) struct Whole {
    pub adapter: usize,
    pub weight: f64,
    pub key: String,
    pub shape: Shape,
    pub values: Matrix,
}

impl Builder<'_> {
    /// A parameter that was trained whole, or a copy of the embedding that was saved with the adapter.
    pub(super) fn whole(&mut self, work: &mut Work<'_>, name: &str, tensor: usize) {
        let shape = work.shape(tensor).clone();
        let position = match self.names.find(name) {
            Found::One(position) => position,
            Found::Several(several) => {
                let candidates = several.iter().map(|i| self.base.tensors()[*i].name.clone()).collect();
                let key = work.name(tensor).to_owned();
                return work.unmatched.push(Unmatched::Ambiguous { key, wanted: name.to_owned(), candidates });
            }
            Found::Nothing if self.is_tied_copy(work, name, tensor) => return,
            Found::Nothing => match self.own_head(name).or_else(|| self.new_module(work, name, &shape)) {
                Some(position) => position,
                None if name.contains("lora") || work.config().modules_to_save.is_empty() => {
                    let key = work.name(tensor).to_owned();
                    return work.unmatched.push(Unmatched::UnknownForm { nearest: self.nearest(&key), key });
                }
                None => return self.no_base(work, name, &[tensor]),
            },
        };
        let target = self.described(position);
        let resizes =
            [self.names.embedding(), self.names.head()].contains(&Some(position)) || target.base != Some(position);
        let same_tail = shape.rank() == target.shape.rank() && shape.dims().get(1..) == target.shape.dims().get(1..);
        if shape != target.shape && !(resizes && same_tail) {
            return work.misfit(tensor, Some(&target.name), format!("{} (the base)", target.shape));
        }
        let whole = Whole {
            adapter: work.index,
            weight: work.weight,
            key: work.name(tensor).to_owned(),
            shape,
            values: work.matrix(tensor),
        };
        self.drafts.entry(position).or_default().whole.push(whole);
    }

    /// Whether this is the head of a tied model, saved beside the embedding that it is.
    fn is_tied_copy(&self, work: &Work<'_>, name: &str, tensor: usize) -> bool {
        if crate::names::canonical(name) != "lm_head.weight" {
            return false;
        }
        let Some(embedding) = self.names.embedding().map(|position| self.described(position)) else { return false };
        let mut modules = work.adapter.modules().iter();
        let found = modules.find_map(|((module, _), roles)| {
            let same = crate::names::canonical(module) == crate::names::canonical(&embedding.name);
            roles.get(&Role::Whole).filter(|_| same)
        });
        let alone = !work.adapter.modules().iter().any(|((module, _), roles)| {
            crate::names::canonical(module) == "lm_head" && !roles.contains_key(&Role::Whole)
        });
        let same = |other: &usize| work.adapter.bytes(*other) == work.adapter.bytes(tensor);
        alone && found.is_some_and(same)
    }

    /// A module that the config says was trained whole and that the base does not have, such as a classifier.
    fn new_module(&mut self, work: &Work<'_>, name: &str, shape: &Shape) -> Option<usize> {
        let (module, _) = name.rsplit_once('.')?;
        let saved = &work.config().modules_to_save;
        saved.iter().find(|saved| module == *saved || module.split('.').any(|part| part == saved.as_str()))?;
        let dtype = self.base.tensors().iter().find(|t| t.shape.rank() == 2).map_or(Dtype::F32, |t| t.dtype);
        self.notes.push(format!("`{name}` is new: the adapter was trained with a module that the base does not have"));
        Some(self.add_new(Described { name: name.to_owned(), dtype, shape: shape.clone(), base: None }))
    }

    /// Rows of trained tokens, which take the place of the base's.
    pub(super) fn tokens(&mut self, work: &mut Work<'_>, module: &str, tensor: usize) {
        for place in self.places(work, module, &[tensor]) {
            let target = self.resized(place.position);
            let (rows, cols) = matrix_dims(&target.shape, false);
            let Some(indices) = work.config().tokens_of(module).map(<[u64]>::to_vec) else {
                let expected = format!("trainable_token_indices that name `{module}`");
                work.misfit(tensor, Some(&target.name), expected);
                continue;
            };
            let values = work.matrix(tensor);
            let outside = indices.iter().any(|row| *row >= rows);
            if (values.rows, values.cols) != (indices.len() as u64, cols) || outside {
                let expected = format!("[{}, {cols}] for rows below {rows}, as the config says", indices.len());
                work.misfit(tensor, Some(&target.name), expected);
                continue;
            }
            let mut rows: Vec<(u64, u64)> = indices.iter().copied().zip(0..).collect();
            // Of a row that is named twice, the later one counts.
            rows.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            rows.dedup_by_key(|(row, _)| *row);
            let first = rows.first().map_or(0, |(row, _)| *row);
            let end = rows.last().map_or(0, |(row, _)| row + 1);
            let rect = Rect { rows: first..end, cols: 0..cols };
            self.draft(place.position, work.part(rect, Form::Replace { values, rows: Some(rows) }), false);
        }
    }
}

/// Decides between values that take the place of the base's and differences that are weighted and added.
pub(super) fn settle(
    target: &mut Target,
    mut whole: Vec<Whole>,
    adapters: &[(Adapter, f64)],
    options: &OverlayOptions,
) -> Result<(), Error> {
    if whole.is_empty() {
        return Ok(());
    }
    let first = whole[0].adapter;
    let alone = whole.len() == 1 && target.parts.iter().all(|part| part.adapter == first);
    let as_it_is = options.combine == Combine::Sum || whole[0].shape != target.shape || target.base.is_none();
    if alone && whole[0].weight == 1.0 && as_it_is {
        let Whole { adapter, shape, values, .. } = whole.remove(0);
        target.shape = shape;
        target.replaced = Some(Replaced { adapter, values });
        return Ok(());
    }
    if let Some(other) = whole.iter().find(|w| w.shape != target.shape || target.base.is_none()) {
        return Err(Error::Misfit {
            path: adapters[other.adapter].0.weights_path().to_owned(),
            base: Default::default(),
            misfits: vec![Misfit {
                key: other.key.clone(),
                base: Some(target.name.clone()),
                expected: format!("{}: what is weighted or combined has the shape of the base", target.shape),
                found: other.shape.to_string(),
            }],
        });
    }
    let (rows, cols) = target.matrix_dims();
    let parts = whole.into_iter().map(|w| Part {
        adapter: w.adapter,
        weight: w.weight,
        rect: Rect { rows: 0..rows, cols: 0..cols },
        form: Form::Replace { values: w.values, rows: None },
    });
    target.parts.extend(parts);
    Ok(())
}
