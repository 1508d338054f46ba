//! Prints how fast each type encodes and decodes, on each implementation that this machine can run, and how fast blocks are
//! validated.
//!
//! `cargo run --release -p mlpack-quant --example throughput [TYPE...]`. One thread; the fastest of many short passes over
//! rows that fit in the cache, so neither memory nor other work on the machine is what is measured.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use mlpack_quant::{
    Backend, NBits, NBitsPart, can_encode, decode_on, encode_on, first_invalid_block, needs_importance,
    uses_importance, widen_on,
};
use mlpack_tensor::{Dtype, GgmlType};
use std::time::Instant;

const ROW: usize = 4096;
const MIN_PASSES: usize = 5;

fn main() {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o.eq_ignore_ascii_case(name));
    println!(
        "{:24}{}",
        "Melem/s",
        Backend::available().iter().map(|b| format!("{:>12}", format!("{b:?}"))).collect::<String>()
    );
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
        let name = format!("widen {dtype}");
        if !wanted(&name) && !wanted(dtype.name()) {
            continue;
        }
        let src: Vec<u8> = (0..ROW * 16 * dtype.byte_size() as usize).map(|i| (i * 37 % 61) as u8).collect();
        let mut dst = vec![0.0; ROW * 16];
        let rate = |backend| best(ROW * 16, || widen_on(backend, dtype, &src, &mut dst).expect("lengths fit"));
        print_line(&name, rate);
    }
    for bits in [4, 8] {
        for part in [NBitsPart::Codes, NBitsPart::Scales] {
            let name = format!("NBits{bits} {part:?}");
            if wanted(&name) || wanted("NBits") {
                let blocks = NBits { bits, block: 32, symmetric: true, scale: Dtype::F32 };
                let x = noise(4 * ROW, 0.02);
                let mut dst = vec![0; 4 * blocks.row_byte_len(part, ROW as u64) as usize];
                print_line(&name, |backend| best(x.len(), || blocks.encode_on(backend, part, &x, ROW, &mut dst)));
            }
        }
    }
    for &ty in GgmlType::ALL.iter().filter(|&&ty| can_encode(ty) && wanted(ty.name())) {
        for with in [false, true] {
            if with && !uses_importance(ty) || !with && needs_importance(ty) {
                continue;
            }
            let rows = 4;
            let x = noise(rows * ROW, 0.02);
            let importance: Vec<f32> = noise(ROW, 1.0).iter().map(|v| v.abs() + 0.01).collect();
            let importance = with.then_some(importance.as_slice());
            let mut dst = vec![0; ty.row_byte_len(x.len() as u64).expect("whole blocks") as usize];
            let name = format!("{ty}{}", if with { " importance" } else { "" });
            print_line(&name, |backend| {
                best(x.len(), || encode_on(backend, ty, &x, ROW, importance, &mut dst).expect("lengths fit"))
            });
            if with == needs_importance(ty) {
                let mut back = vec![0.0; x.len()];
                print_line(&format!("{ty} decode"), |backend| {
                    best(x.len(), || decode_on(backend, ty, &dst, &mut back).expect("lengths fit"))
                });
                let rate = best(dst.len(), || assert_eq!(first_invalid_block(ty, &dst), None));
                println!("{:24}{rate:12.1} MB/s of blocks", format!("{ty} validate"));
            }
        }
    }
}

fn print_line(name: &str, mut rate: impl FnMut(Backend) -> f64) {
    let rates: Vec<f64> = Backend::available().into_iter().map(&mut rate).collect();
    let ratio = rates[rates.len() - 1] / rates[0];
    println!("{name:24}{}   x{ratio:.1}", rates.iter().map(|r| format!("{r:12.1}")).collect::<String>());
}

/// Millions of elements per second in the fastest pass.
fn best(elements: usize, mut pass: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let (mut fastest, mut passes) = (f64::INFINITY, 0);
    while passes < MIN_PASSES || begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        pass();
        fastest = fastest.min(start.elapsed().as_secs_f64());
        passes += 1;
    }
    elements as f64 / fastest / 1e6
}

/// Sums of four uniforms of a xorshift generator: near enough to the shape of trained weights.
fn noise(len: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0
    };
    (0..len).map(|_| (uniform() + uniform() + uniform() + uniform() - 2.0) * scale).collect()
}
