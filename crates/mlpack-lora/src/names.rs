//! Which base tensors a module of an adapter means: exactly, under another prefix, or fused and split otherwise.

use mlpack_safetensors::Checkpoint;
use std::collections::BTreeMap;
use std::ops::Range;

/// First parts of names that transformers versions and trainers put before a language model's own, or leave out.
const PREFIXES: &[&str] = &["model", "language_model", "base_model", "text_model", "transformer", "module"];

/// Parts of names that other versions of transformers call otherwise.
const RENAMED: &[(&str, &str)] = &[(".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp.")];

/// Projections that some checkpoints store as one, with their outputs one after another.
const FUSED: &[(&str, &[&str])] = &[
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("W_pack", &["q_proj", "k_proj", "v_proj"]),
    ("gate_up_proj", GATE_UP),
];

const GATE_UP: &[&str] = &["gate_proj", "up_proj"];

/// Projections of one expert, by the name of the stack of all experts', each under its names.
const EXPERT: &[(&str, &[&[&str]])] =
    &[("gate_up_proj", &[&["gate_proj", "w1"], &["up_proj", "w3"]]), ("down_proj", &[&["down_proj", "w2"]])];

/// What kohya's tools put before a module's name, whose dots they replace.
const KOHYA_PREFIXES: &[&str] =
    &["lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_", "lycoris_", "lora_"];

/// Names of a token embedding's weight, by their end.
const EMBEDDINGS: &[&str] = &["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight"];

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// One tensor, by position.
    One(usize),
    /// Several under different prefixes.
    Several(Vec<usize>),
    /// None.
    Nothing,
}

/// Where outputs of a module lie in a base tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The base tensor.
    pub position: usize,
    /// The expert of the base tensor, where that is a stack of all experts'.
    pub in_stack: Option<u64>,
    /// The expert of the adapter, where it is trained on such a stack.
    pub expert: Option<u64>,
    /// The module's outputs that lie here; `None` for all.
    pub outputs: Option<Range<u64>>,
    /// Where they begin among the base tensor's.
    pub at: At,
}

/// Where outputs begin in a base tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// They are all of its outputs.
    All,
    /// At this part of so many of the same size.
    Part(u64, u64),
    /// So many times their number before the end; `None` at the start.
    BeforeEnd(Option<u64>),
}

impl Place {
    fn all(position: usize) -> Place {
        Place { position, in_stack: None, expert: None, outputs: None, at: At::All }
    }
}

