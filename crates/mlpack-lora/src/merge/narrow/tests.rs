//! Rows merged with float32 products against the same in float64: on the CPU, and on GPUs that are functions.

use super::*;
use crate::merge::{BaseBytes, MergeRoom, Rows};
use crate::product::check::random;
use crate::{Adapter, ChangeTally, OverlayOptions};
use mlpack_safetensors::Checkpoint;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const NAME: &str = "model.layers.0.mlp.down_proj";

/// Float32 of all mantissas, with biased exponents from one on, in so many steps of two.
fn floats(seed: u64, count: usize, exponent: u32, steps: u32) -> Vec<f32> {
    let value = |i| {
        let z = random(seed << 32, i);
        f32::from_bits(z as u32 & 0x807f_ffff | (exponent + (z >> 32) as u32 % steps) << 23)
    };
    (0..count).map(value).collect()
}

/// A base of one bfloat16 tensor and a LoRA adapter of it.
struct Laid {
    base: Checkpoint,
    overlay: Overlay,
    dims: [usize; 3],
    _dir: tempfile::TempDir,
}

impl Laid {
    /// `left` is rows by rank, `right` rank by columns.
    fn new(dims: [usize; 3], left: &[f32], right: &[f32], factor: f64) -> Laid {
        let dir = tempfile::tempdir().unwrap();
        let [rows, rank, cols] = dims;
        let (base, adapter) = (dir.path().join("base"), dir.path().join("adapter"));
        [&base, &adapter].into_iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        write(
            &base.join("model.safetensors"),
            &[(format!("{NAME}.weight"), "BF16", [rows, cols], vec![0; rows * cols * 2])],
        );
        let key = |part: &str| format!("base_model.model.{NAME}.lora_{part}.weight");
        let factors = [(key("A"), "F32", [rank, cols], floats(right)), (key("B"), "F32", [rows, rank], floats(left))];
        write(&adapter.join("adapter_model.safetensors"), &factors);
        let config = format!(r#"{{"peft_type":"LORA","r":{rank},"lora_alpha":{rank}}}"#);
        std::fs::write(adapter.join("adapter_config.json"), config).unwrap();
        let base = Checkpoint::open(&base).unwrap();
        let options = OverlayOptions::default();
        let overlay = Overlay::new(vec![(Adapter::open(&adapter).unwrap(), factor)], &base, &options).unwrap();
        Laid { base, overlay, dims, _dir: dir }
    }

    fn is_narrow(&self) -> bool {
        self.overlay.asks_for_products(0, self.base.bytes(&self.base.tensors()[0]).len() as u64)
    }

    /// All rows in slabs of some; in float64 where there is a tally.
    fn merged(&self, base: &[u8], products: &ProductDevice, tally: Option<&ChangeTally>) -> Result<Vec<u8>, String> {
        let [rows, _, cols] = self.dims;
        let (mut out, mut room) = (vec![0; base.len()], MergeRoom::on(products.clone()));
        let numbers: Vec<u64> = (0..rows as u64).collect();
        for (numbers, out) in numbers.chunks(13).zip(out.chunks_mut(13 * cols * 2)) {
            let rows = Rows { numbers, row_len: cols as u64 };
            let merged = self.overlay.merge_rows(0, rows, BaseBytes::new(base), &mut room, tally, out);
            merged.map_err(|e| e.to_string())?;
        }
        Ok(out)
    }

    /// Bases that make trouble: every finite bfloat16, zeros, and what leaves nearly nothing of the sums or nearly a tie.
    fn bases(&self) -> Vec<Vec<u8>> {
        let [rows, _, cols] = self.dims;
        let count = rows * cols;
        let of_bits = |bits: &mut dyn Iterator<Item = u16>| bits.flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let zeros = vec![0; count * 2];
        let tally = ChangeTally::new(&self.overlay);
        let mut bases = vec![zeros.clone()];
        bases.push(of_bits(&mut (0..count).map(|i| match (i * 40_503 % 65_536) as u16 {
            bits if bits & 0x7f80 == 0x7f80 => bits & 0x807f,
            bits => bits,
        })));
        if let Ok(delta) = self.merged(&zeros, &ProductDevice::default(), Some(&tally)) {
            let changed = |change: &dyn Fn(u16) -> u16| {
                of_bits(&mut delta.as_chunks::<2>().0.iter().map(|bits| change(u16::from_le_bytes(*bits))))
            };
            bases.push(changed(&|bits| bits ^ 0x8000));
            // The sum is near the middle between two bfloat16, as the delta is half of the base's last bit.
            bases.push(changed(&|bits| (bits & 0x7f80).saturating_add(8 << 7).min(0x7f00) | 1));
            bases.push(delta);
        }
        bases
    }
}

fn write(path: &Path, tensors: &[(String, &str, [usize; 2], Vec<u8>)]) {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, dims, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{dims:?},"data_offsets":[{start},{}]}}"#,
            data.len()
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// Adds from right to left, fused, and takes for zero whatever is below the normal range.
fn flushing(left: &[f32], right: &[f32], [rows, rank, cols]: [usize; 3]) -> Result<Vec<f32>, String> {
    let flush = |v: f32| if v.is_normal() { v } else { 0.0 };
    let element = |i: usize| {
        let terms = (0..rank).rev().map(|k| (flush(left[i / cols * rank + k]), flush(right[k * cols + i % cols])));
        terms.fold(0.0, |sum: f32, (l, r)| flush(l.mul_add(r, sum)))
    };
    Ok((0..rows * cols).map(element).collect())
}

