//! What a store and a sidecar hold: statements, run records and signatures, each known by the sha256 of its bytes.

use crate::sign::Bundle;
use crate::{Error, RunRecord, Statement, json};
use mlpack_fs::Sha256;

/// Longest object, in bytes; a bundle has its statement in base64.
pub(crate) const MAX_OBJECT_LEN: u64 = 12 << 20;

/// One object with its exact bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Statement(Statement),
    Run(Box<RunRecord>, Vec<u8>),
    Signed(Box<(Bundle, Statement)>),
}

impl Object {
    /// Reads an object; `None` for JSON that is none of them, which others may have put there.
    pub fn parse(bytes: &[u8], origin: impl FnOnce() -> String) -> Result<Option<Object>, Error> {
        let value = match json::parse(bytes) {
            Ok(value) => value,
            Err(source) => return Err(Error::Json { origin: origin(), source }),
        };
        if value.get("_type").is_some() {
            return Ok(Some(Object::Statement(Statement::from_value(value, bytes)?)));
        }
        if value.get("dsseEnvelope").is_some() {
            let bundle = Bundle::from_value(&value, bytes, &origin())?;
            let statement = Statement::parse(bundle.payload())?;
            return Ok(Some(Object::signed(bundle, statement)));
        }
        Ok(RunRecord::from_value(value).map(|record| Object::Run(Box::new(record), bytes.to_vec())))
    }

    pub fn signed(bundle: Bundle, statement: Statement) -> Object {
        Object::Signed(Box::new((bundle, statement)))
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Object::Statement(statement) => statement.bytes(),
            Object::Run(_, bytes) => bytes,
            Object::Signed(signed) => signed.0.bytes(),
        }
    }

    /// The statement that this object is a signature over.
    pub fn signs(&self) -> Option<&Statement> {
        match self {
            Object::Signed(signed) => Some(&signed.1),
            Object::Statement(_) | Object::Run(..) => None,
        }
    }

    pub fn digest(&self) -> Sha256 {
        Sha256::of(self.bytes())
    }
}
