//! Walking rows block by block.

/// Calls `f` with every block of `N` values and its `B` encoded bytes.
pub(crate) fn encode_each<const N: usize, const B: usize>(
    src: &[f32],
    dst: &mut [u8],
    mut f: impl FnMut(&[f32; N], &mut [u8; B]),
) {
    for (x, out) in src.as_chunks::<N>().0.iter().zip(dst.as_chunks_mut::<B>().0) {
        f(x, out);
    }
}

/// Calls `f` with every block, its importance values, its encoded bytes and what `per_row` says about its row.
pub(crate) fn encode_each_weighted<const N: usize, const B: usize, R: Copy>(
    src: &[f32],
    importance: &[f32],
    dst: &mut [u8],
    per_row: impl Fn(&[f32]) -> R,
    mut f: impl FnMut(R, &[f32; N], &[f32; N], &mut [u8; B]),
) {
    let mut blocks = dst.as_chunks_mut::<B>().0.iter_mut();
    for row in src.chunks_exact(importance.len()) {
        let about = per_row(row);
        let values = row.as_chunks::<N>().0.iter().zip(importance.as_chunks::<N>().0);
        for ((x, w), out) in values.zip(&mut blocks) {
            f(about, x, w, out);
        }
    }
}

/// Calls `f` with the `B` bytes of every block and its `N` values.
pub(crate) fn decode_each<const N: usize, const B: usize>(
    src: &[u8],
    dst: &mut [f32],
    mut f: impl FnMut(&[u8; B], &mut [f32; N]),
) {
    for (block, out) in src.as_chunks::<B>().0.iter().zip(dst.as_chunks_mut::<N>().0) {
        f(block, out);
    }
}

/// Views `N` bytes of a block, for fields whose place is part of the layout.
pub(crate) fn field<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("fields lie inside the block")
}
