//! The part of pickle that `torch.save` writes for a map of tensors, as plain data.
//!
//! A pickle is a program for a small stack machine, and its instruction REDUCE calls what GLOBAL named: that is how
//! loading a file can run anything. Here only the names that rebuild a tensor or an ordered dictionary mean something,
//! and they mean data; every other name ends the reading. Opcodes: `Lib/pickletools.py` of CPython 3.14, protocols 2 to 5.

use super::{TorchProblem, storage_dtype};
use mlpack_fs::BoundedReader;
use mlpack_tensor::Dtype;
use std::collections::HashMap;
use std::rc::Rc;

/// How deep values may lie in each other.
const MAX_DEPTH: usize = 64;

/// The functions that are known, none of which is called.
const REBUILD_TENSOR: &str = "torch._utils._rebuild_tensor_v2";
const REBUILD_PARAMETER: &str = "torch._utils._rebuild_parameter";
const ORDERED_DICT: &str = "collections.OrderedDict";

/// A value on the machine's stack. Copies share what they hold.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    /// A tuple, and how deep its values lie.
    Tuple(Rc<[Value]>, usize),
    List(Rc<Vec<Value>>, usize),
    Dict(Rc<Vec<(Value, Value)>>),
    Global(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
    /// A container that was noted before it was filled.
    Unfilled,
}

/// Elements of one type in a member of the archive.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub dtype: Dtype,
    pub key: String,
}

/// A view of a storage; all counts are of elements.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub storage: Rc<Storage>,
    pub offset: u64,
    pub size: Vec<u64>,
    pub stride: Vec<u64>,
}

impl Value {
    /// The value of a text key, where this is a dictionary.
    pub(super) fn entry(&self, key: &str) -> Option<&Value> {
        let Value::Dict(entries) = self else { return None };
        entries.iter().find_map(|(k, v)| matches!(k, Value::Text(text) if &**text == key).then_some(v))
    }

