//! Text that a file carries about itself: `__metadata__` of its header, a map from strings to strings.

use crate::layout::preamble;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const METADATA: &str = "__metadata__";

/// A preamble with entries added to its metadata: the length prefix and the header. Those that are there keep their values,
/// and tensors their places in the data. Without any metadata before, `format: pt` is added too: transformers refuses a file
/// that has some and not this. `None` where the bytes are no preamble.
pub fn add_metadata(old: &[u8], entries: &[(String, String)]) -> Option<Vec<u8>> {
    let mut header: Map<String, Value> = serde_json::from_slice(old.get(8..)?).ok()?;
    let metadata = header.entry(METADATA).or_insert_with(|| json!({"format": "pt"})).as_object_mut()?;
    for (key, value) in entries {
        metadata.entry(key.as_str()).or_insert_with(|| value.as_str().into());
    }
    Some(preamble(header))
}

/// The metadata of a preamble; `None` where the bytes are no preamble.
pub fn read_metadata(preamble: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut header: Map<String, Value> = serde_json::from_slice(preamble.get(8..)?).ok()?;
    header.remove(METADATA).map_or(Some(BTreeMap::new()), |metadata| serde_json::from_value(metadata).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewTensor, SafetensorsFile, lay_out};
    use mlpack_tensor::{Dtype, Shape};

    #[test]
    fn what_is_added_is_read_back_by_the_safetensors_crate_and_the_tensors_stay() {
        let tensor = |name: &str| NewTensor { name: name.to_owned(), dtype: Dtype::U8, shape: Shape::new(vec![3]) };
        let layout = lay_out(&[tensor("b"), tensor("a")]).unwrap();
        let pairs = [("format", "np"), ("mlpack.build", "\"é")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let new = add_metadata(&layout.preamble, &pairs).unwrap();
        assert_eq!(new.len() % 8, 0);
        let expected = BTreeMap::from([("format".to_owned(), "pt".to_owned()), pairs[1].clone()]);
        assert_eq!(read_metadata(&new).unwrap(), expected);
        let dir = tempfile::tempdir().unwrap();
        let places = |preamble: &[u8]| {
            let path = dir.path().join("m.safetensors");
            let mut bytes = preamble.to_vec();
            bytes.extend(1..=6);
            std::fs::write(&path, &bytes).unwrap();
            let theirs = safetensors::SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
            assert_eq!(theirs.into_iter().collect::<BTreeMap<_, _>>(), read_metadata(preamble).unwrap());
            let file = SafetensorsFile::open(&path).unwrap();
            file.entries().iter().map(|e| (e.name.clone(), file.bytes(e).to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(places(&layout.preamble), places(&new));
    }

    #[test]
    fn a_file_without_metadata_says_its_format_too_and_what_is_no_preamble_is_none() {
        let bare = b"\x02\0\0\0\0\0\0\0{}";
        assert_eq!(read_metadata(bare).unwrap(), BTreeMap::new());
        let new = add_metadata(bare, &[("k".to_owned(), "v".to_owned())]).unwrap();
        let pairs = [("format", "pt"), ("k", "v")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(read_metadata(&new).unwrap(), BTreeMap::from(pairs));
        for no_preamble in [&b""[..], b"\x02\0\0\0\0\0\0\0[]", b"\x12\0\0\0\0\0\0\0{\"__metadata__\":1}"] {
            assert_eq!((add_metadata(no_preamble, &[]), read_metadata(no_preamble)), (None, None));
        }
    }
}
