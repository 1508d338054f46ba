//! What the name of an adapter's tensor says: which module, and which part of its adapter.
//!
//! ```text
//!   base_model.model . model.layers.0.self_attn.q_proj . lora_A . default . weight
//!   └ wrappers         └ module                          └ role   └ the adapter's name, and `weight`: optional
//! ```
//! Forms: PEFT's `save_pretrained` and dumps of a whole state dict, with or without the wrappers of `torch.compile`,
//! distributed training and PEFT itself; MLX (`lora_a`, `lora_b`); kohya and LyCORIS (`lora_down`, `lora_up`, `alpha`).

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// `lora_A` `[r, in]`, or `lora_down`.
    A,
    /// `lora_B` `[out, r]`, or `lora_up`.
    B,
    /// The bias of `lora_B`, `[out]`.
    BBias,
    /// `lora_embedding_A` `[r, rows]`.
    EmbeddingA,
    /// `lora_embedding_B` `[dim, r]`.
    EmbeddingB,
    /// MLX's `lora_a` `[in, r]`.
    MlxA,
    /// MLX's `lora_b` `[r, out]`.
    MlxB,
    /// DoRA's magnitudes.
    Magnitude,
    /// kohya's `alpha`, a scalar.
    Alpha,
    /// kohya's `dora_scale`.
    DoraScale,
    /// Factors of LoHa.
    HadaW1A,
    /// The second factor of LoHa's first product.
    HadaW1B,
    /// The first factor of LoHa's second product.
    HadaW2A,
    /// The second factor of LoHa's second product.
    HadaW2B,
    /// The core of LoHa's first product.
    HadaT1,
    /// The core of LoHa's second product.
    HadaT2,
    /// LoKr's left operand, whole.
    LokrW1,
    /// The factors of LoKr's left operand.
    LokrW1A,
    /// The second of them.
    LokrW1B,
    /// LoKr's right operand, whole.
    LokrW2,
    /// The factors of LoKr's right operand.
    LokrW2A,
    /// The second of them.
    LokrW2B,
    /// The core of LoKr's right operand.
    LokrT2,
    /// IA3's factors.
    Ia3,
    /// Rows of trained tokens.
    Tokens,
    /// A parameter that was trained whole; the module's name ends with that of the parameter.
    Whole,
    /// A copy of what the base holds, kept beside a module that was trained whole.
    Original,
}

/// Segments that name a role. A marker may be followed by the adapter's name, and by `weight` or `bias`.
const MARKERS: &[(&str, Role)] = &[
    ("lora_A", Role::A),
    ("lora_B", Role::B),
    ("lora_down", Role::A),
    ("lora_up", Role::B),
    ("lora_embedding_A", Role::EmbeddingA),
    ("lora_embedding_B", Role::EmbeddingB),
    ("lora_a", Role::MlxA),
    ("lora_b", Role::MlxB),
    ("lora_magnitude_vector", Role::Magnitude),
    ("alpha", Role::Alpha),
    ("dora_scale", Role::DoraScale),
    ("hada_w1_a", Role::HadaW1A),
    ("hada_w1_b", Role::HadaW1B),
    ("hada_w2_a", Role::HadaW2A),
    ("hada_w2_b", Role::HadaW2B),
    ("hada_t1", Role::HadaT1),
    ("hada_t2", Role::HadaT2),
    ("lokr_w1", Role::LokrW1),
    ("lokr_w1_a", Role::LokrW1A),
    ("lokr_w1_b", Role::LokrW1B),
    ("lokr_w2", Role::LokrW2),
    ("lokr_w2_a", Role::LokrW2A),
    ("lokr_w2_b", Role::LokrW2B),
    ("lokr_t2", Role::LokrT2),
    ("ia3_l", Role::Ia3),
    ("trainable_tokens_delta", Role::Tokens),
    ("trainable_tokens_original", Role::Original),
];

/// Segments that training frameworks put into names.
const WRAPPERS: &[&str] = &["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "token_adapter"];

/// The name of an adapter's tensor, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The module's name in the base model, such as `model.layers.0.self_attn.q_proj`; for [`Role::Whole`] and
    /// [`Role::Original`] that of the parameter.
    pub module: String,
    /// How many wrappers of PEFT lie around the module, inside this one: for adapters of several parameters of a module.
    pub depth: usize,
    /// What the tensor is.
    pub role: Role,
}

