//! `mlpack archs`

use crate::cli::ArchsArgs;
use crate::exit::Exit;
use crate::inputs;
use crate::show::{Show, table};
use serde_json::json;

/// Lists the architectures that can be converted.
pub fn archs(args: &ArchsArgs, out: &Show) -> anyhow::Result<Exit> {
    let families = inputs::families(&args.arch_file)?;
    let classes = |f: &mlpack_arch::Family| f.classes().map(str::to_owned).collect::<Vec<_>>();
    let rows = families.iter().map(|f| [f.arch().to_owned(), f.description().to_owned(), classes(f).join(", ")]);
    let text = table(["arch", "models", "classes in config.json"], rows);
    let list: Vec<_> = families
        .iter()
        .map(|f| json!({"arch": f.arch(), "description": f.description(), "classes": classes(f)}))
        .collect();
    out.result(&text, &json!({"schema": "mlpack.archs/v1", "archs": list}));
    Ok(Exit::Done)
}
