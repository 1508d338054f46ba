//! Making an overlay: every adapter tensor finds its place in the base, or is named in an error. It is long because every
//! kind of adapter has its rules for places and shapes here.

use crate::base::BaseConfig;
use crate::delta::{Delta, Operand};
use crate::key::Role;
use crate::matrix::{Matrix, is_summable};
use crate::names::{At, Found, Names, Place};
use crate::target::{Axis, Form, Part, Rect, Replaced, Target, matrix_dims};
use crate::{Adapter, AdapterConfig, Combine, Error, Method, Misfit, OverlayOptions, Unmatched};
use mlpack_safetensors::Checkpoint;
use mlpack_tensor::{Dtype, Shape, nearest};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

/// The version of PEFT since which factors of a stack of experts follow the layer instead of the order of dimensions.
const STACKS_FOLLOW_LAYER: (u64, u64) = (0, 19);

/// Targets while adapters are added.
pub(crate) struct Builder<'a> {
    base: &'a Checkpoint,
    names: Names<'a>,
    config: BaseConfig,
    /// Tensors that the base does not have, at positions behind its own.
    new: Vec<Described>,
    drafts: BTreeMap<usize, Draft>,
    problems: Vec<Error>,
    notes: Vec<String>,
    tied: Option<bool>,
}

/// A tensor of the base, or one that the result has besides.
#[derive(Clone, Debug)]
struct Described {
    name: String,
    dtype: Dtype,
    shape: Shape,
    /// The base tensor that its values are.
    base: Option<usize>,
}

#[derive(Default)]
struct Draft {
    stack: bool,
    parts: Vec<Part>,
    whole: Vec<Whole>,
}

/// A parameter that an adapter brings whole.
struct Whole {
    adapter: usize,
    weight: f64,
    key: String,
    shape: Shape,
    values: Matrix,
}

/// Targets in the order of the checkpoint, new ones last.
pub(crate) struct Built {
    pub targets: Vec<BuiltTarget>,
    pub tied: Option<bool>,
    pub notes: Vec<String>,
}

pub(crate) struct BuiltTarget {
    pub target: Target,
    pub is_new: bool,
}

/// The adapter at work, and what is wrong with it so far.
struct Work<'a> {
    index: usize,
    adapter: &'a Adapter,
    weight: f64,
    unmatched: Vec<Unmatched>,
    misfits: Vec<Misfit>,
    unchanged: Vec<String>,
}

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

impl Work<'_> {
    fn config(&self) -> &AdapterConfig {
        self.adapter.config()
    }

    fn name(&self, tensor: usize) -> &str {
        &self.adapter.tensors()[tensor].name
    }

    fn shape(&self, tensor: usize) -> &Shape {
        &self.adapter.tensors()[tensor].shape
    }

    fn matrix(&self, tensor: usize) -> Matrix {
        Matrix::of(tensor, &self.adapter.tensors()[tensor])
    }

    fn column(&self, tensor: usize) -> Matrix {
        Matrix::column(tensor, &self.adapter.tensors()[tensor])
    }

    fn misfit(&mut self, tensor: usize, base: Option<&str>, expected: String) {
        let (key, found) = (self.name(tensor).to_owned(), self.shape(tensor).to_string());
        self.misfits.push(Misfit { key, base: base.map(str::to_owned), expected, found });
    }

    fn no_partner(&mut self, tensor: usize, partner: &str) {
        self.unmatched.push(Unmatched::NoPartner { key: self.name(tensor).to_owned(), partner: partner.to_owned() });
    }

    fn part(&self, rect: Rect, form: Form) -> Part {
        Part { adapter: self.index, weight: self.weight, rect, form }
    }
}

