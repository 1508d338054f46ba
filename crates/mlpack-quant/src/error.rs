//! What can be wrong with a call of this crate.

use mlpack_fs::ErrorKind;
use mlpack_tensor::{Dtype, GgmlType};

/// A request that cannot be served. Data never causes an error: every `f32` has an encoding, as in ggml.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The type is valid but this crate has no encoder for it.
    #[error(
        "cannot encode to {ty}\n  expected: a type that weights are stored in, such as Q8_0 or F16\n  found:    {ty}"
    )]
    EncodeUnsupported {
        /// The type asked for.
        ty: GgmlType,
    },
    /// The type is valid but this crate has no decoder for it.
    #[error("cannot decode {ty}\n  expected: a type that weights are stored in, such as Q8_0 or F16\n  found:    {ty}")]
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
        "cannot encode a part of a row to {ty}\n  expected: a multiple of {row_len} elements\n  found:    {found} elements"
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
        "cannot use a buffer of {ty} data\n  expected: {expected} bytes ({elements} elements)\n  found:    {found} bytes"
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
        "cannot use a buffer of {dtype} data\n  expected: {expected} bytes ({elements} elements)\n  found:    {found} bytes"
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
        "cannot weigh rows of {row_len} elements\n  expected: {row_len} values of importance (one for each column)\n  found:    {found} values of importance"
    )]
    ImportanceLength {
        /// Elements of one row.
        row_len: usize,
        /// Values of the importance row.
        found: usize,
    },
    /// The type has no encoding without importance values.
    #[error(
        "cannot encode to {ty}\n  expected: an importance matrix, without which this type is not made\n  found:    none"
    )]
    ImportanceMissing {
        /// The type asked for.
        ty: GgmlType,
    },
}

impl Error {
    /// Whose fault it is. Sizes are the caller's own; a row length and the values of an importance matrix come from files.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::EncodeUnsupported { .. }
            | Error::DecodeUnsupported { .. }
            | Error::WidenUnsupported { .. }
            | Error::RowLength { .. } => ErrorKind::Unsupported,
            Error::ImportanceLength { .. } => ErrorKind::Mismatch,
            Error::ImportanceMissing { .. }
            | Error::PartialRow { .. }
            | Error::EncodedLength { .. }
            | Error::WidenLength { .. } => ErrorKind::Misuse,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode, widen};

    #[test]
    fn messages_say_what_was_expected_and_found() {
        let x = [0.0f32; 96];
        let encoded = |ty, len: usize, row_len, importance, bytes: usize| {
            let e = encode(ty, &x[..len], row_len, importance, &mut vec![0; bytes]).unwrap_err();
            (e.kind(), e.to_string(), e.hint())
        };
        let (unsupported, mismatch, misuse) = (ErrorKind::Unsupported, ErrorKind::Mismatch, ErrorKind::Misuse);
        let hint = |text: &str| Some(text.to_owned());
        let text = "cannot encode to Q8_K\n  expected: a type that weights are stored in, such as Q8_0 or F16\n  found:    Q8_K";
        assert_eq!(encoded(GgmlType::Q8_K, 32, 32, None, 34), (unsupported, text.to_owned(), None));
        let text = "cannot encode rows of 96 elements to Q4_K\n  expected: a multiple of 256 elements\n  found:    96 elements";
        let advice = hint("use a type with blocks of 32, such as Q5_0 or Q8_0, or F16 for this tensor");
        assert_eq!(encoded(GgmlType::Q4_K, 96, 96, None, 0), (unsupported, text.to_owned(), advice));
        let text =
            "cannot encode a part of a row to Q8_0\n  expected: a multiple of 64 elements\n  found:    96 elements";
        assert_eq!(encoded(GgmlType::Q8_0, 96, 64, None, 102), (misuse, text.to_owned(), None));
        let text = "cannot use a buffer of Q8_0 data\n  expected: 34 bytes (32 elements)\n  found:    33 bytes";
        assert_eq!(encoded(GgmlType::Q8_0, 32, 32, None, 33), (misuse, text.to_owned(), None));
        let text = "cannot weigh rows of 32 elements\n  expected: 32 values of importance (one for each column)\n  found:    31 values of importance";
        let advice = hint("the importance matrix was made for another model");
        assert_eq!(encoded(GgmlType::Q4_0, 32, 32, Some(&x[..31]), 18), (mismatch, text.to_owned(), advice));
        let long = [0.0f32; 256];
        let e = encode(GgmlType::IQ1_S, &long, 256, None, &mut [0; 50]).unwrap_err();
        let text = "cannot encode to IQ1_S\n  expected: an importance matrix, without which this type is not made\n  found:    none";
        assert_eq!((e.kind(), e.to_string().as_str()), (misuse, text));
        assert_eq!(e.hint(), hint("give an importance matrix, or choose a type that does not need one"));
        let e = decode(GgmlType::I8, &[0; 4], &mut [0.0; 4]).unwrap_err();
        let text =
            "cannot decode I8\n  expected: a type that weights are stored in, such as Q8_0 or F16\n  found:    I8";
        assert_eq!((e.kind(), e.to_string().as_str()), (unsupported, text));
        let e = widen(Dtype::F16, &[0; 3], &mut [0.0; 2]).unwrap_err();
        let text = "cannot use a buffer of F16 data\n  expected: 4 bytes (2 elements)\n  found:    3 bytes";
        assert_eq!((e.kind(), e.to_string().as_str()), (misuse, text));
        let e = widen(Dtype::I32, &[0; 4], &mut [0.0; 1]).unwrap_err();
        let text = "cannot read I32 elements as weights\n  expected: F16, BF16, F32 or F64\n  found:    I32";
        assert_eq!((e.kind(), e.to_string().as_str()), (unsupported, text));
    }
}
