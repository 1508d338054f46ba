//! Every type against digests of what ggml b11434 itself encodes and decodes, and against the random blocks that it finds
//! invalid (`golden/make_golden.py`).

mod inputs;

use mlpack_fs::Sha256;
use mlpack_quant::{
    Backend, can_decode, can_encode, decode_on, encode_on, first_invalid_block, needs_importance, uses_importance,
};
use mlpack_tensor::GgmlType;

const GOLDEN: &str = include_str!("golden/golden.txt");

fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    Sha256::of_parts(parts).to_string()[..12].to_owned()
}

fn encoded(backend: Backend, ty: GgmlType, case: &str, kind: &str) -> String {
    let parts: Vec<Vec<u8>> = inputs::row_lens(ty.block_len())
        .into_iter()
        .map(|row_len| {
            let x = inputs::values(case, row_len);
            let importance = (kind != "none").then(|| inputs::importance(kind, case, row_len));
            let mut out = vec![0xa5; ty.row_byte_len(x.len() as u64).unwrap() as usize];
            encode_on(backend, ty, &x, row_len, importance.as_deref(), &mut out).unwrap();
            out
        })
        .collect();
    digest(parts.iter().map(Vec::as_slice))
}

#[test]
fn encoding_equals_ggml_on_every_backend() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for line in GOLDEN.lines().filter_map(|l| l.strip_prefix("encode ")) {
        let mut words = line.split(' ');
        let ty = GgmlType::from_name(words.next().unwrap()).unwrap();
        let case = words.next().unwrap();
        if !can_encode(ty) {
            continue;
        }
        for (kind, expected) in words.map(|field| field.split_once('=').unwrap()) {
            for backend in Backend::available() {
                checked += 1;
                if encoded(backend, ty, case, kind) != expected {
                    wrong.push(format!("{backend:?} {ty} {case} {kind}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked} differ from ggml:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 2000, "only {checked} digests were compared");
}

#[test]
fn the_golden_file_covers_every_encoder_and_every_case() {
    for &ty in GgmlType::ALL.iter().filter(|&&ty| can_encode(ty)) {
        for case in inputs::CASES {
            let start = format!("encode {ty} {case} ");
            let line = GOLDEN.lines().find(|l| l.starts_with(&start)).unwrap_or_else(|| panic!("no `{start}`"));
            assert_eq!(line.contains("none="), !needs_importance(ty), "{line}");
            assert_eq!(line.contains("wide="), uses_importance(ty), "{line}");
        }
    }
}

fn random_blocks(ty: GgmlType) -> Vec<u8> {
    let len = 256 * ty.block_byte_len() as usize;
    let words = 0..len.div_ceil(8) as u64;
    words.flat_map(|i| inputs::word(u64::from(ty.id()), i).to_le_bytes()).take(len).collect()
}

#[test]
fn decoding_random_blocks_equals_ggml() {
    let mut wrong = Vec::new();
    for &ty in GgmlType::ALL.iter().filter(|&&ty| can_decode(ty)) {
        let start = format!("decode {ty} ");
        let expected = GOLDEN.lines().find_map(|l| l.strip_prefix(&start)).unwrap_or_else(|| panic!("no `{start}`"));
        let bytes = random_blocks(ty);
        for backend in Backend::available() {
            let mut values = vec![0.0f32; 256 * ty.block_len() as usize];
            decode_on(backend, ty, &bytes, &mut values).unwrap();
            let values: Vec<[u8; 4]> = values
                .into_iter()
                .map(|v| if v.is_nan() { 0x7fc0_0000u32.to_le_bytes() } else { v.to_le_bytes() })
                .collect();
            if digest([values.as_flattened()]) != expected {
                wrong.push(format!("{backend:?} {ty}"));
            }
        }
    }
    assert!(wrong.is_empty(), "decoding differs from ggml for {wrong:?}");
}

#[test]
fn the_invalid_ones_of_random_blocks_are_those_of_ggml() {
    for &ty in GgmlType::ALL.iter().filter(|&&ty| can_decode(ty)) {
        let start = format!("invalid {ty}");
        let expected = GOLDEN.lines().find_map(|l| l.strip_prefix(&start)).unwrap_or_else(|| panic!("no `{start}`"));
        let expected: Vec<usize> = expected.split_ascii_whitespace().map(|word| word.parse().unwrap()).collect();
        let (bytes, size) = (random_blocks(ty), ty.block_byte_len() as usize);
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(at) = first_invalid_block(ty, &bytes[from * size..]) {
            found.push(from + at);
            from += at + 1;
        }
        assert_eq!(found, expected, "{ty}");
    }
}
