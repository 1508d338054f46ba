//! `mlpack export` and `mlpack import`

use super::registry::{Place, Source};
use crate::cli::{ExportArgs, ImportArgs};
use crate::exit::Exit;
use crate::show::{Show, bytes, table};
use anyhow::Context as _;
use mlpack_fs::AtomicDir;
use mlpack_oci::{Contents, Layout, Package, Tag, archive, contents, unpack_layout, write_archive};
use mlpack_registry::Wanted;
use serde_json::{Value, json};
use std::path::Path;

/// Writes what a reference leads to into one archive.
pub fn export(args: &ExportArgs, out: &Show) -> anyhow::Result<Exit> {
    let place = Place::new(&args.reference, &args.registry)?;
    // Blobs of a registry lie beside the archive until it is written.
    let mut folder = args.output.clone().into_os_string();
    folder.push(".blobs");
    let staged = match &place {
        Place::Layout { .. } => None,
        Place::Registry { .. } => Some(AtomicDir::resume(Path::new(&folder))?),
    };
    // Below the staged directory: both it and a layout lock their own.
    let layout = staged.as_ref().map(|staged| staged.contents().join("layout"));
    let package = match package(&place, layout.as_deref(), out) {
        Ok(package) => package,
        Err(error) => {
            if let Some(staged) = staged {
                staged.keep();
            }
            return Err(error);
        }
    };
    let blob = archive(&package)?;
    write_archive(&blob, &args.output)?;
    let text = format!("{}\n{} sha256:{}\n", args.output.display(), bytes(blob.byte_len()), blob.digest());
    let value = json!({
        "schema": "mlpack.export/v1", "reference": args.reference, "archive": args.output, "bytes": blob.byte_len(),
        "sha256": blob.digest().to_string(),
    });
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// What a reference leads to. `stage` takes the blobs of a registry.
pub fn package(place: &Place, stage: Option<&Path>, out: &Show) -> anyhow::Result<Package> {
    match place {
        Place::Layout { dir, tag } => {
            let layout = Layout::open(dir)?;
            layout.verify()?;
            Ok(Package::of_layout(&layout, tag, tag)?)
        }
        Place::Registry { tag, .. } => {
            let stage = stage.expect("blobs of a registry have a stage");
            let (source, root) = Source::open(place)?;
            let layout = Layout::open_or_create(stage)?;
            mirror(&source, &root.bytes, &layout, out)?;
            let tag: Tag = tag.clone().map_or_else(|| "latest".parse(), Ok)?;
            layout.put_blob_bytes(&root.bytes)?;
            let descriptor = json!({
                "mediaType": root.media_type, "digest": format!("sha256:{}", root.digest), "size": root.bytes.len(),
            });
            layout.tag(&serde_json::from_value(descriptor)?, &tag)?;
            Ok(Package::of_layout(&layout, &tag, &tag)?)
        }
    }
}

/// Copies everything below a document into a layout.
fn mirror(source: &Source<'_>, document: &[u8], layout: &Layout, out: &Show) -> anyhow::Result<()> {
    if let Contents::Index(entries) = contents(document)? {
        for entry in entries {
            let child = source.document(&entry.digest)?;
            mirror(source, &child.bytes, layout, out)?;
            layout.put_blob_bytes(&child.bytes)?;
        }
        return Ok(());
    }
    let manifest: Value = serde_json::from_slice(document)?;
    let layers = manifest.get("layers").and_then(Value::as_array).into_iter().flatten();
    let mut wanted: Vec<Wanted> = Vec::new();
    for blob in manifest.get("config").into_iter().chain(layers) {
        let digest = blob.get("digest").and_then(Value::as_str).and_then(|d| d.strip_prefix("sha256:")?.parse().ok());
        let digest = digest.context("the manifest has a layer without a sha256 digest")?;
        let byte_len = blob.get("size").and_then(Value::as_u64).context("the manifest has a layer without a size")?;
        let path = layout.blob_path(&digest);
        if !path.is_file() && !wanted.iter().any(|w| w.digest == digest) {
            wanted.push(Wanted { digest, byte_len, path, known: Vec::new() });
        }
    }
    let bar = out.progress(wanted.iter().map(|w| w.byte_len).sum());
    let progress = |n: i64| bar.inc(u64::try_from(n).unwrap_or(0));
    source.fetch(&wanted, &progress)?;
    bar.finish_and_clear();
    Ok(())
}

/// Reads an archive into a layout; everything is verified before the layout changes.
pub fn import(args: &ImportArgs, out: &Show) -> anyhow::Result<Exit> {
    let mut folder = args.output.clone().into_os_string();
    folder.push(".import");
    let staged = AtomicDir::replace(Path::new(&folder))?;
    unpack_layout(&args.archive, staged.contents())?;
    let source = Layout::open(staged.contents())?;
    let verified = source.verify()?;
    let target = Layout::open_or_create(&args.output)?;
    let mut rows = Vec::new();
    for digest in source.reachable()? {
        target.adopt_blob(&digest, &source.blob_path(&digest))?;
    }
    for (tag, descriptor) in source.tags()? {
        match tag {
            Some(tag) => {
                target.tag(&descriptor, &tag.parse()?)?;
                rows.push([format!("oci:{}:{tag}", args.output.display()), descriptor.digest().to_string()]);
            }
            None => target.add_untagged(&descriptor)?,
        }
    }
    let mut text = table(["reference", "manifest"], rows.clone());
    text.push_str(&format!("{} in {} blobs, all verified\n", bytes(verified.bytes), verified.blobs));
    let list: Vec<Value> =
        rows.iter().map(|[reference, digest]| json!({"reference": reference, "digest": digest})).collect();
    let value = json!({
        "schema": "mlpack.import/v1", "layout": args.output, "manifests": list, "bytes": verified.bytes,
        "blobs": verified.blobs,
    });
    out.result(&text, &value);
    Ok(Exit::Done)
}
