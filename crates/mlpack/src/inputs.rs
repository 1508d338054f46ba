//! From what was typed to what the libraries take.

use crate::cli::{ResourceArgs, SourceArgs, TargetArgs};
use anyhow::{Context as _, bail};
use mlpack_arch::Families;
use mlpack_convert::{FileType, Resources};
use std::path::{Path, PathBuf};

/// `DIR` or `DIR=WEIGHT`. A directory whose own name ends in `=NUMBER` is taken as it is when it exists.
pub fn adapter(text: &str) -> anyhow::Result<(PathBuf, f64)> {
    if let Some((dir, weight)) = text.rsplit_once('=')
        && !Path::new(text).exists()
    {
        let weight: f64 = weight.parse().ok().filter(|w: &f64| w.is_finite()).with_context(|| {
            format!(
                "adapter weight `{weight}` is not a number\n  expected: ADAPTER or ADAPTER=WEIGHT\n  found:    `{text}`"
            )
        })?;
        return Ok((PathBuf::from(dir), weight));
    }
    Ok((PathBuf::from(text), 1.0))
}

pub fn adapters(args: &SourceArgs) -> anyhow::Result<Vec<(PathBuf, f64)>> {
    args.adapters.iter().map(|text| adapter(text)).collect()
}

/// A number of bytes with an optional unit: powers of 1024 with `i` (MiB), of 1000 without (MB).
pub fn size(text: &str) -> anyhow::Result<u64> {
    const UNITS: &[(&str, u64)] = &[
        ("", 1),
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
    ];
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit = text[digits..].trim().to_uppercase();
    let size = text[..digits].parse::<u64>().ok().and_then(|n| {
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        n.checked_mul(*factor)
    });
    size.with_context(|| {
        format!(
            "`{text}` is not a size\n  expected: a number with B, KB, MB, GB, KiB, MiB or GiB\n  found:    `{text}`"
        )
    })
}

pub fn resources(args: &ResourceArgs) -> anyhow::Result<Resources> {
    Ok(Resources { memory: size(&args.memory)?, threads: args.threads })
}

pub fn families(arch_files: &[PathBuf]) -> anyhow::Result<Families> {
    let mut families = Families::builtin();
    for file in arch_files {
        families.with_file(file)?;
    }
    Ok(families)
}

pub fn variants(names: &[String]) -> anyhow::Result<Vec<FileType>> {
    names.iter().map(|name| Ok(FileType::parse(name.trim())?)).collect()
}

/// The name of the outputs: what was asked for, else the last adapter's directory, else the model's.
pub fn output_name(target: &TargetArgs, source: &SourceArgs, adapters: &[(PathBuf, f64)]) -> anyhow::Result<String> {
    if let Some(name) = &target.name {
        return Ok(name.clone());
    }
    directory_name(adapters.last().map_or(&source.model, |(dir, _)| dir))
}

/// The last part of a directory's path, of the real one where the path ends in `.` or `..`.
pub fn directory_name(dir: &Path) -> anyhow::Result<String> {
    let name = match dir.file_name() {
        Some(name) => name.to_owned(),
        None => match std::path::absolute(dir).ok().and_then(|p| p.canonicalize().ok()) {
            Some(real) if real.file_name().is_some() => real.file_name().unwrap_or_default().to_owned(),
            _ => bail!("`{}` has no name to give to the outputs; use --name", dir.display()),
        },
    };
    name.into_string().map_err(|name| anyhow::anyhow!("`{}` is not UTF-8; use --name", Path::new(&name).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(size("256MiB").unwrap(), 256 << 20);
        assert_eq!(size("2 GB").unwrap(), 2_000_000_000);
        assert_eq!(size("123").unwrap(), 123);
        for bad in ["", "MiB", "1.5GiB", "-1", "99999999999GiB", "1XB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_adapter_may_carry_its_weight() {
        assert_eq!(adapter("lora=0.25").unwrap(), (PathBuf::from("lora"), 0.25));
        assert_eq!(adapter("a/lora").unwrap(), (PathBuf::from("a/lora"), 1.0));
        assert!(adapter("lora=heavy").is_err());
        assert!(adapter("lora=inf").is_err());
    }
}
