//! Rows on their way: what a device is given, and what it gives back.

use mlpack_quant::uses_importance;
use mlpack_tensor::{Dtype, GgmlType};

/// Rows as they are stored, and what is added to them.
pub struct Slab<'a> {
    /// How they are stored: see [`can_read`].
    pub dtype: Dtype,
    /// Their bytes, little-endian, in the order of the rows.
    pub pieces: &'a [&'a [u8]],
    /// Elements of a row.
    pub row_len: usize,
    /// What is added to every row, in this order; [`crate::MAX_DELTAS`] at most.
    pub deltas: &'a [Delta<'a>],
}

/// Which right factor it is: the same key always has the same values.
pub type PanelKey = (usize, usize);

/// A low-rank difference: `factor · left · right`.
pub struct Delta<'a> {
    /// Of the right factor, which stays on the device from slab to slab.
    pub panel: PanelKey,
    /// Columns of the left factor, rows of the right one.
    pub rank: usize,
    /// Rows of the slab by `rank`.
    pub left: &'a [f32],
    /// Makes the right factor, `rank` by elements of a row, where the device does not have it.
    pub right: &'a dyn Fn() -> Vec<f32>,
    /// What the product is multiplied by, in float64.
    pub factor: f64,
}

/// What is asked for, with room for exactly its bytes.
pub enum Output<'a> {
    /// The merged rows, as the base stores them.
    Stored(&'a mut [u8]),
    /// The rows encoded.
    Encoded {
        /// The type: see [`can_encode`].
        ty: GgmlType,
        /// A value for each column, for types that use it.
        importance: Option<&'a [f32]>,
        /// Their place.
        bytes: &'a mut [u8],
    },
}

/// How a slab went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every output has its bytes.
    Done,
    /// A value is not finite, before merging or after; the outputs are not to be used.
    NotFinite,
}

/// Whether a device reads rows that are stored so.
pub fn can_read(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Whether a device has an encoder for a type, with or without importance.
pub fn can_encode(ty: GgmlType, importance: bool) -> bool {
    matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) || crate::cuda::kernel(ty, importance).is_some()
}

/// Whether encoding to a type takes a CPU much longer than copying the values to a device and back: types that importance changes
/// are searched for, some of them only with it.
pub fn is_searched(ty: GgmlType, importance: bool) -> bool {
    uses_importance(ty) && (importance || !crate::cuda::weighs_by_row(ty))
}
