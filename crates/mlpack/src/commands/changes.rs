//! What adapters changed, tensor by tensor: `--report` of `merge` and `convert`.

use crate::show::table;
use mlpack_convert::{Source, TensorChange};
use mlpack_fs::write_atomic;
use serde_json::{Value, json};
use std::path::Path;

/// Writes the report as JSON, and returns it as a table.
pub fn write(path: &Path, source: &Source, changes: &[TensorChange]) -> anyhow::Result<String> {
    let text = format!("{:#}\n", value(source, changes));
    write_atomic(path, text.as_bytes())?;
    Ok(text_table(source, changes))
}

fn value(source: &Source, changes: &[TensorChange]) -> Value {
    let adapters: Vec<Value> = source
        .adapters()
        .iter()
        .map(|(adapter, weight)| {
            let (config, total) = (adapter.config(), adapter.tensors().len());
            // An overlay is only made when every tensor has its place.
            json!({
                "path": adapter.path(), "weight": weight, "tensors": total, "used": total,
                "base_model": config.base_model, "revision": config.revision,
            })
        })
        .collect();
    let targets = source.overlay().map_or(&[][..], |overlay| overlay.targets());
    let tensors: Vec<Value> = targets
        .iter()
        .zip(changes)
        .map(|(target, change)| {
            json!({
                "tensor": target.name, "shape": target.shape.dims(), "dtype": target.dtype.name(),
                "kinds": target.kinds(), "adapters": target.adapters(),
                "change_norm": change.change, "base_norm": change.base, "relative": finite(change.relative()),
            })
        })
        .collect();
    json!({"schema": "mlpack.changes/v1", "adapters": adapters, "tensors": tensors, "notes": source.warnings})
}

/// JSON has no infinity.
fn finite(value: f64) -> Value {
    if value.is_finite() { value.into() } else { Value::Null }
}

fn text_table(source: &Source, changes: &[TensorChange]) -> String {
    let targets = source.overlay().map_or(&[][..], |overlay| overlay.targets());
    let rows = targets.iter().zip(changes).map(|(target, change)| {
        [
            mlpack_tensor::Escaped(&target.name).to_string(),
            target.shape.to_string(),
            target.kinds().join(", "),
            format!("{:.3e}", change.relative()),
        ]
    });
    table(["tensor", "shape", "changed by", "|change| / |base|"], rows)
}
