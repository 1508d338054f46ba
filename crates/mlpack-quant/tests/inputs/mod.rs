//! The inputs of the golden digests: what `golden/make_golden.py` computes, operation for operation.
//!
//! Element `i` of a case draws four words of splitmix64; uniforms are their top 24 bits, and "gaussian" values are the sum
//! of four uniforms minus 2, all in f32.

/// Rows of every case.
pub const ROWS: usize = 3;

/// Every case, in the order of the generator.
pub const CASES: [&str; 22] = [
    "gauss",
    "bf16",
    "heavy",
    "sparse",
    "positive",
    "negative",
    "zeros",
    "negzero",
    "constant",
    "negconst",
    "outlier",
    "subnormal",
    "tiny",
    "small16",
    "f16edge",
    "huge",
    "ties",
    "alternating",
    "mixed",
    "flat",
    "onehot",
    "ternary",
];

/// The row lengths that a block length is tested with.
pub fn row_lens(block_len: u64) -> [usize; 2] {
    match block_len {
        256 => [256, 1024],
        128 => [128, 640],
        64 => [64, 576],
        _ => [32, 576],
    }
}

/// Word `i` of the splitmix64 stream of a seed.
pub fn word(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(i.wrapping_add(1)));
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

fn uniform(word: u64) -> f32 {
    (word >> 40) as f32 * f32::from_bits((127 - 24) << 23)
}

fn seed_of(case: &str, row_len: usize) -> u64 {
    let mut bytes = [0u8; 8];
    let len = case.len().min(8);
    bytes[..len].copy_from_slice(&case.as_bytes()[..len]);
    u64::from_le_bytes(bytes) ^ row_len as u64
}

/// The values of a case: `ROWS` rows of `row_len`.
pub fn values(case: &str, row_len: usize) -> Vec<f32> {
    let seed = seed_of(case, row_len);
    (0..ROWS * row_len).map(|i| value(case, seed, i)).collect()
}

fn value(case: &str, seed: u64, i: usize) -> f32 {
    let w: [u64; 4] = std::array::from_fn(|k| word(seed, (4 * i + k) as u64));
    let (r, u) = (w[0], w.map(uniform));
    let g = ((u[0] + u[1]) + u[2]) + u[3] - 2.0;
    match case {
        "gauss" => g * 0.02,
        "bf16" => f32::from_bits((g * 0.05).to_bits() & 0xffff_0000),
        "heavy" => g * g * g,
        "sparse" => {
            if u[0] < 0.9 {
                0.0
            } else {
                u[2] - 0.5
            }
        }
        "positive" => u[0] + 0.25,
        "negative" => -(u[0] + 0.25),
        "zeros" => 0.0,
        "negzero" => -0.0,
        "constant" => 0.7,
        "negconst" => -0.3,
        "outlier" => match i % 256 == (i / 256 * 37 + 5) % 256 {
            true if (i / 256).is_multiple_of(2) => 30.0,
            true => -30.0,
            false => g * 0.01,
        },
        "subnormal" => f32::from_bits((r >> 32) as u32 & 0x807f_ffff),
        "tiny" => g * 1e-30,
        "small16" => g * 3e-6,
        "f16edge" => {
            let magnitude = if r >> 1 & 3 != 0 { 65504.0 } else { 70000.0 };
            if r & 1 == 1 { magnitude } else { -magnitude }
        }
        "huge" => g * 1e10,
        "ties" => ((r % 65) as f32 - 32.0) * 0.5,
        "alternating" => [1.0, -1.0][i % 2],
        "mixed" => {
            let exponent = (word(seed ^ 99, (i / 16) as u64) % 40) as i32 - 20;
            g * f32::from_bits(((127 + exponent) as u32) << 23)
        }
        "flat" => 1.0 + u[0] * 1e-6,
        "onehot" => f32::from(u8::from(i % 32 == i / 32 % 32)),
        "ternary" => ((r % 3) as f32 - 1.0) * 0.04,
        _ => panic!("no case `{case}`"),
    }
}

/// An importance row: `even` is positive everywhere, `wide` has zeros and spans many powers of ten.
pub fn importance(kind: &str, case: &str, row_len: usize) -> Vec<f32> {
    let seed = seed_of(case, row_len) ^ 0xffff_ffff;
    (0..row_len as u64)
        .map(|i| {
            let u = uniform(word(seed, i));
            match kind {
                "even" => u + 0.01,
                "wide" if u < 0.1 => 0.0,
                "wide" => u * u * u * u * 100.0,
                _ => panic!("no importance `{kind}`"),
            }
        })
        .collect()
}
