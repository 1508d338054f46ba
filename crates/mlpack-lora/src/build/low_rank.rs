//! LoRA and DoRA: the place of two factors in a base tensor, of whatever layer.

use super::{Builder, Described, Work, scale};
use crate::delta::{Delta, Operand};
use crate::key::Role;
use crate::matrix::Matrix;
use crate::names::{At, Found, Place};
use crate::target::{Axis, Form, Rect, matrix_dims};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

/// The version of PEFT since which factors of a stack of experts follow the layer instead of the order of dimensions.
const STACKS_FOLLOW_LAYER: (u64, u64) = (0, 19);

/// Two factors of a module: `left · right`, `[outputs, r] · [r, inputs]`.
#[derive(Clone, Copy)]
struct Factors {
    left: Matrix,
    right: Matrix,
    /// The tensors that they come from, for messages: A and B.
    a: usize,
    b: usize,
    /// An embedding's weight is `[inputs, outputs]`.
    embedding: bool,
}

/// How a module's outputs and inputs lie in a tensor.
struct Lie {
    rect: Rect,
    axis: Axis,
}

impl Builder<'_> {
    /// LoRA and DoRA, of whatever layer.
    pub(super) fn low_rank(
        &mut self,
        work: &mut Work<'_>,
        module: &str,
        depth: usize,
        (a, b): (usize, usize),
        roles: &BTreeMap<Role, usize>,
        used: &mut Vec<Role>,
    ) {
        used.extend([Role::Alpha, Role::BBias]);
        let mlx = roles.contains_key(&Role::MlxA);
        let embedding = roles.contains_key(&Role::EmbeddingA);
        let (left, right) = (work.matrix(b), work.matrix(a));
        let (left, right) = if mlx { (left.transposed(), right.transposed()) } else { (left, right) };
        let factors = Factors { left, right, a, b, embedding };
        let parameter = parameter_of(work, module, depth);
        let name = parameter.as_ref().map_or_else(|| module.to_owned(), |p| format!("{module}.{p}"));
        let places = match &parameter {
            Some(parameter) => {
                let places = self.names.places_of_parameter(module, parameter);
                if places.is_empty() {
                    self.no_base(work, &name, &[a, b]);
                }
                places
            }
            None => self.places(work, module, &[a, b]),
        };
        if places.is_empty() {
            return;
        }
        let experts = places.iter().filter_map(|p| p.expert).max().map_or(1, |last| last + 1);
        let rank = work.config().rank_of(&name).unwrap_or(factors.left.cols / experts);
        let magnitude = match (roles.get(&Role::Magnitude), work.config().dora) {
            (Some(magnitude), true) => {
                used.push(Role::Magnitude);
                Some(*magnitude)
            }
            (None, true) if parameter.is_none() => {
                let key = work.name(a).to_owned();
                let partner = format!("{}lora_magnitude_vector", &key[..key.rfind("lora").unwrap_or(0)]);
                return work.no_partner(a, &partner);
            }
            _ => None,
        };
        if factors.left.cols != rank * experts || factors.right.rows != rank * experts {
            return self.wrong_rank(work, &places[0], &factors, rank * experts, rank);
        }
        let scale = scale(work, &name, roles, rank);
        let last = places.iter().filter_map(|p| p.outputs.as_ref()).map(|o| o.end).max();
        let factors = self.turned(work, &places, factors, last);
        if last.is_some_and(|last| last != factors.left.rows) {
            let expected = format!("{} outputs, as its parts in the base have together", last.unwrap_or(0));
            return work.misfit(b, None, expected);
        }
        let mut zero = true;
        for place in &places {
            let expert = place.expert.unwrap_or(0);
            let mut factors = factors;
            if experts > 1 || place.expert.is_some() {
                // B numbers its columns by (rank, expert), A its rows by (expert, rank).
                if factors.left.tensor == b {
                    factors.left = factors.left.every_nth_col(experts, expert);
                    factors.right = factors.right.row_range(expert * rank..(expert + 1) * rank);
                } else {
                    factors.left = factors.left.transposed().row_range(expert * rank..(expert + 1) * rank).transposed();
                    factors.right = factors.right.transposed().every_nth_col(experts, expert).transposed();
                }
            }
            let target = self.resized(place.position);
            let Some(lie) = self.lie(work, module, &target, place, &factors) else {
                return self.wrong_shape(work, &target, place, &factors, rank * experts);
            };
            let outputs = place.outputs.clone().unwrap_or(0..factors.left.rows);
            let left = factors.left.row_range(outputs.clone());
            let operand = match lie.axis {
                Axis::Rows => Operand::Product(left, factors.right),
                Axis::Cols => Operand::Product(factors.right.transposed(), left.transposed()),
            };
            let delta = Delta::Plain(operand);
            zero = zero && delta.is_zero(work.adapter);
            let form = match magnitude {
                None => Form::Add { delta, scale },
                Some(tensor) => {
                    let values = work.column(tensor);
                    if values.rows != factors.left.rows {
                        let expected = format!("{} values, one for each output", factors.left.rows);
                        return work.misfit(tensor, Some(&target.name), expected);
                    }
                    let (magnitude, norms) = (values.row_range(outputs.clone()), OnceLock::new());
                    Form::Dora { delta, scale, magnitude, axis: lie.axis, norms }
                }
            };
            if let Some(bias) = roles.get(&Role::BBias) {
                self.bias(work, *bias, place, outputs, scale);
            }
            self.draft(place.position, work.part(lie.rect, form), place.in_stack.is_some());
        }
        if zero && magnitude.is_none() {
            work.unchanged.push(name);
        }
    }

    /// Factors of stacks that older versions of PEFT made for parameters whose single tensors lie the other way round.
    fn turned(&self, work: &Work<'_>, places: &[Place], factors: Factors, outputs: Option<u64>) -> Factors {
        let Some(outputs) = outputs.filter(|_| places[0].expert.is_some() && places[0].in_stack.is_none()) else {
            return factors;
        };
        let inputs = self.described(places[0].position).shape.row_len();
        let fits = (factors.left.rows, factors.right.cols) == (outputs, inputs);
        let fits_turned = (factors.right.cols, factors.left.rows) == (outputs, inputs);
        let old = work.config().peft_version.is_none_or(|version| version < STACKS_FOLLOW_LAYER);
        if fits_turned && (!fits || old) {
            return Factors { left: factors.right.transposed(), right: factors.left.transposed(), ..factors };
        }
        factors
    }

    /// How a module lies in a tensor; `None` when it does not fit.
    fn lie(&self, work: &Work<'_>, module: &str, target: &Described, place: &Place, factors: &Factors) -> Option<Lie> {
        let (first_row, rows, cols) = match (place.in_stack, target.shape.dims()) {
            (Some(expert), &[experts, rows, cols]) if expert < experts => (expert * rows, rows, cols),
            (Some(_), _) => return None,
            (None, _) => {
                let (rows, cols) = matrix_dims(&target.shape, false);
                (0, rows, cols)
            }
        };
        let outputs = place.outputs.as_ref().map_or(factors.left.rows, |o| o.end - o.start);
        let inputs = factors.right.cols;
        let start = |of: u64| match place.at {
            At::All => (outputs == of).then_some(0),
            At::Part(part, parts) => (outputs * parts == of).then_some(part * outputs),
            At::BeforeEnd(None) => (outputs <= of).then_some(0),
            At::BeforeEnd(Some(n)) => of.checked_sub(n * outputs),
        };
        let normal = start(rows).filter(|_| inputs == cols && !factors.embedding);
        let may_turn = factors.embedding || target.shape.rank() == 2 || place.in_stack.is_some();
        let turned = start(cols).filter(|_| inputs == rows && may_turn);
        let config = work.config();
        let prefers_turned = if place.in_stack.is_some() {
            let old = config.peft_version.is_none_or(|version| version < STACKS_FOLLOW_LAYER);
            place.expert.is_some() && (old || self.config.has_transposed_stacks())
        } else {
            config.fan_in_fan_out || self.config.is_conv1d(module)
        };
        let (axis, start) = match (normal, turned) {
            (Some(_), Some(start)) if prefers_turned => (Axis::Cols, start),
            (Some(start), _) => (Axis::Rows, start),
            (None, Some(start)) => (Axis::Cols, start),
            (None, None) => return None,
        };
        let rect = match axis {
            Axis::Rows => Rect { rows: first_row + start..first_row + start + outputs, cols: 0..cols },
            Axis::Cols => Rect { rows: first_row..first_row + rows, cols: start..start + outputs },
        };
        Some(Lie { rect, axis })
    }

    fn wrong_rank(&self, work: &mut Work<'_>, place: &Place, factors: &Factors, depth: u64, rank: u64) {
        let target = self.resized(place.position);
        self.wrong_shape(work, &target, place, factors, depth);
        if work.misfits.is_empty() {
            let expected = format!("rank {rank}, as the config says");
            work.misfit(factors.a, Some(&target.name), expected);
        }
    }

    /// Says which of the two factors does not fit, by what a linear layer's would be.
    fn wrong_shape(&self, work: &mut Work<'_>, target: &Described, place: &Place, factors: &Factors, depth: u64) {
        let dims = target.shape.dims();
        let (rows, cols) = match (place.in_stack, dims) {
            (Some(_), [_, rows, cols]) => (*rows, *cols),
            _ => matrix_dims(&target.shape, false),
        };
        let (rows, cols) = if factors.embedding { (cols, rows) } else { (rows, cols) };
        let why = format!("(r {depth}; the base is {})", target.shape);
        let rows_fit = factors.left.rows == rows || place.outputs.is_some() || place.at != At::All;
        let before = work.misfits.len();
        let (a, b) = if factors.left.tensor == factors.b { (factors.a, factors.b) } else { (factors.b, factors.a) };
        if factors.right.cols != cols || factors.right.rows != depth {
            work.misfit(a, Some(&target.name), format!("[{depth}, {cols}] {why}"));
        }
        if !rows_fit || factors.left.cols != depth {
            work.misfit(b, Some(&target.name), format!("[{rows}, {depth}] {why}"));
        }
        if work.misfits.len() == before {
            work.misfit(b, Some(&target.name), format!("outputs that lie in a base of shape {}", target.shape));
        }
    }

    /// The bias of B, which is added to the layer's own.
    fn bias(&mut self, work: &mut Work<'_>, bias: usize, place: &Place, outputs: Range<u64>, scale: f64) {
        let weight = self.described(place.position);
        let name = format!("{}.bias", weight.name.strip_suffix(".weight").unwrap_or(&weight.name));
        let Found::One(position) = self.names.find(&name) else {
            return self.no_base(work, &name, &[bias]);
        };
        let target = self.described(position);
        let values = work.column(bias);
        let (rows, len) = (target.shape.element_count().unwrap_or(0), outputs.end - outputs.start);
        let start = match place.at {
            At::All => Some(0).filter(|_| len == rows),
            At::Part(part, parts) => Some(part * len).filter(|_| len * parts == rows),
            At::BeforeEnd(None) => Some(0).filter(|_| len <= rows),
            At::BeforeEnd(Some(n)) => rows.checked_sub(n * len),
        };
        let Some(start) = start.filter(|_| values.rows >= outputs.end) else {
            return work.misfit(bias, Some(&target.name), format!("{} (the base's bias)", target.shape));
        };
        let delta = Delta::Plain(Operand::Full(values.row_range(outputs)));
        let rect = Rect { rows: start..start + len, cols: 0..1 };
        self.draft(position, work.part(rect, Form::Add { delta, scale }), false);
    }
}

/// The parameter that an adapter of `target_parameters` was trained on. Wrappers of several parameters of a module lie
/// in each other, the first parameter's innermost.
fn parameter_of(work: &Work<'_>, module: &str, depth: usize) -> Option<String> {
    let named = |target: &&String| {
        let (of, parameter) = target.rsplit_once('.').unwrap_or(("", target));
        let is_of = of.is_empty() || module == of || module.ends_with(&format!(".{of}"));
        is_of.then(|| parameter.to_owned())
    };
    let mut parameters: Vec<String> =
        work.config().target_parameters.iter().filter_map(|target| named(&target)).collect();
    // The order in which layers define them.
    let order = |name: &String| ["gate_up_proj", "gate_up_proj_bias", "down_proj"].iter().position(|n| n == name);
    parameters.sort_by(|a, b| order(a).cmp(&order(b)).then(a.cmp(b)));
    parameters.dedup();
    let wrappers = work.adapter.modules().keys().filter(|(name, _)| name == module).map(|(_, d)| d + 1).max()?;
    let skipped = wrappers.checked_sub(1 + depth)?;
    parameters.into_iter().nth(skipped)
}
