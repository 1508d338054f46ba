//! The public functions: size checks, then one row of the table of types.

use crate::blocks::{decode_each, encode_each, encode_each_weighted};
use crate::float::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16};
use crate::reference::{fp4, iq1, iq2, iq3, iq4, k2_k3, k4_k5, k6, low_bits, plain};
use crate::{Backend, Error};
use mlpack_tensor::{Dtype, GgmlType};

/// Encodes whole rows.
///
/// `src` holds rows of `row_len` values, `dst` exactly their encoded bytes. `importance` has one value for each column
/// (the activations' mean square from an importance matrix); the types that ggml encodes without it (F32, F16, BF16,
/// Q8_0, …) ignore it. The bytes are those of ggml's `ggml_quantize_chunk` (b11434, x86-64 baseline build).
///
/// A finite value beyond the range of F16 becomes infinite there, as in ggml: callers that must not lose it check first.
///
/// # Errors
/// [`Error`] when the type has no encoder, needs importance values and got none, or a length does not fit.
pub fn encode(
    ty: GgmlType,
    src: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<(), Error> {
    encode_on(Backend::best(), ty, src, row_len, importance, dst)
}

/// [`encode`] with a chosen implementation: for tests and measurements, as all give the same bytes.
///
/// # Errors
/// As [`encode`].
pub fn encode_on(
    backend: Backend,
    ty: GgmlType,
    src: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<(), Error> {
    if !can_encode(ty) {
        return Err(Error::EncodeUnsupported { ty });
    }
    if row_len == 0 || !(row_len as u64).is_multiple_of(ty.block_len()) {
        return Err(Error::RowLength { ty, row_len });
    }
    if !src.len().is_multiple_of(row_len) {
        return Err(Error::PartialRow { ty, row_len, found: src.len() });
    }
    let expected = ty.row_byte_len(src.len() as u64).unwrap_or(u64::MAX);
    if expected != dst.len() as u64 {
        return Err(Error::EncodedLength { ty, elements: src.len(), expected, found: dst.len() });
    }
    match importance {
        Some(values) if values.len() != row_len => {
            return Err(Error::ImportanceLength { row_len, found: values.len() });
        }
        None if needs_importance(ty) => return Err(Error::ImportanceMissing { ty }),
        _ => {}
    }
    let importance = importance.filter(|_| uses_importance(ty));
    if backend.encode(ty, src, importance, dst) {
        return Ok(());
    }
    match importance {
        Some(importance) => encode_weighted(ty, src, importance, dst),
        None => encode_plain(ty, src, dst),
    }
    Ok(())
}

/// The scalar reference without importance. The type has an encoder and the lengths fit.
pub(crate) fn encode_plain(ty: GgmlType, src: &[f32], dst: &mut [u8]) {
    match ty {
        GgmlType::F32 => encode_each::<1, 4>(src, dst, |x, out| *out = x[0].to_le_bytes()),
        GgmlType::F16 => encode_each::<1, 2>(src, dst, |x, out| *out = f16_from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => encode_each::<1, 2>(src, dst, |x, out| *out = bf16_from_f32(x[0]).to_le_bytes()),
        GgmlType::Q4_0 => encode_each(src, dst, plain::encode_q4_0),
        GgmlType::Q4_1 => encode_each(src, dst, plain::encode_q4_1),
        GgmlType::Q5_0 => encode_each(src, dst, plain::encode_q5_0),
        GgmlType::Q5_1 => encode_each(src, dst, plain::encode_q5_1),
        GgmlType::Q8_0 => encode_each(src, dst, plain::encode_q8_0),
        GgmlType::Q2_K => encode_each(src, dst, k2_k3::encode_q2_k),
        GgmlType::Q3_K => encode_each(src, dst, k2_k3::encode_q3_k),
        GgmlType::Q4_K => encode_each(src, dst, k4_k5::encode_q4_k),
        GgmlType::Q5_K => encode_each(src, dst, k4_k5::encode_q5_k),
        GgmlType::Q6_K => encode_each(src, dst, k6::encode_q6_k),
        GgmlType::Q1_0 => encode_each(src, dst, low_bits::encode_q1_0),
        GgmlType::Q2_0 => encode_each(src, dst, low_bits::encode_q2_0),
        GgmlType::TQ1_0 => encode_each(src, dst, low_bits::encode_tq1_0),
        GgmlType::TQ2_0 => encode_each(src, dst, low_bits::encode_tq2_0),
        GgmlType::MXFP4 => encode_each(src, dst, fp4::encode_mxfp4),
        GgmlType::NVFP4 => encode_each(src, dst, fp4::encode_nvfp4),
        GgmlType::IQ4_NL => encode_each(src, dst, |x, out| iq4::encode_iq4_nl(x, None, out)),
        GgmlType::IQ4_XS => encode_each(src, dst, |x, out| iq4::encode_iq4_xs(x, None, out)),
        GgmlType::IQ3_XXS => encode_each(src, dst, |x, out| iq3::encode_iq3_xxs(x, None, out)),
        GgmlType::IQ3_S => encode_each(src, dst, |x, out| iq3::encode_iq3_s(x, None, out)),
        GgmlType::IQ2_S => encode_each(src, dst, |x, out| iq2::encode_iq2_s(x, None, out)),
        GgmlType::IQ1_M => encode_each(src, dst, |x, out| iq1::encode_iq1_m(x, None, out)),
        _ => unreachable!("{ty} has no encoder and was refused"),
    }
}

/// The scalar reference with importance, for the types that use it.
pub(crate) fn encode_weighted(ty: GgmlType, src: &[f32], importance: &[f32], dst: &mut [u8]) {
    match ty {
        GgmlType::Q4_0 => {
            encode_each_weighted(src, importance, dst, plain::mean_square, plain::encode_q4_0_weighted);
        }
        GgmlType::Q4_1 => {
            encode_each_weighted(src, importance, dst, plain::mean_square, plain::encode_q4_1_weighted);
        }
        GgmlType::Q5_0 => {
            encode_each_weighted(src, importance, dst, plain::mean_square, plain::encode_q5_0_weighted);
        }
        GgmlType::Q5_1 => {
            encode_each_weighted(src, importance, dst, plain::mean_square, plain::encode_q5_1_weighted);
        }
        GgmlType::Q2_K => by_columns(src, importance, dst, k2_k3::encode_q2_k_weighted),
        GgmlType::Q3_K => by_columns(src, importance, dst, k2_k3::encode_q3_k_weighted),
        GgmlType::Q4_K => by_columns(src, importance, dst, k4_k5::encode_q4_k_weighted),
        GgmlType::Q5_K => by_columns(src, importance, dst, k4_k5::encode_q5_k_weighted),
        GgmlType::Q6_K => by_columns(src, importance, dst, k6::encode_q6_k_weighted),
        GgmlType::IQ4_NL => by_columns(src, importance, dst, |x, w, out| iq4::encode_iq4_nl(x, Some(w), out)),
        GgmlType::IQ4_XS => by_columns(src, importance, dst, |x, w, out| iq4::encode_iq4_xs(x, Some(w), out)),
        GgmlType::IQ3_XXS => by_columns(src, importance, dst, |x, w, out| iq3::encode_iq3_xxs(x, Some(w), out)),
        GgmlType::IQ3_S => by_columns(src, importance, dst, |x, w, out| iq3::encode_iq3_s(x, Some(w), out)),
        GgmlType::IQ2_XXS => by_columns(src, importance, dst, iq2::encode_iq2_xxs),
        GgmlType::IQ2_XS => by_columns(src, importance, dst, iq2::encode_iq2_xs),
        GgmlType::IQ2_S => by_columns(src, importance, dst, |x, w, out| iq2::encode_iq2_s(x, Some(w), out)),
        GgmlType::IQ1_S => by_columns(src, importance, dst, iq1::encode_iq1_s),
        GgmlType::IQ1_M => by_columns(src, importance, dst, |x, w, out| iq1::encode_iq1_m(x, Some(w), out)),
        _ => unreachable!("{ty} does not use importance"),
    }
}

/// [`encode_each_weighted`] for the types that need to know nothing about the row.
fn by_columns<const N: usize, const B: usize>(
    src: &[f32],
    importance: &[f32],
    dst: &mut [u8],
    mut f: impl FnMut(&[f32; N], &[f32; N], &mut [u8; B]),
) {
    encode_each_weighted(src, importance, dst, |_| (), |(), x, w, out| f(x, w, out));
}

/// Decodes consecutive blocks: `src` holds exactly the encoded bytes of `dst.len()` values.
///
/// # Errors
/// [`Error`] when the type has no decoder or the lengths do not fit.
pub fn decode(ty: GgmlType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    decode_on(Backend::best(), ty, src, dst)
}

/// [`decode`] with a chosen implementation: for tests and measurements, as all give the same values.
///
/// # Errors
/// As [`decode`].
pub fn decode_on(backend: Backend, ty: GgmlType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    if !can_decode(ty) {
        return Err(Error::DecodeUnsupported { ty });
    }
    if !(dst.len() as u64).is_multiple_of(ty.block_len()) {
        return Err(Error::RowLength { ty, row_len: dst.len() });
    }
    let expected = ty.row_byte_len(dst.len() as u64).unwrap_or(u64::MAX);
    if expected != src.len() as u64 {
        return Err(Error::EncodedLength { ty, elements: dst.len(), expected, found: src.len() });
    }
    if !backend.decode(ty, src, dst) {
        decode_plain(backend, ty, src, dst);
    }
    Ok(())
}

/// The scalar reference, but for the floats. The type has a decoder and the lengths fit.
fn decode_plain(backend: Backend, ty: GgmlType, src: &[u8], dst: &mut [f32]) {
    match ty {
        GgmlType::F32 => backend.widen(Dtype::F32, src, dst),
        GgmlType::F16 => backend.widen(Dtype::F16, src, dst),
        GgmlType::BF16 => backend.widen(Dtype::BF16, src, dst),
        GgmlType::Q4_0 => decode_each(src, dst, plain::decode_q4_0),
        GgmlType::Q4_1 => decode_each(src, dst, plain::decode_q4_1),
        GgmlType::Q5_0 => decode_each(src, dst, plain::decode_q5_0),
        GgmlType::Q5_1 => decode_each(src, dst, plain::decode_q5_1),
        GgmlType::Q8_0 => decode_each(src, dst, plain::decode_q8_0),
        GgmlType::Q2_K => decode_each(src, dst, k2_k3::decode_q2_k),
        GgmlType::Q3_K => decode_each(src, dst, k2_k3::decode_q3_k),
        GgmlType::Q4_K => decode_each(src, dst, k4_k5::decode_q4_k),
        GgmlType::Q5_K => decode_each(src, dst, k4_k5::decode_q5_k),
        GgmlType::Q6_K => decode_each(src, dst, k6::decode_q6_k),
        GgmlType::Q1_0 => decode_each(src, dst, low_bits::decode_q1_0),
        GgmlType::Q2_0 => decode_each(src, dst, low_bits::decode_q2_0),
        GgmlType::TQ1_0 => decode_each(src, dst, low_bits::decode_tq1_0),
        GgmlType::TQ2_0 => decode_each(src, dst, low_bits::decode_tq2_0),
        GgmlType::MXFP4 => decode_each(src, dst, fp4::decode_mxfp4),
        GgmlType::NVFP4 => decode_each(src, dst, fp4::decode_nvfp4),
        GgmlType::IQ4_NL => decode_each(src, dst, iq4::decode_iq4_nl),
        GgmlType::IQ4_XS => decode_each(src, dst, iq4::decode_iq4_xs),
        GgmlType::IQ3_XXS => decode_each(src, dst, iq3::decode_iq3_xxs),
        GgmlType::IQ3_S => decode_each(src, dst, iq3::decode_iq3_s),
        GgmlType::IQ2_XXS => decode_each(src, dst, iq2::decode_iq2_xxs),
        GgmlType::IQ2_XS => decode_each(src, dst, iq2::decode_iq2_xs),
        GgmlType::IQ2_S => decode_each(src, dst, iq2::decode_iq2_s),
        GgmlType::IQ1_S => decode_each(src, dst, iq1::decode_iq1_s),
        GgmlType::IQ1_M => decode_each(src, dst, iq1::decode_iq1_m),
        _ => unreachable!("{ty} has no decoder and was refused"),
    }
}

/// Reads little-endian floats as `f32`: F16, BF16 and F32 exactly, F64 rounded once to the nearest.
///
/// # Errors
/// [`Error`] when the dtype is not a float of 16 bits or more, or `src` is not exactly `dst.len()` elements.
pub fn widen(dtype: Dtype, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    widen_on(Backend::best(), dtype, src, dst)
}

/// [`widen`] with a chosen implementation: for tests and measurements, as all give the same bits.
///
/// # Errors
/// As [`widen`].
pub fn widen_on(backend: Backend, dtype: Dtype, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    if !dtype.is_float() {
        return Err(Error::WidenUnsupported { dtype });
    }
    let expected = (dst.len() as u64).saturating_mul(dtype.byte_size());
    if expected != src.len() as u64 {
        return Err(Error::WidenLength { dtype, elements: dst.len(), expected, found: src.len() });
    }
    backend.widen(dtype, src, dst);
    Ok(())
}

/// The scalar reference of [`widen`], for the float dtypes and lengths that fit.
pub(crate) fn widen_plain(dtype: Dtype, src: &[u8], dst: &mut [f32]) {
    match dtype {
        Dtype::F16 => decode_each::<1, 2>(src, dst, |b, v| v[0] = f32_from_f16(u16::from_le_bytes(*b))),
        Dtype::BF16 => decode_each::<1, 2>(src, dst, |b, v| v[0] = f32_from_bf16(u16::from_le_bytes(*b))),
        Dtype::F32 => {
            for (b, v) in src.as_chunks().0.iter().zip(dst) {
                *v = f32::from_le_bytes(*b);
            }
        }
        Dtype::F64 => decode_each::<1, 8>(src, dst, |b, v| v[0] = f64::from_le_bytes(*b) as f32),
        _ => unreachable!("{dtype} is not a float and was refused"),
    }
}

/// Whether [`encode`] knows the type: every type that ggml's `ggml_quantize_chunk` writes.
pub const fn can_encode(ty: GgmlType) -> bool {
    // Q8_1 and Q8_K only ever hold activations; the integers and F64 are no encodings of weights.
    !matches!(
        ty,
        GgmlType::Q8_1 | GgmlType::Q8_K | GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64
    )
}

/// Whether [`decode`] knows the type.
pub const fn can_decode(ty: GgmlType) -> bool {
    can_encode(ty)
}

/// Whether [`encode`] refuses the type without importance values (ggml's `ggml_quantize_requires_imatrix`).
pub const fn needs_importance(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::IQ2_XXS | GgmlType::IQ2_XS | GgmlType::IQ1_S)
}

/// Whether importance values change the bytes of the type.
pub const fn uses_importance(ty: GgmlType) -> bool {
    matches!(
        ty,
        GgmlType::Q4_0
            | GgmlType::Q4_1
            | GgmlType::Q5_0
            | GgmlType::Q5_1
            | GgmlType::Q2_K
            | GgmlType::Q3_K
            | GgmlType::Q4_K
            | GgmlType::Q5_K
            | GgmlType::Q6_K
            | GgmlType::IQ1_S
            | GgmlType::IQ1_M
            | GgmlType::IQ2_XXS
            | GgmlType::IQ2_XS
            | GgmlType::IQ2_S
            | GgmlType::IQ3_XXS
            | GgmlType::IQ3_S
            | GgmlType::IQ4_NL
            | GgmlType::IQ4_XS
    )
}
