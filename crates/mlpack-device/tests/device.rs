//! What surrounds the kernels, on a model of a driver that does nothing before somebody waits for it: tiles, lanes, memory,
//! merging, and everything that can go wrong.

use mlpack_device::{Delta, Device, Error, HostModel, Limits, Outcome, Output, Slab};
use mlpack_lora::round_to;
use mlpack_quant::{Backend, encode_on, widen};
use mlpack_tensor::{Dtype, GgmlType};

const LIMITS: Limits = Limits { memory: None, lanes: 2 };

/// Uniform values of a counter (splitmix64).
fn uniform(seed: u64, i: u64) -> f32 {
    let mut z = (seed << 32).wrapping_add(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(i + 1));
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ z >> 31) >> 40) as f32 / 16_777_216.0 - 0.5
}

fn uniforms(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    (0..len as u64).map(|i| uniform(seed, i) * scale).collect()
}

/// Values as a checkpoint stores them.
fn stored(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let wide: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    let mut out = vec![0; values.len() * dtype.byte_size() as usize];
    round_to(dtype, &wide, &mut out).unwrap();
    out
}

/// A low-rank difference.
struct LowRank {
    rank: usize,
    left: Vec<f32>,
    right: Vec<f32>,
    factor: f64,
}

impl LowRank {
    fn new(seed: u64, rank: usize, rows: usize, cols: usize) -> LowRank {
        let (left, right) = (uniforms(seed, rows * rank, 0.1), uniforms(seed + 1, rank * cols, 0.1));
        LowRank { rank, left, right, factor: 1.7 / rank as f64 }
    }
}

/// The definition: products in float64, summed in the order of the ranks and in stretches of 512, and one rounding.
fn merged(dtype: Dtype, base: &[u8], cols: usize, deltas: &[LowRank]) -> Vec<u8> {
    let count = base.len() / dtype.byte_size() as usize;
    let mut floats = vec![0.0; count];
    widen(dtype, base, &mut floats).unwrap();
    let sums: Vec<f64> = (0..count)
        .map(|i| {
            let (row, col) = (i / cols, i % cols);
            let mut change = 0.0;
            for d in deltas {
                let terms: Vec<f64> = (0..d.rank)
                    .map(|k| f64::from(d.left[row * d.rank + k]) * f64::from(d.right[k * cols + col]))
                    .collect();
                let stretches = terms.chunks(512).map(|terms| terms.iter().fold(0.0, |sum, term| sum + term));
                change += d.factor * stretches.reduce(|a, b| a + b).unwrap();
            }
            f64::from(floats[i]) + change
        })
        .collect();
    let mut out = vec![0; base.len()];
    round_to(dtype, &sums, &mut out).unwrap();
    out
}

fn encoded(ty: GgmlType, dtype: Dtype, rows: &[u8], cols: usize) -> Vec<u8> {
    let mut floats = vec![0.0; rows.len() / dtype.byte_size() as usize];
    widen(dtype, rows, &mut floats).unwrap();
    let mut out = vec![0; ty.row_byte_len(floats.len() as u64).unwrap() as usize];
    encode_on(Backend::Scalar, ty, &floats, cols, None, &mut out).unwrap();
    out
}

/// Merges on a device, and encodes what comes out to a type.
fn run(
    device: &Device,
    (dtype, base, cols): (Dtype, &[u8], usize),
    deltas: &[LowRank],
    ty: GgmlType,
) -> Result<(Outcome, Vec<u8>, Vec<u8>), Error> {
    let rights: Vec<_> = deltas.iter().map(|d| || d.right.clone()).collect();
    let deltas: Vec<Delta<'_>> = deltas
        .iter()
        .zip(&rights)
        .enumerate()
        .map(|(i, (d, right))| Delta { panel: (i, d.rank), rank: d.rank, left: &d.left, right, factor: d.factor })
        .collect();
    let elements = (base.len() / dtype.byte_size() as usize) as u64;
    let (mut rows, mut blocks) = (vec![0; base.len()], vec![0; ty.row_byte_len(elements).unwrap() as usize]);
    let outcome = {
        let slab = Slab { dtype, pieces: &[base], row_len: cols, deltas: &deltas };
        let encoded = Output::Encoded { ty, importance: None, bytes: &mut blocks };
        device.run(&slab, &mut [Output::Stored(&mut rows), encoded])?
    };
    Ok((outcome, rows, blocks))
}

