//! From all tensors of a checkpoint to all tensors of its GGUF file, in the converter's order.

use super::packing::Companion;
use super::{Packing, TensorPart, TensorRule};
use crate::family::ValueChange;
use crate::{Error, Model, View};
use mlpack_tensor::Shape;
use std::collections::{BTreeMap, HashMap};

/// A tensor of the GGUF file and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedTensor {
    /// Its name.
    pub gguf_name: String,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
    /// The tensors that it is made of, by position in what was mapped: one, or all of a stack. They have one shape.
    pub sources: Vec<usize>,
    /// Where its values are in the sources, one after another.
    pub view: View,
    /// How the sources are packed.
    pub packing: Packing,
    /// What is done to each value.
    pub values: ValueChange,
    /// As F32, whatever type is asked for.
    pub force_f32: bool,
    /// Elements of its one source that the tensors before it are made of.
    pub offset: u64,
}

/// What becomes of a checkpoint.
#[derive(Debug, Default)]
pub struct Mapping {
    /// The tensors of the GGUF file, in file order.
    pub tensors: Vec<MappedTensor>,
    /// Tensors that are not written, by position, each with the reason.
    pub dropped: Vec<(usize, &'static str)>,
    /// Every tensor that cannot be mapped.
    pub problems: Vec<Error>,
}

/// Stacks that are written together, until all their members are there.
struct Pending {
    stacks: Vec<Stack>,
}

struct Stack {
    part: TensorPart,
    entry: usize,
    /// Positions by number. A wrong config must not reserve room, so there is none for those that are not there.
    members: BTreeMap<u64, usize>,
}

impl Model {
    /// What becomes of the tensors of a checkpoint, given in its order.
    pub fn map_tensors(&self, tensors: &[(&str, &Shape)]) -> Mapping {
        let mut mapping = Mapping::default();
        let mut pending: HashMap<(String, u64), Pending> = HashMap::new();
        let mut order = Vec::new();
        let positions: HashMap<&str, usize> = tensors.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
        for (position, (name, shape)) in tensors.iter().enumerate() {
            match self.companion(name, &positions) {
                Companion::Used => continue,
                Companion::Dropped => {
                    mapping.dropped.push((position, "a scale of activations, which llama.cpp computes"));
                    continue;
                }
                Companion::No => {}
            }
            let parts = match self.map_tensor(name, shape) {
                Ok(TensorRule::Mapped(parts)) => parts,
                Ok(TensorRule::Dropped { reason }) => {
                    mapping.dropped.push((position, reason));
                    continue;
                }
                Err(e) => {
                    mapping.problems.push(e);
                    continue;
                }
            };
            if parts.iter().any(|p| p.first_only && mapping.tensors.iter().any(|t| t.gguf_name == p.gguf_name)) {
                mapping.dropped.push((position, "the same as another tensor"));
                continue;
            }
            let mut offset = 0;
            for part in parts {
                let Some(place) = &part.stack else {
                    let len = part.shape.element_count().unwrap_or(0);
                    mapping.tensors.push(single(part, position, offset));
                    offset += len;
                    continue;
                };
                let key = place.group.clone();
                let group = pending.entry(key.clone()).or_insert_with(|| {
                    order.push(key.clone());
                    Pending { stacks: Vec::new() }
                });
                if let Err(e) = self.add(group, part, position, name) {
                    mapping.problems.push(e);
                } else if self.is_complete(group) {
                    let group = pending.remove(&key).expect("it was just looked at");
                    mapping.tensors.extend(group.stacks.into_iter().map(stacked));
                }
            }
        }
        for mapped in &mut mapping.tensors {
            match self.packing(mapped, tensors, &positions) {
                Ok(packing) => mapped.packing = packing,
                Err(e) => mapping.problems.push(e),
            }
        }
        // The converter writes what it repacks before everything else.
        mapping.tensors.sort_by_key(|mapped| !matches!(mapped.packing, Packing::Mxfp4 { .. }));
        // A problem of a member is enough to know of.
        if mapping.problems.is_empty() {
            let open = order.iter().filter_map(|key| pending.get(key)).flat_map(|group| &group.stacks);
            mapping.problems.extend(open.filter_map(|stack| self.incomplete(stack)));
        }
        mapping
    }

    fn add(&self, group: &mut Pending, part: TensorPart, position: usize, name: &str) -> Result<(), Error> {
        let place = part.stack.clone().expect("only members of stacks are added");
        let at = group.stacks.iter().position(|s| s.part.gguf_name == part.gguf_name).unwrap_or_else(|| {
            let entry = self.entry(&part.gguf_name);
            let at = group.stacks.partition_point(|s| s.entry < entry);
            group.stacks.insert(at, Stack { part: part.clone(), entry, members: BTreeMap::new() });
            at
        });
        let stack = &mut group.stacks[at];
        let wrong = |expected: String, found: String| {
            Err(Error::Stack { dir: self.dir().to_owned(), tensor: name.to_owned(), expected, found })
        };
        if stack.part.shape != part.shape {
            return wrong(
                format!("shape {} like the others of its stack", stack.part.shape),
                format!("shape {}", part.shape),
            );
        }
        match stack.members.insert(place.index, position) {
            Some(_) => wrong(format!("one tensor with the number {}", place.index), "two".to_owned()),
            None => Ok(()),
        }
    }

    /// The place of the entry of a GGUF tensor in the description.
    fn entry(&self, gguf_name: &str) -> usize {
        let word = |name: &str| name.split('.').nth(2).map(str::to_owned);
        let of_entry = |name: &String| word(name) == word(gguf_name);
        self.family().tensors.iter().position(|e| e.gguf.iter().any(of_entry)).unwrap_or(usize::MAX)
    }

    /// Whether every stack of the group that the description has is there with all members.
    fn is_complete(&self, group: &Pending) -> bool {
        let name = |stack: &Stack| stack.part.stack.as_ref().map(|place| place.group.0.clone());
        let word = group.stacks.first().and_then(name).unwrap_or_default();
        let of_group = |e: &&crate::family::TensorEntry| matches!(&e.transform, crate::family::TransformEntry::Stack { group, .. } if *group == word);
        group.stacks.len() == self.family().tensors.iter().filter(of_group).count()
            && group.stacks.iter().all(|stack| self.incomplete(stack).is_none())
    }

    fn incomplete(&self, stack: &Stack) -> Option<Error> {
        let count = stack.part.stack.as_ref().map_or(0, |place| place.count);
        let found = stack.members.len() as u64;
        (found < count).then(|| Error::Stack {
            dir: self.dir().to_owned(),
            tensor: stack.part.gguf_name.clone(),
            expected: format!("{count} tensors to make it of (config.json)"),
            found: found.to_string(),
        })
    }
}

fn single(part: TensorPart, position: usize, offset: u64) -> MappedTensor {
    let TensorPart { gguf_name, shape, view, values, force_f32, .. } = part;
    MappedTensor { gguf_name, shape, sources: vec![position], view, packing: Packing::None, values, force_f32, offset }
}

fn stacked(stack: Stack) -> MappedTensor {
    let TensorPart { gguf_name, shape, values, force_f32, .. } = stack.part;
    let sources: Vec<usize> = stack.members.into_values().collect();
    let rows = shape.row_count().unwrap_or(0).saturating_mul(sources.len() as u64);
    let view = View::copy(rows, shape.row_len());
    let shape = Shape::new([sources.len() as u64].into_iter().chain(shape.dims().iter().copied()).collect());
    MappedTensor { gguf_name, shape, sources, view, packing: Packing::None, values, force_f32, offset: 0 }
}
