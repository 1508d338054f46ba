//! The kernels: their names, what they are given, and how they are started. The structures are those of `kernels/rows.h` and
//! `kernels/list.h`.

use super::driver::{Address, Context};
use super::memory::Channel;
use crate::Error;
use mlpack_quant::has_grid;
use mlpack_tensor::{Dtype, GgmlType};
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;

/// Threads of a CUDA block.
const THREADS: u64 = 128;
/// Rows that a thread of the merging kernel computes.
const MERGE_ROWS: u64 = 8;
/// Differences that can be added to rows at once.
pub const MAX_DELTAS: usize = 4;

/// An encoder: its kernel, and how many threads a block of the type takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoder {
    name: &'static CStr,
    lanes: u64,
    /// Whether it needs the mean squares of rows.
    pub mean_squares: bool,
    /// Whether it needs the grid of its type.
    pub grid: bool,
    /// Whether it uses importance.
    pub weighted: bool,
}

/// The encoder of a type. Those that do not use importance are the same with and without it; some need it.
pub(crate) fn kernel(ty: GgmlType, importance: bool) -> Option<Encoder> {
    let (plain, weighted, lanes) = match ty {
        GgmlType::Q4_0 => (Some(c"q4_0"), Some(c"q4_0_weighted"), 1),
        GgmlType::Q4_1 => (Some(c"q4_1"), Some(c"q4_1_weighted"), 1),
        GgmlType::Q5_0 => (Some(c"q5_0"), Some(c"q5_0_weighted"), 1),
        GgmlType::Q5_1 => (Some(c"q5_1"), Some(c"q5_1_weighted"), 1),
        GgmlType::Q8_0 => (Some(c"q8_0"), None, 1),
        GgmlType::Q2_K => (Some(c"q2_k"), Some(c"q2_k_weighted"), 16),
        GgmlType::Q3_K => (Some(c"q3_k"), Some(c"q3_k_weighted"), 16),
        GgmlType::Q4_K => (Some(c"q4_k"), Some(c"q4_k_weighted"), 8),
        GgmlType::Q5_K => (Some(c"q5_k"), Some(c"q5_k_weighted"), 8),
        GgmlType::Q6_K => (Some(c"q6_k"), Some(c"q6_k_weighted"), 16),
        GgmlType::IQ1_S => (None, Some(c"iq1_s_weighted"), 8),
        GgmlType::IQ1_M => (Some(c"iq1_m"), Some(c"iq1_m_weighted"), 16),
        GgmlType::IQ2_XXS => (None, Some(c"iq2_xxs_weighted"), 8),
        GgmlType::IQ2_XS => (None, Some(c"iq2_xs_weighted"), 16),
        GgmlType::IQ2_S => (Some(c"iq2_s"), Some(c"iq2_s_weighted"), 16),
        GgmlType::IQ3_XXS => (Some(c"iq3_xxs"), Some(c"iq3_xxs_weighted"), 8),
        GgmlType::IQ3_S => (Some(c"iq3_s"), Some(c"iq3_s_weighted"), 8),
        GgmlType::IQ4_NL => (Some(c"iq4_nl"), Some(c"iq4_nl_weighted"), 1),
        GgmlType::IQ4_XS => (Some(c"iq4_xs"), Some(c"iq4_xs_weighted"), 8),
        GgmlType::MXFP4 => (Some(c"mxfp4"), None, 1),
        GgmlType::NVFP4 => (Some(c"nvfp4"), None, 1),
        GgmlType::Q1_0 => (Some(c"q1_0"), None, 1),
        GgmlType::Q2_0 => (Some(c"q2_0"), None, 1),
        GgmlType::TQ1_0 => (Some(c"tq1_0"), None, 1),
        GgmlType::TQ2_0 => (Some(c"tq2_0"), None, 1),
        _ => return None,
    };
    let grid = has_grid(ty);
    match weighted.filter(|_| importance) {
        Some(name) => Some(Encoder { name, lanes, mean_squares: weighs_by_row(ty), grid, weighted: true }),
        None => plain.map(|name| Encoder { name, lanes, mean_squares: false, grid, weighted: false }),
    }
}

/// Whether importance weighs the values of a type together with the mean square of their row, and is all that is searched by.
pub(crate) fn weighs_by_row(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1)
}