#[test]
fn merged_rows_have_the_bytes_of_one_rounding() {
    let (rows, cols) = (19, 256);
    for (fast, slow_doubles) in [("float64", 2), ("float32 with a bound", 64)] {
        let model = HostModel::new();
        model.set("slow_doubles", slow_doubles);
        let device = model.open(0, LIMITS).unwrap();
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
            for ranks in [vec![1], vec![16], vec![64], vec![65], vec![1100], vec![8, 600, 3, 16]] {
                let base = stored(dtype, &uniforms(7, rows * cols, 0.2));
                let deltas: Vec<LowRank> =
                    ranks.iter().map(|rank| LowRank::new(100 + *rank as u64, *rank, rows, cols)).collect();
                let expected = merged(dtype, &base, cols, &deltas);
                let (outcome, found, blocks) = run(&device, (dtype, &base, cols), &deltas, GgmlType::Q6_K).unwrap();
                assert_eq!(outcome, Outcome::Done);
                assert!(found == expected, "{dtype} ranks {ranks:?} in {fast}");
                assert!(blocks == encoded(GgmlType::Q6_K, dtype, &expected, cols), "{dtype} ranks {ranks:?}");
                assert_ne!(found, base);
            }
        }
    }
}

#[test]
fn sums_in_float32_are_the_exact_ones_next_to_ties_and_where_they_cancel() {
    let (rows, cols, rank) = (64, 512, 32);
    let model = HostModel::new();
    model.set("slow_doubles", 64);
    let device = model.open(0, LIMITS).unwrap();
    let mut deltas = [LowRank::new(5, rank, rows, cols)];
    // Factors of few bits give sums that are ties of bfloat16, and bases that cancel them.
    deltas[0].left.iter_mut().for_each(|v| *v = (*v * 64.0).round() / 64.0);
    deltas[0].right.iter_mut().for_each(|v| *v = (*v * 64.0).round() / 64.0);
    deltas[0].factor = 0.5;
    let zeros = stored(Dtype::BF16, &vec![0.0; rows * cols]);
    let change = merged(Dtype::BF16, &zeros, cols, &deltas);
    let mut cancelling = vec![0.0; rows * cols];
    widen(Dtype::BF16, &change, &mut cancelling).unwrap();
    cancelling.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % 3 == 0 { -1.0 } else { 256.0 });
    for base in [zeros, stored(Dtype::BF16, &cancelling)] {
        let expected = merged(Dtype::BF16, &base, cols, &deltas);
        let (_, found, _) = run(&device, (Dtype::BF16, &base, cols), &deltas, GgmlType::Q8_0).unwrap();
        assert!(found == expected);
    }
}

#[test]
fn tiles_and_pieces_change_no_byte_and_memory_stays_within_its_limit() {
    let (rows, cols) = (600, 512);
    let base = stored(Dtype::BF16, &uniforms(3, rows * cols, 0.3));
    let deltas = [LowRank::new(9, 16, rows, cols)];
    let expected = merged(Dtype::BF16, &base, cols, &deltas);
    let blocks = encoded(GgmlType::Q4_K, Dtype::BF16, &expected, cols);
    let mut launches = Vec::new();
    for memory in [None, Some(4 << 20), Some(400 << 10)] {
        let model = HostModel::new();
        let device = model.open(0, Limits { memory, ..LIMITS }).unwrap();
        let (_, found, found_blocks) = run(&device, (Dtype::BF16, &base, cols), &deltas, GgmlType::Q4_K).unwrap();
        assert!(found == expected && found_blocks == blocks, "{memory:?}");
        assert!(model.get("used") <= memory.unwrap_or(u64::MAX), "{memory:?}: {}", model.get("used"));
        launches.push(model.get("launched"));
        drop(device);
        assert_eq!(model.get("used"), 0, "everything is given back");
    }
    assert!(launches[0] < launches[1] && launches[1] < launches[2], "{launches:?}");
    // Rows in another order, in pieces of one and of several rows.
    let row = cols * 2;
    let pieces: Vec<&[u8]> = [&base[row * 500..row * 600], &base[row * 7..row * 8], &base[..row * 3]].to_vec();
    let model = HostModel::new();
    let device = model.open(0, Limits { memory: Some(400 << 10), lanes: 1 }).unwrap();
    let mut bytes = vec![0; 104 * cols / 256 * 144];
    let slab = Slab { dtype: Dtype::BF16, pieces: &pieces, row_len: cols, deltas: &[] };
    let mut outputs = [Output::Encoded { ty: GgmlType::Q4_K, importance: None, bytes: &mut bytes }];
    assert_eq!(device.run(&slab, &mut outputs).unwrap(), Outcome::Done);
    assert!(bytes == encoded(GgmlType::Q4_K, Dtype::BF16, &pieces.concat(), cols));
}

#[test]
fn rows_that_nothing_is_added_to_come_back_as_they_are() {
    let (rows, cols) = (70, 256);
    let base = stored(Dtype::F16, &uniforms(3, rows * cols, 0.3));
    let model = HostModel::new();
    let device = model.open(0, Limits { memory: Some(200 << 10), lanes: 1 }).unwrap();
    let (outcome, found, blocks) = run(&device, (Dtype::F16, &base, cols), &[], GgmlType::Q5_K).unwrap();
    assert_eq!(outcome, Outcome::Done);
    assert!(found == base && blocks == encoded(GgmlType::Q5_K, Dtype::F16, &base, cols));
}

