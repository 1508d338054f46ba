//! Loops over rows, compiled for the vector units that the processor turns out to have.

use pulp::{Arch, NullaryFnOnce};

/// Runs `work`, compiled for AVX2 or AVX-512 where the processor has it. What it calls must be inlined to be part of that,
/// and a closure that is more than a short loop is not always: then it is a type with `#[inline(always)]`.
/// Which instructions do an operation changes no bit: none of them is fused or reordered.
#[inline(always)]
pub(crate) fn simd<W: NullaryFnOnce>(work: W) -> W::Output {
    Arch::new().dispatch(work)
}