impl<'a> Builder<'a> {
    pub(crate) fn new(base: &'a Checkpoint) -> Result<Builder<'a>, Error> {
        Ok(Builder {
            base,
            names: Names::new(base),
            config: BaseConfig::open(base)?,
            new: Vec::new(),
            drafts: BTreeMap::new(),
            problems: Vec::new(),
            notes: Vec::new(),
            tied: None,
        })
    }

    /// Finds the place of every tensor of an adapter; what is wrong is remembered.
    pub(crate) fn add(&mut self, index: usize, adapter: &Adapter, weight: f64, options: &OverlayOptions) {
        let mut work = Work {
            index,
            adapter,
            weight,
            unmatched: adapter.repeated().to_vec(),
            misfits: adapter.unusable(),
            unchanged: Vec::new(),
        };
        if work.misfits.is_empty() {
            // What is trained whole may give a tensor another shape, so it comes first.
            let whole = |roles: &BTreeMap<Role, usize>| roles.get(&Role::Whole).copied();
            for ((module, _), roles) in adapter.modules() {
                if let Some(values) = whole(roles) {
                    self.whole(&mut work, module, values);
                }
            }
            for ((module, depth), roles) in adapter.modules() {
                self.module(&mut work, module, *depth, roles);
            }
        }
        let path = adapter.weights_path().to_owned();
        if !work.unmatched.is_empty() {
            let total = adapter.tensors().len();
            self.problems.push(Error::Unmatched { path: path.clone(), total, unmatched: work.unmatched });
        }
        if !work.misfits.is_empty() {
            let base = self.base.dir().to_owned();
            self.problems.push(Error::Misfit { path: path.clone(), base, misfits: work.misfits });
        }
        if !work.unchanged.is_empty() && !options.allow_empty {
            let total = adapter.modules().len();
            self.problems.push(Error::Unchanged { path, total, modules: work.unchanged });
        }
    }

    fn module(&mut self, work: &mut Work<'_>, module: &str, depth: usize, roles: &BTreeMap<Role, usize>) {
        let has = |role: Role| roles.get(&role).copied();
        let pairs = [(Role::A, Role::B), (Role::EmbeddingA, Role::EmbeddingB), (Role::MlxA, Role::MlxB)];
        let mut used = vec![Role::Original, Role::Whole];
        for (a, b) in pairs {
            used.extend([a, b]);
            match (has(a), has(b)) {
                (Some(a), Some(b)) => self.low_rank(work, module, depth, (a, b), roles, &mut used),
                (Some(only), None) | (None, Some(only)) => {
                    let partner = partner(work.name(only));
                    work.no_partner(only, &partner);
                }
                (None, None) => {}
            }
        }
        if let Some(delta) = product_of_products(work, module, roles, &mut used) {
            self.full_rank(work, module, roles, delta, &mut used);
        }
        if let Some(factors) = has(Role::Ia3) {
            used.push(Role::Ia3);
            self.factors(work, module, factors);
        }
        if let Some(rows) = has(Role::Tokens) {
            used.push(Role::Tokens);
            self.tokens(work, module, rows);
        }
        for (_, tensor) in roles.iter().filter(|(role, _)| !used.contains(role)) {
            let key = work.name(*tensor).to_owned();
            work.unmatched.push(Unmatched::UnknownForm { nearest: self.nearest(&key), key });
        }
    }

    fn nearest(&self, name: &str) -> Option<String> {
        nearest(name, self.base.tensors().iter().map(|t| t.name.as_str()), 1).first().map(|n| (*n).to_owned())
    }

    fn described(&self, position: usize) -> Described {
        match self.base.tensors().get(position) {
            Some(t) => Described { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone(), base: Some(position) },
            None => self.new[position - self.base.tensors().len()].clone(),
        }
    }

    /// The same with the shape that an adapter gives it.
    fn resized(&self, position: usize) -> Described {
        let whole = self.drafts.get(&position).and_then(|draft| draft.whole.last());
        let described = self.described(position);
        match whole {
            Some(whole) => Described { shape: whole.shape.clone(), ..described },
            None => described,
        }
    }

    /// Where a module's weight is. The head of a base that has none of its own is its embedding, and gets its own.
    fn places(&mut self, work: &mut Work<'_>, module: &str, tensors: &[usize]) -> Vec<Place> {
        let name = format!("{module}.weight");
        if let Found::Several(several) = self.names.find(&name) {
            let candidates: Vec<String> = several.iter().map(|i| self.base.tensors()[*i].name.clone()).collect();
            work.unmatched.extend(tensors.iter().map(|tensor| Unmatched::Ambiguous {
                key: work.adapter.tensors()[*tensor].name.clone(),
                wanted: name.clone(),
                candidates: candidates.clone(),
            }));
            return Vec::new();
        }
        let mut places = self.names.places(module);
        if places.is_empty() && work.adapter.is(Method::Kohya) {
            let flat = self.names.find_flat(module).into_iter();
            let all = |position| Place { position, in_stack: None, expert: None, outputs: None, at: At::All };
            places = flat.map(all).collect();
        }
        if places.is_empty()
            && let Some(position) = self.own_head(&name)
        {
            places.push(Place { position, in_stack: None, expert: None, outputs: None, at: At::All });
        }
        if places.is_empty() {
            self.no_base(work, &name, tensors);
        }
        places
    }

    fn no_base(&self, work: &mut Work<'_>, wanted: &str, tensors: &[usize]) {
        let nearest = self.nearest(wanted);
        work.unmatched.extend(tensors.iter().map(|tensor| Unmatched::NoBase {
            key: work.adapter.tensors()[*tensor].name.clone(),
            wanted: wanted.to_owned(),
            nearest: nearest.clone(),
        }));
    }

    /// The position of a head of its own, for a base whose head is its embedding.
    fn own_head(&mut self, name: &str) -> Option<usize> {
        if crate::names::canonical(name) != "lm_head.weight" || self.names.head().is_some() {
            return None;
        }
        let embedding = self.names.embedding()?;
        let tensor = self.described(embedding);
        let position = self.add_new(Described { name: self.names.new_head(), ..tensor });
        if self.tied.is_none() {
            self.tied = Some(false);
            self.notes.push(format!(
                "the head of the base is its embedding; the adapter changes the head alone, so the result has a `{}` of its own and tie_word_embeddings is false",
                self.names.new_head()
            ));
        }
        Some(position)
    }

    fn add_new(&mut self, tensor: Described) -> usize {
        let known = self.new.iter().position(|t| t.name == tensor.name);
        self.base.tensors().len()
            + known.unwrap_or_else(|| {
                self.new.push(tensor);
                self.new.len() - 1
            })
    }

    fn draft(&mut self, position: usize, part: Part, stack: bool) {
        // A head that is there but tied is never read by transformers, and by others in place of the embedding.
        let tied = self.config.tied == Some(true) && self.names.embedding() == Some(position);
        let head = self.names.head().filter(|head| tied && *head != position);
        for position in head.into_iter().chain([position]) {
            let draft = self.drafts.entry(position).or_default();
            draft.stack |= stack;
            draft.parts.push(part.clone());
        }
    }

    /// LoRA and DoRA, of whatever layer.
    fn low_rank(
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

    /// LoHa and LoKr: their delta has the shape of the whole weight.
    fn full_rank(
        &mut self,
        work: &mut Work<'_>,
        module: &str,
        roles: &BTreeMap<Role, usize>,
        delta: Delta,
        used: &mut Vec<Role>,
    ) {
        used.push(Role::Alpha);
        let tensors: Vec<usize> = delta.operands().iter().flat_map(|o| o.matrices()).map(|m| m.tensor).collect();
        let places = self.places(work, module, &tensors);
        let Some(place) = places.first() else { return };
        let target = self.described(place.position);
        let dims = matrix_dims(&target.shape, false);
        let whole = places.len() == 1 && place.at == At::All && place.in_stack.is_none();
        if !delta.is_sound() || delta.dims() != dims || !whole {
            let (rows, cols) = delta.dims();
            let found = format!("factors for a weight of [{rows}, {cols}]");
            work.misfits.push(Misfit {
                key: work.name(tensors[0]).to_owned(),
                base: Some(target.name.clone()),
                expected: format!("factors for a weight of {}", target.shape),
                found,
            });
            return;
        }
        let rank = delta.operands().iter().map(|o| o.rank()).find(|rank| *rank > 0);
        if let (Some(rank), Some(expected)) = (rank, work.config().rank_of(module))
            && rank != expected
        {
            let key = delta.operands().iter().find(|o| o.rank() > 0).map_or(tensors[0], |o| o.matrices()[0].tensor);
            return work.misfit(key, Some(&target.name), format!("rank {expected}, as the config says"));
        }
        let scale = scale(work, module, roles, rank.unwrap_or(1));
        if delta.is_zero(work.adapter) {
            work.unchanged.push(module.to_owned());
        }
        let rect = Rect { rows: 0..dims.0, cols: 0..dims.1 };
        self.draft(place.position, work.part(rect, Form::Add { delta, scale }), false);
    }

    /// IA3: factors for outputs, which the bias shares, or for the inputs of a feedforward layer.
    fn factors(&mut self, work: &mut Work<'_>, module: &str, tensor: usize) {
        for place in self.places(work, module, &[tensor]) {
            let target = self.described(place.position);
            let (rows, cols) = matrix_dims(&target.shape, false);
            let taps = target.shape.dims().iter().skip(2).product::<u64>();
            let factors = work.column(tensor);
            let dims = work.shape(tensor).dims();
            let feedforward =
                match (dims, target.shape.rank()) {
                    ([1, n], 2) if *n > 1 => true,
                    ([_, 1], 2) => false,
                    _ => work.config().feedforward.as_ref().is_some_and(|all| {
                        all.iter().any(|name| module == name || module.ends_with(&format!(".{name}")))
                    }),
                };
            let turned = target.shape.rank() == 2 && (work.config().fan_in_fan_out || self.config.is_conv1d(module));
            let (inputs, outputs) = if turned { (rows, cols) } else { (cols / taps.max(1), rows) };
            let wanted = if feedforward { inputs } else { outputs };
            if factors.rows != wanted || place.at != At::All || place.in_stack.is_some() || place.outputs.is_some() {
                let side = if feedforward { "input" } else { "output" };
                let expected = format!("{wanted} factors, one for each {side} (the base is {})", target.shape);
                work.misfit(tensor, Some(&target.name), expected);
                continue;
            }
            let axis = if feedforward != turned { Axis::Cols } else { Axis::Rows };
            let taps = if axis == Axis::Cols && !turned { taps } else { 1 };
            if factors.decode(work.adapter.bytes(tensor)).iter().all(|l| *l == 1.0) {
                work.unchanged.push(module.to_owned());
            }
            let rect = Rect { rows: 0..rows, cols: 0..cols };
            self.draft(place.position, work.part(rect, Form::Multiply { factors, axis, taps }), false);
            let bias = target.name.strip_suffix(".weight").map(|stem| format!("{stem}.bias"));
            if let Some(position) = bias.and_then(|name| self.base.position(&name)).filter(|_| !feedforward) {
                let rect = Rect { rows: 0..outputs, cols: 0..1 };
                let form = Form::Multiply { factors, axis: Axis::Rows, taps: 1 };
                self.draft(position, work.part(rect, form), false);
            }
        }
    }

    /// Rows of trained tokens, which take the place of the base's.
    fn tokens(&mut self, work: &mut Work<'_>, module: &str, tensor: usize) {
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

    /// A parameter that was trained whole, or a copy of the embedding that was saved with the adapter.
    fn whole(&mut self, work: &mut Work<'_>, name: &str, tensor: usize) {
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

    /// The targets, if nothing is wrong.
    pub(crate) fn finish(mut self, adapters: &[(Adapter, f64)], options: &OverlayOptions) -> Result<Built, Error> {
        let mut targets = Vec::new();
        for (position, draft) in std::mem::take(&mut self.drafts) {
            let tensor = self.described(position);
            let base = tensor.base;
            let is_new = position >= self.base.tensors().len();
            let mut target = Target {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                base,
                stack: draft.stack,
                replaced: None,
                parts: draft.parts,
                scales: None,
            };
            if let Some(position) = base {
                match self.config.scales(self.base, &self.base.tensors()[position]) {
                    Ok(scales) => target.scales = scales,
                    Err(reason) => self.problems.push(Error::Base { tensor: tensor.name.clone(), reason }),
                }
            }
            if !is_summable(tensor.dtype) {
                let reason = format!("{} cannot be added to", tensor.dtype);
                self.problems.push(Error::Base { tensor: tensor.name.clone(), reason });
            }
            if let Err(problem) = settle(&mut target, draft.whole, adapters, options) {
                self.problems.push(problem);
            }
            targets.push(BuiltTarget { target, is_new });
        }
        self.check_vocabulary(&targets);
        match self.problems.len() {
            0 => Ok(Built { targets, tied: self.tied, notes: self.notes }),
            1 => Err(self.problems.remove(0)),
            _ => Err(Error::Several(self.problems)),
        }
    }

    /// A vocabulary that grows has to grow in the embedding and in the head.
    fn check_vocabulary(&mut self, targets: &[BuiltTarget]) {
        let rows = |position: Option<usize>| {
            let base = &self.base.tensors()[position?];
            let built = targets.iter().find(|t| !t.is_new && t.target.base == position);
            Some((base.name.clone(), built.map_or(&base.shape, |t| &t.target.shape).dims().first().copied()?))
        };
        if let (Some((embedding, a)), Some((head, b))) = (rows(self.names.embedding()), rows(self.names.head()))
            && a != b
            && targets.iter().any(|t| t.target.replaced.is_some())
        {
            let reason = format!("it has {b} rows and `{embedding}` {a}: the adapter resizes one of them alone");
            self.problems.push(Error::Base { tensor: head, reason });
        }
    }
}

/// Decides between values that take the place of the base's and differences that are weighted and added.
fn settle(
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

/// The other half of a pair's name.
fn partner(name: &str) -> String {
    const HALVES: &[(&str, &str)] = &[
        ("lora_A", "lora_B"),
        ("lora_embedding_A", "lora_embedding_B"),
        ("lora_a", "lora_b"),
        ("lora_down", "lora_up"),
    ];
    let other = HALVES.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).find_map(|(has, lacks)| {
        let at = name.rfind(&format!(".{has}"))? + 1;
        let rest = &name[at + has.len()..];
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{}{lacks}{rest}", &name[..at]))
    });
    other.unwrap_or_default()
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

/// The factor of a module's delta: kohya's alpha is a tensor.
fn scale(work: &Work<'_>, name: &str, roles: &BTreeMap<Role, usize>, rank: u64) -> f64 {
    match roles.get(&Role::Alpha) {
        Some(alpha) => work.column(*alpha).decode(work.adapter.bytes(*alpha)).first().map_or(1.0, |a| a / rank as f64),
        None => work.config().scale_of(name, rank),
    }
}

/// The delta of LoHa or LoKr, if the module has one and all of its parts.
fn product_of_products(
    work: &mut Work<'_>,
    module: &str,
    roles: &BTreeMap<Role, usize>,
    used: &mut Vec<Role>,
) -> Option<Delta> {
    let hada = [Role::HadaW1A, Role::HadaW1B, Role::HadaW2A, Role::HadaW2B];
    let lokr = [Role::LokrW1, Role::LokrW1A, Role::LokrW1B, Role::LokrW2, Role::LokrW2A, Role::LokrW2B];
    let has = |role: Role| roles.get(&role).copied();
    let any = |all: &[Role]| all.iter().find_map(|role| roles.get(role).copied());
    // Two factors, or two and a core.
    let operand = |work: &Work<'_>, a: usize, b: usize, core: Option<usize>| match core {
        None => Operand::Product(work.matrix(a), work.matrix(b)),
        Some(core) => {
            Operand::Tucker { left: work.matrix(a).transposed(), core: work.matrix(core), right: work.matrix(b) }
        }
    };
    used.extend(hada.into_iter().chain(lokr).chain([Role::HadaT1, Role::HadaT2, Role::LokrT2]));
    if let Some(first) = any(&hada) {
        let all: Option<Vec<usize>> = hada.iter().map(|role| has(*role)).collect();
        let Some(all) = all.filter(|_| has(Role::HadaT1).is_some() == has(Role::HadaT2).is_some()) else {
            work.no_partner(first, &format!("{module}.hada_w1_a, …_w1_b, …_w2_a, …_w2_b, both cores or none"));
            return None;
        };
        return Some(Delta::Hadamard(
            operand(work, all[0], all[1], has(Role::HadaT1)),
            operand(work, all[2], all[3], has(Role::HadaT2)),
        ));
    }
    let first = any(&lokr)?;
    let side = |work: &Work<'_>, whole: Role, a: Role, b: Role, core: Option<usize>| match (has(whole), has(a), has(b))
    {
        (Some(whole), None, None) => Some(Operand::Full(work.matrix(whole))),
        (None, Some(a), Some(b)) => Some(operand(work, a, b, core)),
        _ => None,
    };
    let w1 = side(work, Role::LokrW1, Role::LokrW1A, Role::LokrW1B, None);
    let w2 = side(work, Role::LokrW2, Role::LokrW2A, Role::LokrW2B, has(Role::LokrT2));
    match (w1, w2) {
        (Some(w1), Some(w2)) => Some(Delta::Kronecker(w1, w2)),
        _ => {
            work.no_partner(first, &format!("{module}.lokr_w1 and …_w2, each whole or as …_a and …_b"));
            None
        }
    }
}