    fn depth(&self) -> usize {
        match self {
            Value::Tuple(_, depth) | Value::List(_, depth) => *depth,
            Value::Dict(entries) => 1 + entries.iter().map(|(k, v)| k.depth().max(v.depth())).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn count(&self) -> Option<u64> {
        match self {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    fn counts(&self) -> Option<Vec<u64>> {
        match self {
            Value::Tuple(values, _) => values.iter().map(Value::count).collect(),
            _ => None,
        }
    }
}

/// What the pickle builds.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, TorchProblem> {
    let mut machine =
        Machine { reader: BoundedReader::new(bytes), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        if let Some(value) = machine.step()? {
            return Ok(value);
        }
    }
}

struct Machine<'a> {
    reader: BoundedReader<'a>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

fn unexpected(text: impl Into<String>) -> TorchProblem {
    TorchProblem::Unexpected(text.into())
}

impl Machine<'_> {
    /// One instruction; the result at the last.
    fn step(&mut self) -> Result<Option<Value>, TorchProblem> {
        let at = self.reader.offset();
        match self.reader.u8()? {
            0x80 => drop(self.reader.u8()?),
            0x95 => drop(self.reader.u64()?),
            b'.' => return self.pop().map(Some),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'K' => self.int(|r| Ok(r.u8()?.into()))?,
            b'M' => self.int(|r| Ok(r.u16()?.into()))?,
            b'J' => self.int(|r| Ok(r.i32()?.into()))?,
            0x8a => self.long()?,
            b'G' => {
                self.reader.u64()?;
                self.stack.push(Value::Float);
            }
            b'X' => self.text(|r| Ok(r.u32()?.into()))?,
            0x8c => self.text(|r| Ok(r.u8()?.into()))?,
            0x8d => self.text(|r| Ok(r.u64()?))?,
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.stack.push(Value::Tuple(Rc::new([]), 1)),
            b't' => {
                let values = self.since_mark()?;
                self.tuple(values)?;
            }
            n @ 0x85..=0x87 => {
                let values = self.top(usize::from(n - 0x84))?;
                self.tuple(values)?;
            }
            b']' => self.stack.push(Value::List(Rc::default(), 1)),
            b'a' => {
                let values = self.top(1)?;
                self.append(values)?;
            }
            b'e' => {
                let values = self.since_mark()?;
                self.append(values)?;
            }
            b'}' => self.stack.push(Value::Dict(Rc::default())),
            b's' => {
                let pairs = self.top(2)?;
                self.insert(pairs)?;
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.insert(pairs)?;
            }
            b'q' => {
                let slot = self.reader.u8()?.into();
                self.note(slot)?;
            }
            b'r' => {
                let slot = self.reader.u32()?;
                self.note(slot)?;
            }
            0x94 => self.note(self.memo.len() as u32)?,
            b'h' => {
                let slot = self.reader.u8()?.into();
                self.recall(slot)?;
            }
            b'j' => {
                let slot = self.reader.u32()?;
                self.recall(slot)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Global(format!("{module}.{name}").into()));
            }
            0x93 => {
                let names = self.top(2)?;
                let [Value::Text(module), Value::Text(name)] = names.as_slice() else {
                    return Err(unexpected("a global without a name"));
                };
                let global = Value::Global(format!("{module}.{name}").into());
                self.stack.push(global);
            }
            b'Q' => self.storage()?,
            b'R' | 0x81 => self.call()?,
            b'b' => {
                // The state of an ordered dictionary is its `_metadata`, which describes modules, not tensors.
                let state = self.top(1)?;
                if !matches!(self.stack.last(), Some(Value::Dict(_))) || !matches!(state[0], Value::Dict(_)) {
                    return Err(unexpected("a state for something that is no dictionary"));
                }
            }
            other => return Err(unexpected(format!("instruction {other:#04x} at {at} of data.pkl"))),
        }
        Ok(None)
    }

    fn pop(&mut self) -> Result<Value, TorchProblem> {
        self.stack.pop().ok_or_else(|| unexpected("an empty stack"))
    }

    fn top(&mut self, n: usize) -> Result<Vec<Value>, TorchProblem> {
        let least = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(n).filter(|from| *from >= least);
        Ok(self.stack.split_off(from.ok_or_else(|| unexpected("an empty stack"))?))
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, TorchProblem> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(|| unexpected("no mark"))?))
    }

    fn int(&mut self, read: impl Fn(&mut BoundedReader<'_>) -> Result<i64, TorchProblem>) -> Result<(), TorchProblem> {
        let value = read(&mut self.reader)?;
        self.stack.push(Value::Int(value));
        Ok(())
    }

    /// A little-endian number in two's complement, of any length in the file and of eight bytes here.
    fn long(&mut self) -> Result<(), TorchProblem> {
        let len = self.reader.u8()?;
        let bytes = self.reader.take(len.into())?;
        if bytes.len() > 8 {
            return Err(unexpected("a number of more than 64 bits"));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut all = [fill; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(all)));
        Ok(())
    }

    fn text(&mut self, len: impl Fn(&mut BoundedReader<'_>) -> Result<u64, TorchProblem>) -> Result<(), TorchProblem> {
        let len = len(&mut self.reader)?;
        let text = std::str::from_utf8(self.reader.take(len)?).map_err(|_| unexpected("text that is not UTF-8"))?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn line(&mut self) -> Result<String, TorchProblem> {
        let mut line = Vec::new();
        loop {
            match self.reader.u8()? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                byte => line.push(byte),
            }
        }
    }

    fn deep(values: &[Value]) -> Result<usize, TorchProblem> {
        let depth = 1 + values.iter().map(Value::depth).max().unwrap_or(0);
        if depth > MAX_DEPTH { Err(unexpected("values too deep in each other")) } else { Ok(depth) }
    }

    fn tuple(&mut self, values: Vec<Value>) -> Result<(), TorchProblem> {
        let depth = Machine::deep(&values)?;
        self.stack.push(Value::Tuple(values.into(), depth));
        Ok(())
    }

    fn append(&mut self, values: Vec<Value>) -> Result<(), TorchProblem> {
        let deepest = Machine::deep(&values)?;
        let Some(Value::List(list, depth)) = self.stack.last_mut() else { return Err(unexpected("no list")) };
        *depth = deepest.max(*depth);
        Rc::make_mut(list).extend(values);
        Ok(())
    }

    fn insert(&mut self, pairs: Vec<Value>) -> Result<(), TorchProblem> {
        Machine::deep(&pairs)?;
        let Some(Value::Dict(entries)) = self.stack.last_mut() else { return Err(unexpected("no dictionary")) };
        let (pairs, rest) = pairs.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(unexpected("a key without a value"));
        }
        Rc::make_mut(entries).extend(pairs.iter().map(|[key, value]| (key.clone(), value.clone())));
        Ok(())
    }

    fn note(&mut self, slot: u32) -> Result<(), TorchProblem> {
        let value = match self.stack.last() {
            None => return Err(unexpected("an empty stack")),
            // It is filled later, which its copy here would not see.
            Some(Value::Dict(_) | Value::List(..)) => Value::Unfilled,
            Some(value) => value.clone(),
        };
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), TorchProblem> {
        match self.memo.get(&slot) {
            None => Err(unexpected("a note that was never made")),
            Some(Value::Unfilled) => Err(unexpected("a list or dictionary in two places")),
            Some(value) => {
                self.stack.push(value.clone());
                Ok(())
            }
        }
    }

    /// `("storage", class, key, device, count)`
    fn storage(&mut self) -> Result<(), TorchProblem> {
        let Value::Tuple(id, _) = self.pop()? else { return Err(unexpected("a storage without a description")) };
        let [Value::Text(kind), Value::Global(class), Value::Text(key), ..] = &id[..] else {
            return Err(unexpected("a storage without a description"));
        };
        let dtype = class.strip_prefix("torch.").and_then(storage_dtype);
        let dtype =
            dtype.filter(|_| &**kind == "storage").ok_or_else(|| unexpected(format!("a storage of {class:?}")))?;
        self.stack.push(Value::Storage(Rc::new(Storage { dtype, key: key.to_string() })));
        Ok(())
    }

    /// What a call of a known function would give.
    fn call(&mut self) -> Result<(), TorchProblem> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let (Value::Global(function), Value::Tuple(arguments, _)) = (&function, &arguments) else {
            return Err(unexpected("a call of something that is no function"));
        };
        let value = match (&**function, &arguments[..]) {
            (ORDERED_DICT, []) => Value::Dict(Rc::default()),
            (REBUILD_PARAMETER, [tensor @ Value::Tensor(_), ..]) => tensor.clone(),
            (REBUILD_TENSOR, [Value::Storage(storage), offset, size, stride, ..]) => {
                let tensor = || {
                    let (size, stride) = (size.counts()?, stride.counts()?);
                    let offset = offset.count()?;
                    (size.len() == stride.len()).then(|| Tensor { storage: storage.clone(), offset, size, stride })
                };
                Value::Tensor(Rc::new(tensor().ok_or_else(|| unexpected("a tensor with a wrong shape"))?))
            }
            (ORDERED_DICT | REBUILD_PARAMETER | REBUILD_TENSOR, _) => {
                return Err(unexpected(format!("`{function}` with other arguments than torch.save gives it")));
            }
            _ => return Err(TorchProblem::Call(function.to_string())),
        };
        self.stack.push(value);
        Ok(())
    }
}
