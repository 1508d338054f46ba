//! The directory that describes a model: the base's own, or a temporary one with what adapters changed in it.

use mlpack_arch::{Families, Model};
use mlpack_convert::{Computation, Plan, Source, open_model};
use tempfile::TempDir;

/// A model's description for as long as it is read.
pub struct Described {
    dir: Option<TempDir>,
}

impl Described {
    /// The base's own description, where adapters leave it as it is.
    pub fn new(source: &Source) -> anyhow::Result<Described> {
        if !source.is_redescribed() {
            return Ok(Described { dir: None });
        }
        let dir = tempfile::tempdir()?;
        source.describe_into(dir.path())?;
        Ok(Described { dir: Some(dir) })
    }

    /// The model that it describes.
    pub fn open(&self, source: &Source, families: &Families) -> anyhow::Result<Model> {
        Ok(open_model(source, self.dir.as_ref().map(TempDir::path), families)?)
    }

    /// What the model that it describes computes.
    pub fn computation(&self, source: &Source, families: &Families, task: Option<&str>) -> anyhow::Result<Computation> {
        Ok(Computation::open(source, self.dir.as_ref().map(TempDir::path), families, task)?)
    }

    /// Puts the files that the description is made of in place of the temporary ones.
    pub fn settle(&self, source: &Source, plan: &mut Plan) {
        if self.dir.is_some() {
            plan.described_by.iter_mut().for_each(|path| *path = source.origin_of(path));
        }
    }
}
