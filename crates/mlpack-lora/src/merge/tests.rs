//! The merge of a real adapter, element by element, against a reference with twice the precision.

use super::*;
use crate::Adapter;
use mlpack_safetensors::Checkpoint;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa").join(name)
}

fn merge(base: &Checkpoint, overlay: &Overlay, position: usize, rows: &[u64]) -> Vec<u8> {
    let tensor = &base.tensors()[position];
    let row_byte_len = (tensor.shape.row_len() * tensor.dtype.byte_size()) as usize;
    let base_rows: Vec<u8> =
        rows.iter().flat_map(|&r| &base.bytes(tensor)[r as usize * row_byte_len..][..row_byte_len]).copied().collect();
    let mut out = vec![0; base_rows.len()];
    overlay.merge_rows(position, tensor, rows, &base_rows, &mut Vec::new(), &mut out).unwrap();
    out
}

/// A sum as an unevaluated pair of float64, about 106 bits (Knuth's TwoSum).
#[derive(Clone, Copy)]
struct Wide(f64, f64);

impl Wide {
    fn add(self, x: f64) -> Wide {
        let s = self.0 + x;
        let t = s - self.0;
        let e = (self.0 - (s - t)) + (x - t);
        Wide(s, self.1 + e)
    }

    /// The nearest bfloat16, ties to even, by distance to the candidates around the sum.
    fn to_bf16(self) -> u16 {
        let guess = half::bf16::from_f32(self.0 as f32).to_bits();
        let value = |b: u16| f64::from(half::bf16::from_bits(b).to_f32());
        let distance = |b: u16| ((self.0 - value(b)) + self.1).abs();
        [guess.wrapping_sub(1), guess, guess.wrapping_add(1)]
            .into_iter()
            .filter(|b| value(*b).is_finite())
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1))))
            .unwrap()
    }
}

#[test]
fn no_merged_element_of_the_legal_qa_adapter_is_off() {
    let base = Checkpoint::open(&fixture("kjv-llama")).unwrap();
    let overlay = Overlay::new(vec![(Adapter::open(&fixture("legal-qa-lora")).unwrap(), 1.0)], &base).unwrap();
    let mut elements = 0;
    for position in overlay.changed() {
        let tensor = &base.tensors()[position];
        let rows: Vec<u64> = (0..tensor.shape.dims()[0]).collect();
        let merged = merge(&base, &overlay, position, &rows);
        let [change] = overlay.changes(position) else { panic!("one adapter") };
        let weights = overlay.adapters()[0].0.weights();
        let floats = |entry: &Entry| -> Vec<f64> {
            weights.bytes(entry).as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        };
        let (a, b) = (floats(&change.pair.a), floats(&change.pair.b));
        let (cols, rank) = (tensor.shape.row_len() as usize, change.pair.a.shape.dims()[0] as usize);
        assert_eq!(change.scale, 2.0, "a power of two, so scaling a product is exact");
        for (i, (bytes, base)) in
            merged.as_chunks::<2>().0.iter().zip(base.bytes(tensor).as_chunks::<2>().0).enumerate()
        {
            let (row, col) = (i / cols, i % cols);
            let w = f64::from(half::bf16::from_le_bytes(*base).to_f32());
            let exact = (0..rank).fold(Wide(w, 0.0), |s, k| s.add(2.0 * b[row * rank + k] * a[k * cols + col]));
            assert_eq!(u16::from_le_bytes(*bytes), exact.to_bf16(), "{} [{row}, {col}]", tensor.name);
        }
        elements += merged.len() / 2;
    }
    assert_eq!(elements, 1_081_344);
}

#[test]
fn slabs_and_row_order_do_not_change_a_bit() {
    let base = Checkpoint::open(&fixture("kjv-llama")).unwrap();
    let overlay = Overlay::new(vec![(Adapter::open(&fixture("legal-qa-lora")).unwrap(), 0.7)], &base).unwrap();
    let position = base.position("model.layers.1.mlp.down_proj.weight").unwrap();
    let rows: Vec<u64> = (0..256).collect();
    let whole = merge(&base, &overlay, position, &rows);
    for slab in [1, 7, 100] {
        let pieces: Vec<u8> = rows.chunks(slab).flat_map(|r| merge(&base, &overlay, position, r)).collect();
        assert!(pieces == whole, "slabs of {slab} rows");
    }
    let reversed: Vec<u64> = rows.iter().rev().copied().collect();
    let row_byte_len = whole.len() / 256;
    let back: Vec<u8> = merge(&base, &overlay, position, &reversed).rchunks(row_byte_len).flatten().copied().collect();
    assert!(back == whole);
}

#[test]
fn an_adapter_of_another_base_is_refused_with_every_shape() {
    let base = Checkpoint::open(&fixture("kjv-llama")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("legal-qa-lora/adapter_model.safetensors"), dir.path().join("adapter_model.safetensors"))
        .unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), r#"{"peft_type":"LORA","r":4,"lora_alpha":8}"#).unwrap();
    let adapter = Adapter::open(dir.path()).unwrap();
    match Overlay::new(vec![(adapter, 1.0)], &base) {
        Err(Error::Misfit { misfits, .. }) => assert_eq!(misfits.len(), 24, "A and B of 12 modules"),
        other => panic!("{other:?}"),
    }
}