fn plain(left: &[f32], right: &[f32], [rows, rank, cols]: [usize; 3]) -> Result<Vec<f32>, String> {
    let tensor = |values: &[f32], dims: (usize, usize)| Tensor::from_slice(values, dims, &Device::Cpu);
    let product = tensor(left, (rows, rank)).and_then(|left| left.matmul(&tensor(right, (rank, cols))?));
    product.and_then(|product| product.flatten_all()?.to_vec1()).map_err(|e| e.to_string())
}

/// Adapters of a rank: plain ones, sums that cancel, values of all sizes, tiny ones and huge ones.
fn adapters(rank: usize) -> Vec<Laid> {
    let dims = [29, rank, 75];
    let [rows, _, cols] = dims;
    let factors = |seed, (left, right), steps| {
        (floats(seed, rows * rank, left, steps), floats(seed + 1, rank * cols, right, steps))
    };
    let mut laid = Vec::new();
    for (seed, exponents, steps, factor) in [
        (1, (121, 121), 4, 1.0),
        (3, (121, 121), 4, 0.7),
        (5, (90, 100), 60, -1.3),
        // Factors and products below the normal range.
        (7, (0, 0), 70, 1.0),
        (9, (0, 140), 12, 3.1),
        (11, (140, 0), 12, 1e5),
        (13, (0, 240), 3, 1e-9),
        // Beyond what bfloat16 holds, here and there.
        (15, (187, 187), 4, 1.0),
        (17, (250, 120), 4, 1e-5),
        // Factors that are not taken to float32.
        (19, (121, 121), 4, 1e-31),
    ] {
        let (left, right) = factors(seed + rank as u64, exponents, steps);
        laid.push(Laid::new(dims, &left, &right, factor));
    }
    let (mut left, mut right) = factors(21, (121, 121), 4);
    left.chunks_exact_mut(rank).for_each(|row| row.as_chunks_mut::<2>().0.iter_mut().for_each(|[a, b]| *b = *a));
    for pair in right.chunks_exact_mut(2 * cols) {
        let (a, b) = pair.split_at_mut(cols);
        b.iter_mut().zip(a).for_each(|(b, a)| *b = f32::from_bits((-*a).to_bits() ^ (b.to_bits() & 7)));
    }
    laid.push(Laid::new(dims, &left, &right, 1.0));
    // Powers of two: every sum is exact, and many are ties.
    let power = |v: &f32| f32::from_bits(v.to_bits() & 0xff80_0000);
    let (left, right): (Vec<f32>, Vec<f32>) = (left.iter().map(power).collect(), right.iter().map(power).collect());
    laid.push(Laid::new(dims, &left, &right, 0.5));
    laid
}

