//! What a store and a sidecar hold: statements and run records, each known by the sha256 of its bytes.

use crate::{Error, RunRecord, Statement, json};
use mlpack_fs::Sha256;

/// Longest object, in bytes.
pub(crate) const MAX_OBJECT_LEN: u64 = 8 << 20;

/// One object with its exact bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Statement(Statement),
    Run(Box<RunRecord>, Vec<u8>),
}

impl Object {
    /// Reads an object; `None` for JSON that is neither, which others may have put there.
    pub fn parse(bytes: &[u8], origin: impl FnOnce() -> String) -> Result<Option<Object>, Error> {
        let value = json::parse(bytes).map_err(|source| Error::Json { origin: origin(), source })?;
        if value.get("_type").is_some() {
            return Ok(Some(Object::Statement(Statement::from_value(value, bytes)?)));
        }
        Ok(RunRecord::from_value(value).map(|record| Object::Run(Box::new(record), bytes.to_vec())))
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Object::Statement(statement) => statement.bytes(),
            Object::Run(_, bytes) => bytes,
        }
    }

    pub fn digest(&self) -> Sha256 {
        Sha256::of(self.bytes())
    }
}
