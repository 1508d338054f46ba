//! Checks a GPU against the CPU, then measures both.
//!
//! `selfcheck [--device N] [--model] [--values N] [--threads N] [--no-bench]`; `--open` only opens the device,
//! `--checkpoint DIR --layers N --tokenizer DIR` writes a checkpoint for measuring `mlpack convert`, and `--driver FILE` the driver
//! of `--model`. Every type is encoded on the device from the cases of
//! the goldens and from random rows, and rows are merged from random factors; each byte has to be the CPU's. Then: the rate of
//! copies, of each kernel on values that are there already beside one core of the CPU, and of merging and encoding Q4_K from host
//! memory to host memory beside the time that the copies alone take. `--model` is the device that tests use: a driver modelled
//! on the host, which shows that this program works.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

mod checkpoint;
#[path = "../../../mlpack-quant/tests/inputs/mod.rs"]
mod inputs;

use mlpack_device::{Delta, Device, HostModel, Limits, Outcome, Output, Slab, can_encode};
use mlpack_lora::round_to;
use mlpack_quant::{Backend, encode_on, needs_importance, uses_importance, widen};
use mlpack_tensor::{Dtype, GgmlType};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const ROW: usize = 2048;

struct Options {
    device: u32,
    model: bool,
    values: usize,
    threads: usize,
    bench: bool,
    open: bool,
    checkpoint: Option<PathBuf>,
    layers: usize,
    tokenizer: PathBuf,
    driver: Option<PathBuf>,
}

fn options() -> Options {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut options = Options {
        device: 0,
        model: false,
        values: 1 << 30,
        threads,
        bench: true,
        open: false,
        checkpoint: None,
        layers: 16,
        tokenizer: PathBuf::new(),
        driver: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut text = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        let number = |text: String| text.parse().unwrap_or_else(|_| panic!("{text} is not a number"));
        match arg.as_str() {
            "--device" => options.device = number(text()) as u32,
            "--values" => options.values = number(text()),
            "--threads" => options.threads = number(text()),
            "--layers" => options.layers = number(text()),
            "--checkpoint" => options.checkpoint = Some(text().into()),
            "--tokenizer" => options.tokenizer = text().into(),
            "--driver" => options.driver = Some(text().into()),
            "--model" => options.model = true,
            "--no-bench" => options.bench = false,
            "--open" => options.open = true,
            other => panic!("no option {other}"),
        }
    }
    options
}

fn main() -> ExitCode {
    let options = options();
    if let Some(dir) = &options.checkpoint {
        checkpoint::write(dir, options.layers, &options.tokenizer).expect("the checkpoint is written");
        return ExitCode::SUCCESS;
    }
    if let Some(file) = &options.driver {
        HostModel::new().copy_to(file);
        return ExitCode::SUCCESS;
    }
    let limits = Limits { memory: None, lanes: options.threads };
    let model = options.model.then(HostModel::new);
    let opened = match &model {
        Some(model) => model.open(options.device, limits),
        None => Device::open(options.device, limits),
    };
    let device = match opened {
        Ok(device) => device,
        Err(error) => {
            println!("{error}");
            return ExitCode::from(4);
        }
    };
    println!("device  {}", device.name());
    if options.open {
        return ExitCode::SUCCESS;
    }
    println!("cpu     {:?}, {} threads", Backend::best(), options.threads);
    let wrong = encoding(&device, options.values.min(1 << 22)) + merging(&device);
    if options.bench {
        let copies = copies(&device, options.values.min(1 << 27));
        kernels(&device, options.values.min(1 << 25));
        fused(&device, &options, copies);
    }
    println!("{}", if wrong == 0 { "every byte is the CPU's" } else { "BYTES DIFFER" });
    ExitCode::from(u8::from(wrong > 0))
}