#[test]
fn products_of_any_device_give_the_bytes_of_float64() {
    let devices = [
        ("the CPU", ProductDevice::default()),
        ("candle", ProductDevice::model(Box::new(plain)).unwrap()),
        ("flushing", ProductDevice::model(Box::new(flushing)).unwrap()),
    ];
    let mut in_float32 = 0;
    for rank in [1, 2, 3, 16, 63, 64, 65, 200, 512, 513] {
        for (i, laid) in adapters(rank).into_iter().enumerate() {
            let tally = ChangeTally::new(&laid.overlay);
            for (b, base) in laid.bases().into_iter().enumerate() {
                let expected = laid.merged(&base, &ProductDevice::default(), Some(&tally));
                for (name, device) in &devices {
                    let run = device.for_run();
                    let found = laid.merged(&base, &run, None);
                    assert!(found == expected, "{name}: rank {rank}, adapter {i}, base {b}");
                    let (products, None) = run.used() else { panic!("{name}: {:?}", run.used()) };
                    assert!(products == 0 || laid.is_narrow() && device.gpu_name().is_some());
                    in_float32 += products;
                }
            }
        }
    }
    assert!(in_float32 > 1000, "{in_float32}");
}

#[test]
fn what_a_device_is_asked_for() {
    let ordinary = |rank, factor| {
        let dims = [29, rank, 75];
        Laid::new(dims, &floats(1, 29 * rank, 121, 4), &floats(2, rank * 75, 121, 4), factor)
    };
    for (rank, narrow) in [(1, true), (64, true), (65, true), (512, true), (513, false)] {
        assert_eq!(ordinary(rank, 1.0).is_narrow(), narrow, "rank {rank}");
    }
    for factor in [1e6, 1e-31] {
        assert!(!ordinary(8, factor).is_narrow());
    }
    let gpu = ProductDevice::model(Box::new(plain)).unwrap();
    // Three slabs, each with a product; but of values whose sums could become infinite on the way, none.
    let run = gpu.for_run();
    let base = vec![0; 29 * 75 * 2];
    ordinary(8, 1.0).merged(&base, &run, None).unwrap();
    assert!(matches!(run.used(), (3, None)), "{:?}", run.used());
    let seen = Arc::new(AtomicU64::new(0));
    let largest = Arc::clone(&seen);
    let watching = ProductDevice::model(Box::new(move |left, right, dims| {
        let bits = left.iter().chain(right).map(|v| u64::from(v.abs().to_bits())).max().unwrap();
        largest.fetch_max(bits, Ordering::Relaxed);
        plain(left, right, dims)
    }));
    let run = watching.unwrap().for_run();
    seen.store(0, Ordering::Relaxed);
    let laid = Laid::new([29, 2, 75], &floats(1, 58, 190, 4), &floats(2, 150, 190, 4), 1e-20);
    laid.merged(&base, &run, None).unwrap();
    assert!(laid.is_narrow() && matches!(run.used(), (0, None)), "{:?}", run.used());
    assert_eq!(seen.load(Ordering::Relaxed), 0);
}

#[test]
fn a_device_that_fails_after_any_product_leaves_the_rest_to_the_cpu() {
    let laid = adapters(16).remove(1);
    let base = laid.bases().remove(1);
    let expected = laid.merged(&base, &ProductDevice::default(), None).unwrap();
    let opening = crate::product::check::cases().count() as u64;
    for succeed in 0..4 {
        let asked = AtomicU64::new(0);
        let device = ProductDevice::model(Box::new(move |left, right, dims| {
            match asked.fetch_add(1, Ordering::Relaxed) < opening + succeed {
                true => plain(left, right, dims),
                false => Err("gone".to_owned()),
            }
        }));
        let run = device.unwrap().for_run();
        assert!(laid.merged(&base, &run, None).unwrap() == expected, "after {succeed}");
        let (products, error) = run.used();
        assert_eq!((products, error.is_some()), (succeed.min(3), succeed < 3));
    }
}