#[test]
fn more_threads_than_lanes_take_turns() {
    let (rows, cols) = (64, 256);
    let model = HostModel::new();
    let device = model.open(0, LIMITS).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..5 {
            let device = &device;
            scope.spawn(move || {
                for turn in 0..8 {
                    let base = stored(Dtype::F16, &uniforms(thread * 100 + turn, rows * cols, 0.3));
                    let deltas = [LowRank::new(11, 4, rows, cols)];
                    let expected = merged(Dtype::F16, &base, cols, &deltas);
                    let (_, found, _) = run(device, (Dtype::F16, &base, cols), &deltas, GgmlType::Q8_0).unwrap();
                    assert!(found == expected, "thread {thread}, turn {turn}");
                }
            });
        }
    });
    // The panel was copied once; the halves' memory is that of two lanes.
    assert!(model.get("allocations") <= 1 + 4, "{}", model.get("allocations"));
}

#[test]
fn a_sum_that_is_not_finite_is_seen() {
    let (rows, cols) = (4, 256);
    for slow_doubles in [2, 64] {
        let model = HostModel::new();
        model.set("slow_doubles", slow_doubles);
        let device = model.open(0, LIMITS).unwrap();
        let base = stored(Dtype::BF16, &vec![3.3e38; rows * cols]);
        let mut deltas = [LowRank::new(1, 2, rows, cols)];
        deltas[0].left.fill(0.0);
        let (outcome, found, _) = run(&device, (Dtype::BF16, &base, cols), &deltas, GgmlType::F32).unwrap();
        assert_eq!(outcome, Outcome::Done);
        assert!(found == base);
        deltas[0].left[3] = 1e20;
        deltas[0].right.fill(1e19);
        // The first one keeps the right factor that it has.
        let fresh = model.open(0, LIMITS).unwrap();
        let (outcome, ..) = run(&fresh, (Dtype::BF16, &base, cols), &deltas, GgmlType::F32).unwrap();
        assert_eq!(outcome, Outcome::NotFinite);
    }
}

#[test]
fn what_is_wrong_with_a_driver_or_a_device_is_named() {
    let wrong = |settings: &[(&str, u64)], index: u32| {
        let model = HostModel::new();
        settings.iter().for_each(|(name, value)| model.set(name, *value));
        model.open(index, LIMITS).unwrap_err().to_string()
    };
    assert_eq!(
        wrong(&[("version", 12040)], 0),
        "the CUDA driver is too old\n  expected: a driver for CUDA 13.0 or later\n  found:    one for CUDA 12.4"
    );
    assert_eq!(wrong(&[], 7), "there is no GPU cuda:7\n  expected: one of cuda:0\n  found:    host model 0");
    assert_eq!(
        wrong(&[("devices", 2)], 2),
        "there is no GPU cuda:2\n  expected: one of cuda:0, cuda:1\n  found:    host model 0, host model 1"
    );
    assert_eq!(
        wrong(&[("major", 6), ("minor", 1)], 0),
        "the GPU `host model 0` is too old\n  expected: compute capability 7.5 or later\n  found:    6.1"
    );
    for (setting, found) in [(("devices", 0), "no device"), (("init", 100), "CUDA_ERROR_NO_DEVICE")] {
        let expected = format!("the CUDA driver has no device\n  expected: a GPU\n  found:    {found}");
        assert_eq!(wrong(&[setting], 0), expected);
    }
    let missing = HostModel::new().open_missing().unwrap_err();
    assert!(matches!(&missing, Error::NoDriver { reason, .. } if reason.contains("No such file")), "{missing}");
}

#[test]
fn too_little_memory_and_a_failing_device_are_errors_that_name_what_was_found() {
    let (rows, cols) = (16, 4096);
    let base = stored(Dtype::BF16, &uniforms(3, rows * cols, 0.3));
    let encode = |device: &Device| run(device, (Dtype::BF16, &base, cols), &[], GgmlType::Q4_K).unwrap_err();
    let model = HostModel::new();
    let limited = encode(&model.open(0, Limits { memory: Some(64 << 10), lanes: 1 }).unwrap()).to_string();
    assert_eq!(
        limited,
        "the GPU `host model 0` has too little memory\n  expected: 27648 bytes\n  found:    24576 bytes (--device-memory)"
    );
    let device = model.open(0, LIMITS).unwrap();
    model.set("memory", 100_000);
    assert!(matches!(encode(&device), Error::OutOfMemory { found: 100_000, limited: false, .. }));
    model.set("memory", 1 << 32);
    model.set("launches", 1);
    assert_eq!(
        encode(&device).to_string(),
        "the GPU `host model 0` failed\n  cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED (error 719)"
    );
    drop(device);
    assert_eq!(model.get("used"), 0);
}

#[test]
fn a_build_without_kernels_says_how_to_get_them() {
    if !Device::IS_BUILT {
        let error = Device::open(0, LIMITS).unwrap_err();
        assert!(error.to_string().starts_with("this build of mlpack has no CUDA support\n"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--features cuda")));
    }
}
