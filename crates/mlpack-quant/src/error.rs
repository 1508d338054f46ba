//! What can be wrong with a call of this crate.

use mlpack_tensor::{Dtype, GgmlType};

/// A request that cannot be served. Data never causes an error: every `f32` has an encoding, as in ggml.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The type is valid but this crate has no encoder for it.
    #[error("cannot encode to {ty}: there is no encoder for this type")]
    EncodeUnsupported {
        /// The type asked for.
        ty: GgmlType,
    },
    /// The type is valid but this crate has no decoder for it.
    #[error("cannot decode {ty}: there is no decoder for this type")]
    DecodeUnsupported {
        /// The type found.
        ty: GgmlType,
    },
    /// Elements of that type are not weights.
    #[error("cannot read {dtype} elements as weights\n  expected: F16, BF16, F32 or F64\n  found:    {dtype}")]
    WidenUnsupported {
        /// The dtype found.
        dtype: Dtype,
    },
    /// Rows are not whole blocks.
    #[error("cannot encode rows of {row_len} elements to {ty}\n  expected: a multiple of {} elements\n  found:    {row_len} elements", ty.block_len())]
    RowLength {
        /// The type asked for.
        ty: GgmlType,
        /// Elements of one row.
        row_len: usize,
    },
    /// The elements are not whole rows.
    #[error(
        "cannot encode to {ty}: the source is not whole rows\n  expected: a multiple of {row_len} elements\n  found:    {found} elements"
    )]
    PartialRow {
        /// The type asked for.
        ty: GgmlType,
        /// Elements of one row.
        row_len: usize,
        /// Elements of the source.
        found: usize,
    },
    /// The encoded side has the wrong size.
    #[error(
        "the buffer of {ty} data has the wrong size\n  expected: {expected} bytes ({elements} elements)\n  found:    {found} bytes"
    )]
    EncodedLength {
        /// The type.
        ty: GgmlType,
        /// Elements of the other side.
        elements: usize,
        /// Bytes that those elements take.
        expected: u64,
        /// Bytes of the buffer.
        found: usize,
    },
    /// The unquantized side has the wrong size.
    #[error(
        "the buffer of {dtype} data has the wrong size\n  expected: {expected} bytes ({elements} elements)\n  found:    {found} bytes"
    )]
    WidenLength {
        /// The dtype of the source.
        dtype: Dtype,
        /// Elements of the destination.
        elements: usize,
        /// Bytes that those elements take.
        expected: u64,
        /// Bytes of the source.
        found: usize,
    },
    /// An importance row does not belong to these rows.
    #[error(
        "the importance row has the wrong length\n  expected: {row_len} values (one for each column)\n  found:    {found} values"
    )]
    ImportanceLength {
        /// Elements of one row.
        row_len: usize,
        /// Values of the importance row.
        found: usize,
    },
    /// The type has no encoding without importance values.
    #[error("cannot encode to {ty} without an importance matrix")]
    ImportanceMissing {
        /// The type asked for.
        ty: GgmlType,
    },
}

impl Error {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::RowLength { ty, .. } => {
                let smaller =
                    if ty.block_len() > 32 { "a type with blocks of 32, such as Q5_0 or Q8_0, or" } else { "" };
                Some(format!("use {smaller} F16 for this tensor").replace("  ", " "))
            }
            Error::ImportanceMissing { .. } => {
                Some("give an importance matrix, or choose a type that does not need one".to_owned())
            }
            Error::ImportanceLength { .. } => Some("the importance matrix was made for another model".to_owned()),
            _ => None,
        }
    }
}
