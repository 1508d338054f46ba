//! Text that a model carries about itself: `metadata_props`, the fourteenth field of the message, pairs of key and value.

use crate::proto::{ModelMetadata, StringStringEntryProto};
use prost::Message as _;

/// Adds pairs at the end of an encoded model. Fields of a message may come in any order, and repeated ones in pieces.
pub fn add_metadata(model: &mut Vec<u8>, entries: &[(String, String)]) {
    let entry = |(key, value): &(String, String)| StringStringEntryProto { key: key.clone(), value: value.clone() };
    let metadata = ModelMetadata { metadata_props: entries.iter().map(entry).collect() };
    model.extend(metadata.encode_to_vec());
}

/// The pairs of a model; `None` where the bytes are no message.
pub fn read_metadata(model: &[u8]) -> Option<Vec<(String, String)>> {
    let metadata = ModelMetadata::decode(model).ok()?;
    Some(metadata.metadata_props.into_iter().map(|entry| (entry.key, entry.value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataFiles, Element, Graph, Profile};

    #[test]
    fn what_is_added_is_read_back_and_the_graph_stays() {
        let mut graph = Graph::new(Profile::Portable);
        let x = graph.input("x", Element::F32, &[1.into()]);
        let y = graph.node("Relu", "/relu", &[&x], Element::F32, &[]);
        graph.output("y", &y, &[1.into()]);
        let plain = graph.encode("m.onnx", &DataFiles::new(graph.weights(), u64::MAX)).unwrap();
        let mut model = plain.clone();
        let pairs = [("mlpack.build", "a1"), ("mlpack.base.0.name", "b")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        add_metadata(&mut model, &pairs[..1]);
        add_metadata(&mut model, &pairs[1..]);
        assert_eq!(read_metadata(&model).unwrap(), pairs);
        assert_eq!(model[..plain.len()], plain);
        assert_eq!(read_metadata(b"\xff\xff\xff"), None);
    }
}
