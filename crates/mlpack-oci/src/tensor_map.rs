//! The tensor map of a GGUF: where each tensor is and what its bytes hash to, so that a client can fetch only what changed.
//!
//! ```text
//! {"schema":"mlpack.tensor-map/v1","file":"sha256:…","size":N,
//!  "tensors":[{"name":"token_embd.weight","offset":…,"length":…,"sha256":"…"}, …]}      in the order of the file
//! ```

use crate::Error;
use mlpack_fs::Sha256;
use serde::{Deserialize, Serialize};

const SCHEMA: &str = "mlpack.tensor-map/v1";

/// Where the tensors of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The file's digest.
    pub file: Sha256,
    /// Its length in bytes.
    pub byte_len: u64,
    /// Its tensors, by offset; they do not overlap.
    pub tensors: Vec<MappedTensor>,
}

/// A tensor's bytes in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedTensor {
    /// Its name.
    pub name: String,
    /// Its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub byte_len: u64,
    /// The digest of its bytes.
    pub sha256: Sha256,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    schema: String,
    file: String,
    size: u64,
    tensors: Vec<RawTensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    name: String,
    offset: u64,
    length: u64,
    sha256: String,
}

impl TensorMap {
    /// The map's bytes; the same map gives the same ones.
    pub fn to_bytes(&self) -> Vec<u8> {
        let tensors = self.tensors.iter().map(|t| RawTensor {
            name: t.name.clone(),
            offset: t.offset,
            length: t.byte_len,
            sha256: t.sha256.to_string(),
        });
        let raw = Raw {
            schema: SCHEMA.to_owned(),
            file: format!("sha256:{}", self.file),
            size: self.byte_len,
            tensors: tensors.collect(),
        };
        serde_json::to_vec(&raw).expect("string keys serialise")
    }

    /// Reads a map; tensors must lie in the file, one after the other.
    pub fn parse(bytes: &[u8]) -> Result<TensorMap, Error> {
        let refuse = |found: &str| Error::Contents { expected: "a tensor map", found: found.to_owned() };
        let raw: Raw = serde_json::from_slice(bytes).map_err(|e| refuse(&e.to_string()))?;
        if raw.schema != SCHEMA {
            return Err(refuse(&raw.schema));
        }
        let file =
            raw.file.strip_prefix("sha256:").and_then(|hex| hex.parse().ok()).ok_or_else(|| refuse(&raw.file))?;
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        let mut end = 0;
        for t in raw.tensors {
            let last = t.offset.checked_add(t.length).filter(|last| t.offset >= end && *last <= raw.size);
            end = last.ok_or_else(|| refuse("a tensor outside of the file or in another one"))?;
            let sha256 = t.sha256.parse().map_err(|_| refuse(&t.sha256))?;
            tensors.push(MappedTensor { name: t.name, offset: t.offset, byte_len: t.length, sha256 });
        }
        Ok(TensorMap { file, byte_len: raw.size, tensors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_reads_as_it_was_written_and_one_that_lies_is_refused() {
        let tensor =
            |offset, byte_len| MappedTensor { name: "t".to_owned(), offset, byte_len, sha256: Sha256::of(b"t") };
        let map = |tensors| TensorMap { file: Sha256::of(b"f"), byte_len: 100, tensors };
        let good = map(vec![tensor(10, 20), tensor(40, 60)]);
        assert_eq!(TensorMap::parse(&good.to_bytes()).unwrap(), good);
        for tensors in [vec![tensor(90, 11)], vec![tensor(10, 20), tensor(29, 1)], vec![tensor(u64::MAX, 2)]] {
            assert!(matches!(TensorMap::parse(&map(tensors).to_bytes()), Err(Error::Contents { .. })));
        }
        assert!(TensorMap::parse(b"{}").is_err());
    }
}