/// The names of a base checkpoint.
pub(crate) struct Names<'a> {
    base: &'a Checkpoint,
    by_canonical: BTreeMap<String, Vec<usize>>,
    by_flat: BTreeMap<String, Vec<usize>>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(base: &'a Checkpoint) -> Names<'a> {
        let mut names = Names { base, by_canonical: BTreeMap::new(), by_flat: BTreeMap::new() };
        for (position, tensor) in base.tensors().iter().enumerate() {
            names.by_canonical.entry(canonical(&tensor.name).to_owned()).or_default().push(position);
            names.by_flat.entry(canonical(&tensor.name).replace('.', "_")).or_default().push(position);
        }
        names
    }

    /// A tensor by its name, or by the name it has in other versions of transformers.
    pub(crate) fn find(&self, name: &str) -> Found {
        if let Some(position) = self.base.position(name) {
            return Found::One(position);
        }
        let renamed = RENAMED.iter().filter(|(from, _)| name.contains(from)).map(|(from, to)| name.replace(from, to));
        for name in std::iter::once(name.to_owned()).chain(renamed) {
            match self.by_canonical.get(canonical(&name)).map(Vec::as_slice) {
                None => {}
                Some([position]) => return Found::One(*position),
                Some(several) => return Found::Several(several.to_vec()),
            }
        }
        Found::Nothing
    }

    fn one(&self, name: &str) -> Option<usize> {
        match self.find(name) {
            Found::One(position) => Some(position),
            Found::Several(_) | Found::Nothing => None,
        }
    }

    /// A parameter of a module: most are called `weight`.
    fn parameter(&self, module: &str) -> Option<usize> {
        self.one(&format!("{module}.weight")).or_else(|| self.one(module))
    }

    /// A module of kohya's, whose name has underscores for dots.
    pub(crate) fn find_flat(&self, module: &str) -> Option<usize> {
        let stripped = KOHYA_PREFIXES.iter().filter_map(|prefix| module.strip_prefix(prefix)).chain([module]);
        for name in stripped {
            let mut name = name;
            loop {
                if let Some([position]) = self.by_flat.get(&format!("{name}_weight")).map(Vec::as_slice) {
                    return Some(*position);
                }
                let inner = PREFIXES.iter().find_map(|p| name.strip_prefix(p)?.strip_prefix('_'));
                let Some(inner) = inner else { break };
                name = inner;
            }
        }
        None
    }

    /// The embedding's weight, and the head's where it has one of its own.
    pub(crate) fn embedding(&self) -> Option<usize> {
        embedding(self.base)
    }

    pub(crate) fn head(&self) -> Option<usize> {
        self.one("lm_head.weight")
    }

    /// The name of a head that the checkpoint does not have yet: beside its embedding.
    pub(crate) fn new_head(&self) -> String {
        let embedding = self.embedding().map_or("", |position| self.base.tensors()[position].name.as_str());
        match embedding.strip_suffix("model.embed_tokens.weight") {
            Some(prefix) => format!("{prefix}lm_head.weight"),
            None => "lm_head.weight".to_owned(),
        }
    }

    /// Where a module's weight is; empty when nowhere.
    pub(crate) fn places(&self, module: &str) -> Vec<Place> {
        if let Some(position) = self.parameter(module) {
            return vec![Place::all(position)];
        }
        let Some((parent, leaf)) = module.rsplit_once('.') else { return Vec::new() };
        let split = self.split(parent, leaf);
        if !split.is_empty() {
            return split;
        }
        self.fused(parent, leaf).or_else(|| self.in_stack(parent, leaf)).into_iter().collect()
    }

    /// A fused projection whose parts the base stores one by one.
    fn split(&self, parent: &str, leaf: &str) -> Vec<Place> {
        for (fused, parts) in FUSED {
            if leaf != *fused {
                continue;
            }
            let found: Option<Vec<usize>> =
                parts.iter().map(|part| self.one(&format!("{parent}.{part}.weight"))).collect();
            if let Some(found) = found {
                return self.one_after_another(&found, None);
            }
        }
        Vec::new()
    }

    /// Tensors that hold the outputs of a module one after another.
    fn one_after_another(&self, positions: &[usize], expert: Option<u64>) -> Vec<Place> {
        let mut start = 0;
        let place = |position: &usize| {
            let end = start + self.base.tensors()[*position].shape.dims().first().copied().unwrap_or(0);
            let outputs = Some(start..end);
            start = end;
            Place { expert, outputs, ..Place::all(*position) }
        };
        positions.iter().map(place).collect()
    }

    /// A projection that the base stores fused with others.
    fn fused(&self, parent: &str, leaf: &str) -> Option<Place> {
        FUSED.iter().find_map(|(fused, parts)| {
            let part = parts.iter().position(|part| *part == leaf)? as u64;
            let position = self.one(&format!("{parent}.{fused}.weight"))?;
            let at = match (parts.len(), part) {
                // Keys and values have the same number of outputs, queries what is left.
                (3, 0) => At::BeforeEnd(None),
                (3, part) => At::BeforeEnd(Some(3 - part)),
                (n, part) => At::Part(part, n as u64),
            };
            Some(Place { at, ..Place::all(position) })
        })
    }

    /// A projection of one expert, where the base stores a stack of all experts'.
    fn in_stack(&self, parent: &str, leaf: &str) -> Option<Place> {
        let (experts, expert) = parent.rsplit_once('.')?;
        let expert: u64 = expert.parse().ok().filter(|_| experts.ends_with("experts"))?;
        EXPERT.iter().find_map(|(stack, parts)| {
            let part = parts.iter().position(|names| names.contains(&leaf))? as u64;
            let position = self.parameter(&format!("{experts}.{stack}"))?;
            let at = if parts.len() == 1 { At::All } else { At::Part(part, parts.len() as u64) };
            Some(Place { in_stack: Some(expert), at, ..Place::all(position) })
        })
    }

    /// Where a parameter of a module is that an adapter was trained on by its name: a matrix, a stack of all experts', or
    /// that stack in single tensors.
    pub(crate) fn places_of_parameter(&self, module: &str, parameter: &str) -> Vec<Place> {
        if let Some(position) = self.one(&format!("{module}.{parameter}")) {
            return match self.base.tensors()[position].shape.dims() {
                [experts, _, _] => {
                    let place = |e| Place { in_stack: Some(e), expert: Some(e), ..Place::all(position) };
                    (0..*experts).map(place).collect()
                }
                _ => vec![Place::all(position)],
            };
        }
        let Some((_, parts)) = EXPERT.iter().find(|(stack, _)| *stack == parameter) else { return Vec::new() };
        let mut places = Vec::new();
        for expert in 0.. {
            let part =
                |names: &&[&str]| names.iter().find_map(|name| self.one(&format!("{module}.{expert}.{name}.weight")));
            let Some(positions) = parts.iter().map(part).collect::<Option<Vec<usize>>>() else { break };
            places.extend(self.one_after_another(&positions, Some(expert)));
        }
        places
    }
}

/// The position of a checkpoint's token embedding.
pub fn embedding(base: &Checkpoint) -> Option<usize> {
    let ends = |name: &str| EMBEDDINGS.iter().any(|end| canonical(name) == *end);
    base.tensors().iter().position(|tensor| ends(&tensor.name))
}