/// How kernels are told how values are stored.
pub(crate) fn dtype_code(dtype: Dtype) -> Option<u32> {
    match dtype {
        Dtype::F32 => Some(0),
        Dtype::F16 => Some(1),
        Dtype::BF16 => Some(2),
        _ => None,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Encode {
    pub x: Address,
    pub importance: Address,
    pub mean_squares: Address,
    pub out: Address,
    pub combinations: Address,
    pub list: Address,
    pub blocks: u64,
    pub blocks_per_row: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Widen {
    pub from: Address,
    pub to: Address,
    pub not_finite: Address,
    pub count: u64,
    pub dtype: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Narrow {
    pub from: Address,
    pub to: Address,
    pub count: u64,
    pub dtype: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MeanSquares {
    pub x: Address,
    pub to: Address,
    pub rows: u64,
    pub row_len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MergeDelta {
    pub left: Address,
    pub right: Address,
    pub spreads: Address,
    pub norms: Address,
    pub factor: f64,
    pub rank: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Merge {
    pub base: Address,
    pub out: Address,
    pub not_finite: Address,
    pub rows: u64,
    pub cols: u64,
    pub dtype: u32,
    pub deltas: u32,
    pub narrow: u32,
    pub reserved: u32,
    pub delta: [MergeDelta; MAX_DELTAS],
}

/// A kernel with what it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Launch {
    Encode(Encoder, Encode),
    Widen(Widen),
    Narrow(Narrow),
    MeanSquares(MeanSquares),
    Merge(Merge),
}

const WIDEN: &CStr = c"widen";
const NARROW: &CStr = c"narrow";
const MEAN_SQUARES: &CStr = c"mean_squares";
const MERGE: &CStr = c"merge";

impl Launch {
    fn name(&self) -> &'static CStr {
        match self {
            Launch::Encode(encoder, _) => encoder.name,
            Launch::Widen(_) => WIDEN,
            Launch::Narrow(_) => NARROW,
            Launch::MeanSquares(_) => MEAN_SQUARES,
            Launch::Merge(_) => MERGE,
        }
    }

    fn threads(&self) -> u64 {
        match self {
            Launch::Encode(encoder, of) => of.blocks * encoder.lanes,
            Launch::Widen(of) => of.count,
            Launch::Narrow(of) => of.count,
            Launch::MeanSquares(of) => of.rows,
            Launch::Merge(of) => of.rows.div_ceil(MERGE_ROWS) * of.cols,
        }
    }

    fn args(&self) -> *const c_void {
        match self {
            Launch::Encode(_, of) => ptr::from_ref(of).cast(),
            Launch::Widen(of) => ptr::from_ref(of).cast(),
            Launch::Narrow(of) => ptr::from_ref(of).cast(),
            Launch::MeanSquares(of) => ptr::from_ref(of).cast(),
            Launch::Merge(of) => ptr::from_ref(of).cast(),
        }
    }
}

/// The functions of the loaded image.
pub(crate) struct Kernels {
    context: Arc<Context>,
    functions: Vec<(&'static CStr, *mut c_void)>,
}

#[allow(unsafe_code, reason = "functions of a module may be launched from any thread")]
// SAFETY: they are names that the driver understands, and stay as long as their context.
unsafe impl Send for Kernels {}
#[allow(unsafe_code, reason = "functions of a module may be launched from any thread")]
// SAFETY: as above.
unsafe impl Sync for Kernels {}

#[allow(unsafe_code, reason = "the driver is a C library")]
impl Kernels {
    /// Loads an image: what nvcc made, or a text with a zero at its end.
    pub(crate) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Kernels, Error> {
        let driver = context.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: an image says its own length, or ends with a zero, and the build made it.
        let code = unsafe { (driver.module_load)(&mut module, image.as_ptr().cast()) };
        context.check("cuModuleLoadData", code)?;
        let encoders = GgmlType::ALL.iter().flat_map(|ty| [kernel(*ty, false), kernel(*ty, true)]);
        let names = encoders.flatten().map(|encoder| encoder.name).chain([WIDEN, NARROW, MEAN_SQUARES, MERGE]);
        let mut functions = Vec::new();
        for name in names {
            let mut function = ptr::null_mut();
            // SAFETY: the module is loaded, the name ends with a zero, and the pointer is to a local.
            let code = unsafe { (driver.module_function)(&mut function, module, name.as_ptr()) };
            context.check("cuModuleGetFunction", code)?;
            functions.push((name, function));
        }
        Ok(Kernels { context: Arc::clone(context), functions })
    }

    /// Starts a kernel when all that is before it on the channel is done.
    pub(crate) fn launch(&self, channel: &mut Channel, launch: &Launch) -> Result<(), Error> {
        let threads = launch.threads();
        if threads == 0 {
            return Ok(());
        }
        let (_, function) = self.functions.iter().find(|(name, _)| *name == launch.name()).expect("all were loaded");
        let driver = self.context.enter()?;
        let mut parameters = [launch.args().cast_mut()];
        let blocks = u32::try_from(threads.div_ceil(THREADS)).expect("a tile has fewer than 2^31 blocks of threads");
        // SAFETY: every kernel has one parameter, the structure of its name, which the driver copies before it returns. The
        // addresses in it are of buffers that are kept until the stream was waited for.
        let code = unsafe {
            let (stream, parameters) = (channel.stream(), parameters.as_mut_ptr());
            (driver.launch)(*function, blocks, 1, 1, THREADS as u32, 1, 1, 0, stream, parameters, ptr::null_mut())
        };
        self.context.check("cuLaunchKernel", code)
    }
}
