//! Element types of ONNX tensors (onnx 1.23, `TensorProto.DataType`).

/// The type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// Truth value, one byte.
    Bool,
    /// 4-bit signed integer, two in a byte, the first in the low half.
    I4,
    /// 4-bit unsigned integer, packed likewise.
    U4,
}

impl Element {
    /// The number in the format.
    pub const fn id(self) -> i32 {
        match self {
            Element::F32 => 1,
            Element::U8 => 2,
            Element::I8 => 3,
            Element::I32 => 6,
            Element::I64 => 7,
            Element::Bool => 9,
            Element::F16 => 10,
            Element::Bf16 => 16,
            Element::U4 => 21,
            Element::I4 => 22,
        }
    }

    /// Bytes of so many elements; `None` on overflow.
    pub const fn byte_len(self, elements: u64) -> Option<u64> {
        match self {
            Element::I4 | Element::U4 => Some(elements.div_ceil(2)),
            Element::I8 | Element::U8 | Element::Bool => Some(elements),
            Element::F16 | Element::Bf16 => elements.checked_mul(2),
            Element::F32 | Element::I32 => elements.checked_mul(4),
            Element::I64 => elements.checked_mul(8),
        }
    }

    /// The oldest opset in which tensors have it.
    pub const fn since(self) -> i64 {
        match self {
            Element::I4 | Element::U4 => 21,
            Element::Bf16 => 13,
            _ => 1,
        }
    }
}
