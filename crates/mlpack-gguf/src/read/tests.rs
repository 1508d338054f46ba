//! What is read back equals what was laid out; what is broken is refused with its place.

use super::*;
use crate::{Layout, TensorSpec};
use proptest::prelude::*;

fn write(metadata: &Metadata, tensors: Vec<TensorSpec>) -> Vec<u8> {
    let layout = Layout::new(metadata, tensors).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.byte_len() as usize, 0);
    bytes
}

fn sample() -> (Metadata, Vec<TensorSpec>) {
    let mut m = Metadata::new();
    m.set("general.architecture", "gpt-oss".into());
    m.set("gpt-oss.block_count", 24u32.into());
    m.set("Upper__case", vec!["a".to_owned(), String::new()].into());
    m.set("nested", MetaValue::Array(MetaArray::Array(vec![MetaArray::U8(vec![1]), MetaArray::F32(vec![])])));
    m.set("flag", true.into());
    let tensors = vec![
        TensorSpec { name: "a".into(), ty: GgmlType::Q4_K, shape: Shape::new(vec![2, 256]) },
        TensorSpec { name: "b".into(), ty: GgmlType::F32, shape: Shape::new(vec![3]) },
    ];
    (m, tensors)
}

#[test]
fn reads_back_what_was_laid_out_in_order() {
    let (m, tensors) = sample();
    let bytes = write(&m, tensors.clone());
    let (read, table, data_start) = parse(&bytes).unwrap();
    assert_eq!(read, m);
    let layout = Layout::new(&m, tensors).unwrap();
    assert_eq!(data_start as usize, layout.header().len());
    for (tensor, slot) in table.iter().zip(layout.tensors()) {
        assert_eq!((&tensor.name, &tensor.range), (&slot.spec.name, &slot.range));
    }
}

