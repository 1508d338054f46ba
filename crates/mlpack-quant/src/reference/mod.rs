//! The scalar reference: one module for each family of block types, one function for each direction.
//!
//! It is the definition. Every other path of the crate is tested to give the same bits.

pub(crate) mod cells;
pub(crate) mod fp4;
pub(crate) mod grids;
pub(crate) mod iq1;
pub(crate) mod iq2;
pub(crate) mod iq3;
pub(crate) mod iq4;
pub(crate) mod k2_k3;
pub(crate) mod k4_k5;
pub(crate) mod k6;
pub(crate) mod lattice;
pub(crate) mod low_bits;
pub(crate) mod plain;
pub(crate) mod search;
