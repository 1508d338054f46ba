//! Making an overlay: every adapter tensor finds its place in the base, or is named in an error.
//!
//! This is what all kinds of adapters share; each kind has its rules for places and shapes in a file of its own below.

mod low_rank;
mod products;
mod whole;

use crate::base::BaseConfig;
use crate::key::Role;
use crate::matrix::{Matrix, is_summable};
use crate::names::{At, Found, Names, Place};
use crate::target::{Form, Part, Rect, Target};
use crate::{Adapter, AdapterConfig, Error, Method, Misfit, OverlayOptions, Unmatched};
use mlpack_safetensors::Checkpoint;
use mlpack_tensor::{Dtype, Shape, nearest};
use products::product_of_products;
use std::collections::BTreeMap;
use whole::{Whole, settle};

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
                roles.values().for_each(|tensor| adapter.release(*tensor));
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

/// The factor of a module's delta: kohya's alpha is a tensor.
fn scale(work: &Work<'_>, name: &str, roles: &BTreeMap<Role, usize>, rank: u64) -> f64 {
    match roles.get(&Role::Alpha) {
        Some(alpha) => work.column(*alpha).decode(work.adapter.bytes(*alpha)).first().map_or(1.0, |a| a / rank as f64),
        None => work.config().scale_of(name, rank),
    }
}
