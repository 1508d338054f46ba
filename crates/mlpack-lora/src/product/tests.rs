//! What a GPU has to be like, and what is said of one that is not. GPUs are functions here, or candle on the CPU.

use super::check::Case;
use super::*;

/// Sums in float32 from left to right, of factors and results that were changed on the way.
fn product(left: &[f32], right: &[f32], [_, rank, cols]: [usize; 3], change: impl Fn(f32) -> f32) -> Vec<f32> {
    let mut out = Vec::new();
    for left in left.chunks_exact(rank) {
        let mut sums = vec![0.0; cols];
        for (l, right) in left.iter().zip(right.chunks_exact(cols)) {
            sums.iter_mut().zip(right).for_each(|(sum, r)| *sum = change(change(*l) * change(*r) + *sum));
        }
        out.extend(sums);
    }
    out
}

/// Rounded to so many bits behind the first.
fn rounded(v: f32, bits: u32) -> f32 {
    let cut = 1 << (23 - bits);
    f32::from_bits((v.to_bits() + cut / 2) & !(cut - 1))
}

fn open(change: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Result<ProductDevice, Error> {
    ProductDevice::model(Box::new(move |left, right, dims| Ok(product(left, right, dims, &change))))
}

#[test]
fn a_gpu_that_computes_in_float32_is_taken() {
    assert_eq!(open(|v| v).unwrap().gpu_name(), Some("model"));
    ProductDevice::open("candle".to_owned(), Backend::Candle(Device::Cpu)).unwrap();
    // What is below the normal range becomes zero.
    open(|v| if v.is_normal() { v } else { 0.0 }).unwrap();
    // From right to left, with fused additions.
    let backwards = |left: &[f32], right: &[f32], [rows, rank, cols]: [usize; 3]| {
        let element = |i: usize| {
            let terms = (0..rank).rev().map(|k| (left[i / cols * rank + k], right[k * cols + i % cols]));
            terms.fold(0.0, |sum: f32, (l, r)| l.mul_add(r, sum))
        };
        Ok((0..rows * cols).map(element).collect())
    };
    ProductDevice::model(Box::new(backwards)).unwrap();
}

#[test]
fn a_gpu_that_computes_with_fewer_bits_is_refused() {
    // TF32, bfloat16, and less than two bits too few.
    for bits in [10, 7, 16, 21] {
        let error = open(move |v| rounded(v, bits)).unwrap_err();
        assert!(matches!(error, Error::GpuInexact { rank: 1, .. }), "{bits}: {error}");
    }
    // Only in products of many terms, as a GPU has several kernels.
    for least in [16, 64, 256] {
        let some = move |left: &[f32], right: &[f32], dims: [usize; 3]| {
            Ok(product(left, right, dims, |v| if dims[1] >= least { rounded(v, 10) } else { v }))
        };
        let error = ProductDevice::model(Box::new(some)).unwrap_err();
        assert!(matches!(error, Error::GpuInexact { rank, .. } if rank >= least), "{least}: {error}");
    }
    for wrong in [f32::NAN, f32::INFINITY, 0.0] {
        open(move |_| wrong).unwrap_err();
    }
}

#[test]
fn tf32_is_found_in_products_of_any_size_and_rank() {
    let found = |case: &Case| {
        let dims = [case.left.len() / case.rank, case.rank, case.cols];
        let product = product(&case.left, &case.right, dims, |v| rounded(v, 10));
        check::first_wrong(&case.left, &case.right, case.rank, 0, &product).is_some()
    };
    // Where everything is about to underflow, nothing can be found.
    for case in check::cases().filter(|case| case.left.iter().all(|v| v.abs() > 1e-30)) {
        assert!(found(&case), "{} by {} by {}", case.left.len() / case.rank, case.rank, case.cols);
    }
}

#[test]
fn a_gpu_that_cannot_be_opened_says_why() {
    let error = |multiply: Box<Multiply>| ProductDevice::model(multiply).unwrap_err();
    let failed = error(Box::new(|_, _, _| Err("out of\n  memory".to_owned())));
    assert_eq!(failed.to_string(), "the GPU `model` failed\n  found:    out of memory");
    assert_eq!(failed.in_one_line(), "the GPU `model` failed; found: out of memory");
    let inexact = error(Box::new(|left, right, dims| Ok(product(left, right, dims, |v| rounded(v, 10)))));
    assert_eq!(
        inexact.to_string(),
        "the GPU `model` does not multiply as float32 arithmetic does\n  product of rank 1, row 0, column 0\n  \
         expected: -8.719111815867764e-4, or what is within 5.2e-11 of it\n  found:    -8.716583e-4"
    );
    for error in [&failed, &inexact, &Error::NoMetalGpu] {
        assert_eq!(error.kind(), mlpack_fs::ErrorKind::Io);
        assert_eq!(error.hint().unwrap(), "--device cpu gives the same bytes");
    }
    assert_eq!(Error::NoMetalGpu.to_string(), "Metal has no device\n  expected: a GPU\n  found:    none");
}

/// On a Mac with the feature this opens its GPU, or says that there is none.
#[test]
fn metal_is_opened_or_it_is_said_why_not() {
    match (cfg!(feature = "metal"), cfg!(target_os = "macos"), ProductDevice::metal()) {
        (false, _, Err(error)) => {
            assert_eq!(
                error.to_string(),
                "this build of mlpack has no Metal support\n  expected: a build on macOS with the feature `metal`\n  \
                 found:    one without it"
            );
            assert!(error.hint().unwrap().contains("--features metal"));
        }
        (true, false, Err(error)) => {
            let expected =
                format!("there is no Metal on this system\n  expected: macOS\n  found:    {}", std::env::consts::OS);
            assert_eq!(error.to_string(), expected);
        }
        (true, true, opened) => assert!(matches!(opened, Ok(_) | Err(Error::NoMetalGpu | Error::GpuFailed { .. }))),
        (.., Ok(device)) => panic!("{device:?}"),
    }
}

#[test]
fn a_gpu_that_fails_is_asked_for_no_more_in_that_run() {
    let case = check::cases().nth(12).unwrap();
    let (left, right) = case.tensors().unwrap();
    let cases = check::cases().count() as u64;
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    let device =
        ProductDevice::model(Box::new(move |left, right, dims| match counted.fetch_add(1, Ordering::Relaxed) {
            n if n == cases + 2 => Err("gone".to_owned()),
            _ => Ok(product(left, right, dims, |v| v)),
        }));
    let device = device.unwrap();
    let run = device.for_run();
    let there = run.upload(&right).unwrap();
    let done: Vec<bool> = (0..5).map(|_| run.product(&left, &right, &there).is_some()).collect();
    assert_eq!(done, [true, true, false, false, false]);
    let (products, error) = run.used();
    assert_eq!((products, error.unwrap().to_string()), (2, "the GPU `model` failed\n  found:    gone".to_owned()));
    assert!(run.upload(&right).is_none());
    assert_eq!(asked.load(Ordering::Relaxed), cases + 3);
    // Another run counts for itself.
    let next = device.for_run();
    assert!(next.product(&left, &right, &there).is_some());
    assert!(matches!(next.used(), (1, None)));
}

#[test]
fn a_gpu_whose_last_row_is_wrong_is_asked_for_no_more() {
    let case = check::cases().nth(12).unwrap();
    let (left, right) = case.tensors().unwrap();
    let cases = check::cases().count() as u64;
    let asked = AtomicU64::new(0);
    let device = ProductDevice::model(Box::new(move |left, right, dims| {
        let mut product = product(left, right, dims, |v| v);
        if asked.fetch_add(1, Ordering::Relaxed) == cases + 1 {
            let end = product.len();
            product[end - 3] = 0.0;
        }
        Ok(product)
    }));
    let run = device.unwrap().for_run();
    let there = run.upload(&right).unwrap();
    assert!(run.product(&left, &right, &there).is_some());
    assert!(run.product(&left, &right, &there).is_none());
    let (rows, cols) = (left.dims()[0], case.cols);
    let (1, Some(Error::GpuInexact { wrong, .. })) = run.used() else { panic!("{:?}", run.used()) };
    assert_eq!((wrong.row, wrong.col, wrong.found), (rows - 1, cols - 3, 0.0));
}

#[test]
fn the_cpu_is_no_gpu() {
    let cpu = ProductDevice::default();
    let (_, right) = check::cases().next().unwrap().tensors().unwrap();
    assert_eq!(cpu.gpu_name(), None);
    assert!(cpu.upload(&right).is_none());
    assert!(matches!(cpu.for_run().used(), (0, None)));
}