#[test]
fn every_truncation_is_an_error_and_never_a_panic() {
    let (m, tensors) = sample();
    let bytes = write(&m, tensors);
    // The zeros after the last tensor are not needed to read it.
    for len in 0..bytes.len() - 32 {
        assert!(parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let (m, tensors) = sample();
    let mut bytes = write(&m, tensors);
    bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(parse(&bytes), Err((field, Problem::Read(_))) if field == "metadata count"));
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    bytes[16..24].copy_from_slice(&0u64.to_le_bytes());
    assert!(matches!(parse(&bytes), Err((field, Problem::Read(_))) if field == "tensor count"));
}

#[test]
fn refuses_other_files_and_versions() {
    assert!(matches!(parse(b"PK\x03\x04"), Err((_, Problem::Magic { .. }))));
    assert!(matches!(parse(b""), Err((_, Problem::Magic { .. }))));
    let mut bytes = write(&Metadata::new(), vec![]);
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    let (_, problem) = parse(&bytes).unwrap_err();
    assert!(problem.to_string().contains("big-endian"), "{problem}");
}

#[test]
fn refuses_overlapping_unaligned_and_duplicate_tensors() {
    let offset_of_second = |bytes: &[u8]| {
        // The last eight bytes of the table are the second tensor's offset; the table ends before the padding.
        let needle = 288u64.to_le_bytes();
        bytes.windows(8).rposition(|w| w == needle).unwrap()
    };
    let (m, tensors) = sample();
    let bytes = write(&m, tensors);
    let i = offset_of_second(&bytes);
    let with = |offset: u64| {
        let mut b = bytes.clone();
        b[i..i + 8].copy_from_slice(&offset.to_le_bytes());
        parse(&b).unwrap_err().1
    };
    assert!(matches!(with(256), Problem::Overlap { other_end: 288, offset: 256, .. }));
    assert!(matches!(with(289), Problem::Unaligned { .. }));
    assert!(matches!(with(1 << 40), Problem::OutOfRange { .. }));
    assert!(matches!(with(u64::MAX - 31), Problem::OutOfRange { .. }));
}

#[test]
fn an_independent_reader_reads_the_same() {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama".into());
    m.set("llama.block_count", 2u32.into());
    m.set("tokenizer.ggml.tokens", vec!["a".to_owned(), "b".to_owned()].into());
    let tensors = vec![TensorSpec { name: "output_norm.weight".into(), ty: GgmlType::F32, shape: Shape::new(vec![8]) }];
    let bytes = write(&m, tensors);
    let other = gguf_rs_lib::reader::GGUFFileReader::new(std::io::Cursor::new(bytes)).unwrap();
    assert_eq!(other.metadata().get_string("general.architecture"), Some("llama"));
    assert_eq!(other.metadata().get_u64("llama.block_count"), Some(2));
    assert_eq!(other.tensor_infos().len(), 1);
    assert_eq!(other.tensor_infos()[0].name(), "output_norm.weight");
}

fn value() -> impl Strategy<Value = MetaValue> {
    prop_oneof![
        any::<u8>().prop_map(MetaValue::from),
        any::<i64>().prop_map(MetaValue::from),
        any::<bool>().prop_map(MetaValue::from),
        ".*".prop_map(MetaValue::String),
        proptest::collection::vec(any::<u32>(), 0..4).prop_map(MetaValue::from),
        proptest::collection::vec(".{0,3}", 0..4).prop_map(MetaValue::from),
        proptest::collection::vec(any::<bool>(), 0..4).prop_map(MetaValue::from),
        (-1e30f64..1e30).prop_map(MetaValue::from),
    ]
}

#[test]
fn refuses_an_alignment_that_is_no_power_of_two() {
    for value in [0u32.into(), 48u32.into(), 32u64.into(), MetaValue::from("32")] {
        let mut m = Metadata::new();
        m.set("general.alignmenT", value.clone());
        let mut bytes = write(&m, vec![]);
        let at = bytes.windows(17).position(|w| w == b"general.alignmenT").unwrap();
        bytes[at + 16] = b't';
        let (field, problem) = parse(&bytes).unwrap_err();
        assert_eq!(field, "key `general.alignment`");
        assert_eq!(problem.to_string(), format!("expected a u32 power of two\n  found:    {value}"));
    }
}

#[test]
fn reads_a_file_with_another_alignment() {
    let (mut m, tensors) = sample();
    m.set("general.alignment", 1024u32.into());
    let bytes = write(&m, tensors);
    let (_, table, data_start) = parse(&bytes).unwrap();
    assert_eq!(
        (data_start % 1024, table[1].range.start - data_start, bytes.len() as u64),
        (0, 1024, data_start + 2048)
    );
}

#[test]
fn absurd_dimensions_are_refused() {
    let (m, _) = sample();
    let spec = TensorSpec { name: "a".into(), ty: GgmlType::F32, shape: Shape::new(vec![77, 99]) };
    let bytes = write(&m, vec![spec]);
    let at = |n: u64| bytes.windows(8).rposition(|w| w == n.to_le_bytes()).unwrap();
    let with = |inner: u64, outer: u64| {
        let mut b = bytes.clone();
        let (i, j) = (at(99), at(77));
        b[i..i + 8].copy_from_slice(&inner.to_le_bytes());
        b[j..j + 8].copy_from_slice(&outer.to_le_bytes());
        parse(&b).unwrap_err().1
    };
    assert!(matches!(with(1 << 60, 1), Problem::OutOfRange { .. }));
    assert!(matches!(with(1 << 62, 4), Problem::Size { .. }), "2^66 bytes");
    assert!(matches!(with(1 << 32, 1 << 32), Problem::Size { .. }), "2^66 bytes");
}

proptest! {
    #[test]
    fn metadata_round_trips(entries in proptest::collection::vec((".{1,8}", value()), 0..6)) {
        let mut m = Metadata::new();
        m.extend(entries);
        let (read, _, _) = parse(&write(&m, vec![])).unwrap();
        prop_assert_eq!(read, m);
    }

    #[test]
    fn damaged_files_are_errors_or_read_within_their_bounds(damage in proptest::collection::vec(damage(), 1..5)) {
        let (m, tensors) = sample();
        let mut bytes = write(&m, tensors);
        for damage in damage {
            if !bytes.is_empty() {
                apply(&mut bytes, damage);
            }
        }
        match parse(&bytes) {
            Err((field, problem)) => prop_assert!(!field.is_empty() && !problem.to_string().is_empty()),
            Ok((metadata, tensors, data_start)) => {
                // Every key and tensor takes bytes of the file, so neither can be more than those.
                prop_assert!(metadata.len() * 14 + tensors.len() * 33 <= bytes.len());
                let mut ranges: Vec<_> = tensors.iter().map(|t| t.range.clone()).collect();
                ranges.sort_by_key(|r| (r.start, r.end));
                prop_assert!(ranges.iter().all(|r| data_start <= r.start && r.end <= bytes.len() as u64));
                prop_assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start));
                // What was read can be written, unless it asks for an alignment that is not written.
                let spec = |t: &Tensor| TensorSpec { name: t.name.clone(), ty: t.ty, shape: t.shape.clone() };
                match Layout::new(&metadata, tensors.iter().map(spec).collect()) {
                    Ok(layout) => prop_assert_eq!(layout.tensors().len(), tensors.len()),
                    Err(e) => prop_assert!(matches!(e, crate::LayoutError::Alignment { .. }), "{}", e),
                }
            }
        }
    }
}

/// One way to damage a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Number(usize, u64),
    Cut(usize),
    Splice(usize, usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let number = prop_oneof![Just(0), Just(u64::MAX), Just(1 << 60), Just(1 << 32), Just((1 << 61) + 1), any::<u64>()];
    prop_oneof![
        (any::<usize>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<usize>(), number).prop_map(|(at, number)| Damage::Number(at, number)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), any::<usize>(), 1usize..80).prop_map(|(from, to, len)| Damage::Splice(from, to, len)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: Damage) {
    let len = bytes.len();
    match damage {
        Damage::Flip(at, bit) => bytes[at % len] ^= 1 << bit,
        Damage::Number(at, number) => {
            let at = at % len;
            let n = 8.min(len - at);
            bytes[at..at + n].copy_from_slice(&number.to_le_bytes()[..n]);
        }
        Damage::Cut(at) => bytes.truncate(at % len),
        Damage::Splice(from, to, n) => {
            let piece: Vec<u8> = bytes[from % len..].iter().take(n).copied().collect();
            bytes.splice(to % len..to % len, piece);
        }
    }
}