impl Key {
    /// Takes a name apart. Every name has a meaning: one without a marker is a parameter's.
    pub(crate) fn parse(name: &str) -> Key {
        let segments: Vec<&str> = name.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect();
        let mut segments = segments.as_slice();
        while let ["base_model", "model", inner @ ..] | ["module", inner @ ..] = segments {
            segments = inner;
        }
        let marked = segments.iter().enumerate().rev().find_map(|(i, segment)| {
            let (_, role) = MARKERS.iter().find(|(marker, _)| marker == segment)?;
            // The adapter's name and the parameter's are all that may follow.
            let after = &segments[i + 1..];
            let role = match (role, after) {
                (Role::B, [.., "bias"]) if after.len() <= 2 => Role::BBias,
                (_, [] | [_] | [_, "weight"]) => *role,
                _ => return None,
            };
            (i > 0).then_some((i, role))
        });
        // MLX calls DoRA's magnitudes `m`.
        let marked = marked.or_else(|| match segments {
            [.., _, "m"] => Some((segments.len() - 1, Role::Magnitude)),
            _ => None,
        });
        let Some((marker, role)) = marked else { return Key::whole(segments) };
        let module: Vec<&str> = segments[..marker].iter().copied().filter(|s| *s != "base_layer").collect();
        Key { depth: marker - module.len(), module: module.join("."), role }
    }

    fn whole(segments: &[&str]) -> Key {
        let mut module = Vec::with_capacity(segments.len());
        let mut role = Role::Whole;
        let mut depth = 0;
        let mut segments = segments.iter();
        while let Some(segment) = segments.next() {
            match *segment {
                "base_layer" => depth += 1,
                "original_module" => role = Role::Original,
                // The next segment is the adapter's name, where there is one before the parameter's.
                "modules_to_save" if segments.len() > 1 => drop(segments.next()),
                "modules_to_save" => {}
                other => module.push(other),
            }
        }
        Key { module: module.join("."), depth, role }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_key_has_the_same_meaning() {
        for name in [
            "base_model.model.model.layers.0.q_proj.lora_A.weight",
            "model.layers.0.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.q_proj.lora_A.default.weight",
            "base_model.model.model.layers.0.q_proj.lora_A.my-adapter.weight",
            "_orig_mod.base_model.model.model.layers.0.q_proj.lora_A.weight",
            "base_model.model.model.layers.0._checkpoint_wrapped_module.q_proj.lora_A.weight",
            "module.base_model.model._orig_mod.model.layers.0.q_proj.lora_A.weight",
            "model.layers.0.q_proj.lora_down.weight",
        ] {
            let key = Key { module: "model.layers.0.q_proj".into(), depth: 0, role: Role::A };
            assert_eq!(Key::parse(name), key, "{name}");
        }
    }

    #[test]
    fn roles_are_told_apart() {
        for (name, module, role) in [
            ("m.x.lora_B.bias", "m.x", Role::BBias),
            ("m.x.lora_B.default.bias", "m.x", Role::BBias),
            ("m.embed.lora_embedding_A", "m.embed", Role::EmbeddingA),
            ("m.embed.lora_embedding_B.default", "m.embed", Role::EmbeddingB),
            ("m.x.lora_magnitude_vector", "m.x", Role::Magnitude),
            ("m.x.lora_magnitude_vector.default.weight", "m.x", Role::Magnitude),
            ("m.x.lora_a", "m.x", Role::MlxA),
            ("m.x.m", "m.x", Role::Magnitude),
            ("lora_unet_x_q_proj.alpha", "lora_unet_x_q_proj", Role::Alpha),
            ("m.embed.token_adapter.trainable_tokens_delta", "m.embed", Role::Tokens),
            ("m.lm_head.weight", "m.lm_head.weight", Role::Whole),
            ("m.lm_head.modules_to_save.default.weight", "m.lm_head.weight", Role::Whole),
            ("m.lm_head.modules_to_save.weight", "m.lm_head.weight", Role::Whole),
            ("m.lm_head.original_module.weight", "m.lm_head.weight", Role::Original),
            ("m.embed.base_layer.weight", "m.embed.weight", Role::Whole),
            ("lora_A.weight", "lora_A.weight", Role::Whole),
        ] {
            let key = Key::parse(name);
            assert_eq!((key.module.as_str(), key.role), (module, role), "{name}");
        }
    }

    #[test]
    fn nested_wrappers_are_counted() {
        let key = Key::parse("base_model.model.m.experts.base_layer.lora_B.weight");
        assert_eq!(key, Key { module: "m.experts".into(), depth: 1, role: Role::B });
    }
}