/// Values like those of weights: sums of four uniforms.
fn noise(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let uniform = |word: u64, shift: u32| ((word >> shift) & 0xffff) as f32 / 65536.0;
    let value =
        |word: u64| (uniform(word, 0) + uniform(word, 16) + uniform(word, 32) + uniform(word, 48) - 2.0) * scale;
    (0..len as u64).map(|i| value(inputs::word(seed, i))).collect()
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Counts encodings whose bytes differ.
fn encoding(device: &Device, values: usize) -> usize {
    let random = noise(1, values / 1024 * 1024, 0.02);
    let mut wrong = 0;
    for ty in GgmlType::ALL.iter().copied().filter(|ty| can_encode(*ty, true)) {
        let mut checked = 0;
        let mut check = |x: &[f32], row_len: usize, importance: Option<&[f32]>, what: &str| {
            let len = ty.row_byte_len(x.len() as u64).expect("whole blocks") as usize;
            let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
            encode_on(Backend::best(), ty, x, row_len, importance, &mut theirs).expect("lengths fit");
            let rows = bytes_of(x);
            let slab = Slab { dtype: Dtype::F32, pieces: &[&rows], row_len, deltas: &[] };
            let done = device.run(&slab, &mut [Output::Encoded { ty, importance, bytes: &mut ours }]);
            checked += 1;
            if done != Ok(Outcome::Done) || ours != theirs {
                println!(
                    "  {ty} {what}: {done:?}, first different byte {:?}",
                    ours.iter().zip(&theirs).position(|(a, b)| a != b)
                );
                wrong += 1;
            }
        };
        for case in inputs::CASES {
            for row_len in inputs::row_lens(ty.block_len()) {
                let x = inputs::values(case, row_len);
                if !needs_importance(ty) {
                    check(&x, row_len, None, case);
                }
                for kind in ["even", "wide"].into_iter().filter(|_| uses_importance(ty)) {
                    check(&x, row_len, Some(&inputs::importance(kind, case, row_len)), case);
                }
            }
        }
        if !needs_importance(ty) {
            check(&random, 1024, None, "random");
        }
        if uses_importance(ty) {
            check(&random, 1024, Some(&noise(2, 1024, 1.0).iter().map(|v| v.abs()).collect::<Vec<f32>>()), "random");
        }
        println!("{:8} {checked} encodings compared", ty.name());
    }
    wrong
}

/// Counts merged matrices whose bytes differ.
fn merging(device: &Device) -> usize {
    let (rows, cols) = (512, 1024);
    let mut wrong = 0;
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        for rank in [1usize, 16, 64, 128, 600] {
            let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
            let mut base = vec![0; rows * cols * dtype.byte_size() as usize];
            round_to(dtype, &wide(noise(3, rows * cols, 0.05)), &mut base).expect("finite");
            let (left, right) = (noise(4, rows * rank, 0.05), noise(5, rank * cols, 0.05));
            let factor = 2.0 / rank as f64;
            let mut stored = vec![0.0; rows * cols];
            widen(dtype, &base, &mut stored).expect("lengths fit");
            let mut sums = wide(stored);
            for (i, sum) in sums.iter_mut().enumerate() {
                let (row, col) = (i / cols, i % cols);
                let term = |k: usize| f64::from(left[row * rank + k]) * f64::from(right[k * cols + col]);
                let stretch = |from: usize| (from..rank.min(from + 512)).fold(0.0, |sum, k| sum + term(k));
                *sum += factor * (0..rank).step_by(512).map(stretch).reduce(|a, b| a + b).unwrap_or(0.0);
            }
            let (mut ours, mut theirs) = (vec![0; base.len()], vec![0; base.len()]);
            round_to(dtype, &sums, &mut theirs).expect("finite");
            let delta = Delta { panel: (rank, dtype as usize), rank, left: &left, right: &|| right.clone(), factor };
            let slab = Slab { dtype, pieces: &[&base], row_len: cols, deltas: &[delta] };
            let done = device.run(&slab, &mut [Output::Stored(&mut ours)]);
            if done != Ok(Outcome::Done) || ours != theirs {
                println!(
                    "  merging {dtype}, rank {rank}: {done:?}, {} bytes differ",
                    ours.iter().zip(&theirs).filter(|(a, b)| a != b).count()
                );
                wrong += 1;
            }
        }
        println!("merging  {dtype}: 5 ranks compared");
    }
    wrong
}

/// Bytes per second there and back, of memory that the device copies by itself.
fn copies(device: &Device, values: usize) -> (f64, f64) {
    let mut probe = device.probe(&vec![0.5; values], ROW).expect("the device has room");
    let bytes = values as f64 * 4.0;
    let there = bytes / fastest(|| probe.copy_in().expect("the device copies"));
    let back = bytes / fastest(|| probe.copy_out().expect("the device copies"));
    println!("copies   {:.1} GB/s there, {:.1} GB/s back", there / 1e9, back / 1e9);
    (there, back)
}

