//! Pairing, what cannot be compared, and figures that no number of threads changes, on small GGUF files.

#![allow(clippy::disallowed_methods, reason = "tests write the files that they read")]

use super::*;
use mlpack_gguf::{Layout, TensorSpec};
use mlpack_tensor::{GgmlType, Metadata};
use std::path::Path;

/// A tensor of a test file: name, shape, type, and the values that are encoded.
struct Given<'a>(&'a str, &'a [u64], GgmlType, &'a [f32]);

fn gguf(dir: &Path, name: &str, tensors: &[Given<'_>]) -> Source {
    let spec = |Given(name, dims, ty, _): &Given<'_>| TensorSpec {
        name: (*name).to_owned(),
        ty: *ty,
        shape: Shape::new(dims.to_vec()),
    };
    let layout = Layout::new(&Metadata::new(), tensors.iter().map(spec).collect()).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.byte_len() as usize, 0);
    for (Given(_, dims, ty, values), slot) in tensors.iter().zip(layout.tensors()) {
        let place = &mut bytes[slot.range.start as usize..slot.range.end as usize];
        if !values.is_empty() {
            mlpack_quant::encode(*ty, values, *dims.last().unwrap() as usize, None, place).unwrap();
        }
    }
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    Source::open_gguf(&path).unwrap()
}

fn compare(a: &Source, b: &Source, resources: Resources) -> Result<Diff, Error> {
    diff(a, b, &Families::builtin(), &resources, &|_| {})
}

fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect()
}

#[test]
fn what_cannot_be_paired_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let values = ramp(64);
    let a = gguf(
        dir.path(),
        "a.gguf",
        &[
            Given("gone", &[64], GgmlType::F32, &values),
            Given("same", &[2, 32], GgmlType::F32, &values),
            Given("turned", &[2, 32], GgmlType::F32, &values),
        ],
    );
    let b = gguf(
        dir.path(),
        "b.gguf",
        &[
            Given("turned", &[32, 2], GgmlType::F32, &values),
            Given("new", &[64], GgmlType::F16, &values),
            Given("same", &[2, 32], GgmlType::Q8_0, &values),
        ],
    );
    let found = compare(&a, &b, Resources::default()).unwrap();
    let names = |tensors: &[Unpaired]| tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&found.only_in_a), names(&found.only_in_b)), (vec!["gone".to_owned()], vec!["new".to_owned()]));
    let shapes = [Shape::new(vec![2, 32]), Shape::new(vec![32, 2])];
    let [a_shape, b_shape] = shapes.clone();
    assert_eq!(found.reshaped, [Reshaped { name: "turned".to_owned(), a: a_shape, b: b_shape }]);
    let [same] = found.tensors.as_slice() else { panic!("{:?}", found.tensors) };
    assert_eq!((same.name.as_str(), &same.shape, same.byte_len), ("same", &shapes[0], 68));
    assert_eq!((same.a, same.b), (Stored::Ggml(GgmlType::F32), Stored::Ggml(GgmlType::Q8_0)));
    assert_eq!((same.bits_per_weight(), same.error.elements), (8.5, 64));
    assert!(same.error.rmse() > 0.0 && same.error.cosine() > 0.999, "{:?}", same.error);
}

#[test]
fn outer_dimensions_of_one_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let values = ramp(64);
    let a = gguf(dir.path(), "a.gguf", &[Given("x", &[1, 1, 64], GgmlType::F32, &values)]);
    let b = gguf(dir.path(), "b.gguf", &[Given("x", &[64], GgmlType::F32, &values)]);
    let found = compare(&a, &b, Resources::default()).unwrap();
    assert_eq!((found.tensors.len(), found.reshaped.len()), (1, 0));
    assert_eq!(found.tensors[0].error.squared_error, 0.0);
}

#[test]
fn threads_and_memory_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let values = ramp(600 * 512);
    let a = gguf(dir.path(), "a.gguf", &[Given("x", &[3, 200, 512], GgmlType::F32, &values)]);
    let b = gguf(dir.path(), "b.gguf", &[Given("x", &[3, 200, 512], GgmlType::Q4_K, &values)]);
    let once = compare(&a, &b, Resources { memory: 1 << 30, threads: 1, ..Resources::default() }).unwrap();
    for (memory, threads) in [(1 << 30, 4), (1 << 20, 3), (20_000, 2)] {
        assert_eq!(
            compare(&a, &b, Resources { memory, threads, ..Resources::default() }).unwrap(),
            once,
            "{memory} {threads}"
        );
    }
    let place = once.tensors[0].error.max;
    assert!(place.row < 600 && place.column < 512 && place.error > 0.0, "{place:?}");
}

#[test]
fn values_that_are_not_finite_are_figures_and_pass_no_gate() {
    let dir = tempfile::tempdir().unwrap();
    let (values, mut bad) = (ramp(64), ramp(64));
    bad[40] = f32::NAN;
    let a = gguf(dir.path(), "a.gguf", &[Given("x", &[2, 32], GgmlType::F32, &values)]);
    let b = gguf(dir.path(), "b.gguf", &[Given("x", &[2, 32], GgmlType::F16, &bad)]);
    let found = compare(&a, &b, Resources::default()).unwrap();
    let error = &found.tensors[0].error;
    assert!(error.rmse().is_nan() && error.max.error.is_nan());
    assert_eq!((error.max.row, error.max.column), (1, 8));
    let limits = crate::Limits { max_rmse: Some(1e30), min_cosine: None };
    assert_eq!(limits.exceeded(error).len(), 1);
}

#[test]
fn refuses_values_that_it_cannot_read_and_rows_without_room() {
    let dir = tempfile::tempdir().unwrap();
    let values = ramp(64);
    let floats = gguf(dir.path(), "a.gguf", &[Given("x", &[64], GgmlType::F32, &values)]);
    let integers = gguf(dir.path(), "b.gguf", &[Given("x", &[64], GgmlType::I32, &[])]);
    let error = compare(&floats, &integers, Resources::default()).unwrap_err();
    assert!(matches!(&error, Error::Undecodable { tensor, ty: GgmlType::I32 } if tensor == "x"), "{error}");
    let error = compare(&floats, &floats, Resources { memory: 100, threads: 1, ..Resources::default() }).unwrap_err();
    assert!(matches!(&error, Error::Budget { needed: 2048, budget: 100, .. }), "{error}");
}

#[test]
fn tensors_without_elements_have_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let empty = |name| gguf(dir.path(), name, &[Given("x", &[1 << 40, 0], GgmlType::F32, &[])]);
    let found = compare(&empty("a.gguf"), &empty("b.gguf"), Resources::default()).unwrap();
    assert_eq!(found.tensors[0].error, TensorError::default());
    assert_eq!(found.tensors[0].bits_per_weight(), 0.0);
}