/// A name without the prefixes that come and go.
pub(crate) fn canonical(name: &str) -> &str {
    let mut rest = name;
    while let Some((first, inner)) = rest.split_once('.') {
        if !PREFIXES.contains(&first) {
            break;
        }
        rest = inner;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint of U8 tensors with the given names and shapes.
    fn checkpoint(tensors: &[(&str, &[u64])]) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        let mut at = 0;
        let mut entries = Vec::new();
        for (name, dims) in tensors {
            let end = at + dims.iter().product::<u64>();
            entries.push(format!(r#""{name}":{{"dtype":"U8","shape":{dims:?},"data_offsets":[{at},{end}]}}"#));
            at = end;
        }
        let header = format!("{{{}}}", entries.join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + at as usize, 0);
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        (dir, checkpoint)
    }

    fn names_of(base: &Checkpoint, places: &[Place]) -> Vec<String> {
        places.iter().map(|place| base.tensors()[place.position].name.clone()).collect()
    }

    #[test]
    fn prefixes_that_come_and_go_do_not_matter() {
        let (_dir, base) = checkpoint(&[
            ("language_model.model.layers.0.q_proj.weight", &[1, 1]),
            ("vision_tower.layers.0.q_proj.weight", &[1, 1]),
        ]);
        let names = Names::new(&base);
        for module in ["model.language_model.layers.0.q_proj", "model.layers.0.q_proj", "layers.0.q_proj"] {
            let expected = ["language_model.model.layers.0.q_proj.weight"];
            assert_eq!(names_of(&base, &names.places(module)), expected, "{module}");
        }
        assert_eq!(
            names_of(&base, &names.places("model.vision_tower.layers.0.q_proj")),
            ["vision_tower.layers.0.q_proj.weight"]
        );
        assert!(names.places("model.layers.1.q_proj").is_empty());
    }

    #[test]
    fn two_tensors_under_different_prefixes_are_not_guessed_between() {
        let (_dir, base) = checkpoint(&[("model.x.weight", &[1]), ("text_model.x.weight", &[1])]);
        assert_eq!(Names::new(&base).find("x.weight"), Found::Several(vec![0, 1]));
        assert_eq!(Names::new(&base).find("model.x.weight"), Found::One(0));
    }

    #[test]
    fn fused_projections_are_split_and_split_ones_fused() {
        let (_dir, base) = checkpoint(&[
            ("m.k_proj.weight", &[1, 2]),
            ("m.q_proj.weight", &[4, 2]),
            ("m.v_proj.weight", &[1, 2]),
            ("p.qkv_proj.weight", &[6, 2]),
            ("p.gate_up_proj.weight", &[6, 2]),
        ]);
        let names = Names::new(&base);
        let outputs: Vec<_> = names.places("m.qkv_proj").into_iter().map(|p| (p.position, p.outputs)).collect();
        assert_eq!(outputs, [(1, Some(0..4)), (0, Some(4..5)), (2, Some(5..6))]);
        let at = |module: &str| names.places(module)[0].at;
        assert_eq!(at("p.q_proj"), At::BeforeEnd(None));
        assert_eq!((at("p.k_proj"), at("p.v_proj")), (At::BeforeEnd(Some(2)), At::BeforeEnd(Some(1))));
        assert_eq!(at("p.up_proj"), At::Part(1, 2));
    }

    #[test]
    fn experts_are_found_in_stacks_and_stacks_in_experts() {
        let (_dir, base) = checkpoint(&[
            ("a.mlp.experts.gate_up_proj", &[2, 4, 1]),
            ("b.block_sparse_moe.experts.0.w1.weight", &[2, 1]),
            ("b.block_sparse_moe.experts.0.w2.weight", &[1, 2]),
            ("b.block_sparse_moe.experts.0.w3.weight", &[2, 1]),
        ]);
        let names = Names::new(&base);
        let up = names.places("a.mlp.experts.1.up_proj");
        assert_eq!((up[0].in_stack, up[0].at), (Some(1), At::Part(1, 2)));
        let split = names.places_of_parameter("b.mlp.experts", "gate_up_proj");
        let split: Vec<_> = split.into_iter().map(|p| (p.position, p.expert, p.outputs)).collect();
        assert_eq!(split, [(1, Some(0), Some(0..2)), (3, Some(0), Some(2..4))]);
        assert_eq!(names.places_of_parameter("a.mlp.experts", "gate_up_proj").len(), 2);
    }

    #[test]
    fn underscores_of_kohya_stand_for_dots() {
        let (_dir, base) = checkpoint(&[("model.layers.0.self_attn.q_proj.weight", &[1, 1])]);
        for module in ["lora_te_model_layers_0_self_attn_q_proj", "lora_unet_layers_0_self_attn_q_proj"] {
            assert_eq!(Names::new(&base).find_flat(module), Some(0), "{module}");
        }
    }
}