/// Seconds of the fastest of some passes.
fn fastest(mut pass: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    };
    (0..5).map(time).fold(f64::INFINITY, f64::min)
}

/// Prints how fast each type is encoded, on the device and on one core.
fn kernels(device: &Device, values: usize) {
    let x = noise(6, values / ROW * ROW, 0.02);
    let importance: Vec<f32> = noise(7, ROW, 1.0).iter().map(|v| v.abs() + 0.01).collect();
    let mut probe = device.probe(&x, ROW).expect("the device has room");
    println!("{:24}{:>14}{:>14}{:>10}", "Mvalues/s", "device", "one core", "ratio");
    let encoders = GgmlType::ALL.iter().copied().filter(|ty| ty.is_quantized());
    for (ty, with) in encoders
        .flat_map(|ty| [(ty, false), (ty, true)])
        .filter(|(ty, with)| can_encode(*ty, *with) && (!with || uses_importance(*ty)))
    {
        let times = 4;
        let ours =
            x.len() as f64 * f64::from(times) / fastest(|| probe.encode(ty, with, times).expect("the device encodes"));
        let some = &x[..x.len().min(16 * ROW)];
        let mut out = vec![0; ty.row_byte_len(some.len() as u64).expect("whole blocks") as usize];
        let importance = with.then_some(importance.as_slice());
        let core = fastest(|| encode_on(Backend::best(), ty, some, ROW, importance, &mut out).expect("lengths fit"));
        let theirs = some.len() as f64 / core;
        let name = format!("{ty}{}", if with { " importance" } else { "" });
        let target = matches!((ty, with), (GgmlType::Q4_K | GgmlType::Q6_K, false));
        let target = if target { " (target 50)" } else { "" };
        println!("{name:24}{:14.0}{:14.0}{:10.1}{target}", ours / 1e6, theirs / 1e6, ours / theirs);
    }
}

/// Merges a bfloat16 matrix with an adapter of rank 16 and encodes it to Q4_K, from host memory to host memory, slab by slab.
fn fused(device: &Device, options: &Options, (there, back): (f64, f64)) {
    const SLAB: usize = 1 << 22;
    let slabs = (options.values / SLAB).max(1);
    let (rows, rank) = (SLAB / ROW, 16);
    let mut base = vec![0u8; slabs * SLAB * 2];
    for (i, pair) in base.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        // Weights of about 0.02, with signs and mantissas of a counter.
        let bits = inputs::word(8, i as u64 / 4) >> (16 * (i % 4));
        *pair = (0x3c00 | (bits as u16 & 0x80ff)).to_le_bytes();
    }
    let (left, right) = (noise(9, rows * rank, 0.02), noise(10, rank * ROW, 0.02));
    let blocks = SLAB / 256 * 144;
    let mut out = vec![0u8; slabs * blocks];
    let floor = (base.len() as f64 / there).max(out.len() as f64 / back);
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        let next = AtomicUsize::new(0);
        let places: Vec<std::sync::Mutex<&mut [u8]>> = out.chunks_mut(blocks).map(std::sync::Mutex::new).collect();
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..options.threads {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(place) = places.get(i) else { break };
                        let make = || right.clone();
                        let delta = Delta { panel: (0, 99), rank, left: &left, right: &make, factor: 2.0 };
                        let pieces = [&base[i * SLAB * 2..(i + 1) * SLAB * 2]];
                        let slab = Slab { dtype: Dtype::BF16, pieces: &pieces, row_len: ROW, deltas: &[delta] };
                        let bytes: &mut [u8] = &mut place.lock().expect("a slab is taken once");
                        let output = Output::Encoded { ty: GgmlType::Q4_K, importance: None, bytes };
                        assert_eq!(device.run(&slab, &mut [output]), Ok(Outcome::Done));
                    }
                });
            }
        });
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    println!(
        "merge + Q4_K of {:.2} G values, host to host: {seconds:.3} s; copies alone {floor:.3} s; {:.2} times (target 1.5)",
        (slabs * SLAB) as f64 / 1e9,
        seconds / floor
    );
}
