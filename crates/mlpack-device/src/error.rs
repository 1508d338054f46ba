//! What can be wrong with a device.

use mlpack_fs::ErrorKind;
use mlpack_tensor::Escaped;

/// Why a device cannot be used, or stopped being usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `--device` says something else.
    #[error("there is no such device\n  expected: auto, cpu, cuda, cuda:N or metal\n  found:    `{}`", Escaped(found))]
    Choice {
        /// The text.
        found: String,
    },
    /// The kernels are not part of this build.
    #[error("this build of mlpack has no CUDA support\n  expected: auto or cpu\n  found:    cuda")]
    NotBuilt,
    /// The driver's library cannot be opened.
    #[error("cannot find the CUDA driver\n  expected: `{library}`\n  found:    {}", Escaped(reason))]
    NoDriver {
        /// The library.
        library: String,
        /// What the system says.
        reason: String,
    },
    /// The driver is older than the kernels.
    #[error("the CUDA driver is too old\n  expected: a driver for CUDA {}.{} or later\n  found:    one for CUDA {}.{}", needed.0, needed.1, found.0, found.1)]
    DriverTooOld {
        /// The least version.
        needed: (u32, u32),
        /// The driver's version.
        found: (u32, u32),
    },
    /// The driver knows no device.
    #[error("the CUDA driver has no device\n  expected: a GPU\n  found:    {}", Escaped(reason))]
    NoDevice {
        /// What the driver says.
        reason: String,
    },
    /// A device of that number is not there.
    #[error("there is no GPU cuda:{asked}\n  expected: one of {}\n  found:    {}", numbers(names), Escaped(&names.join(", ")))]
    NoSuchDevice {
        /// The number that was asked for.
        asked: u32,
        /// The names of those that are there, in order.
        names: Vec<String>,
    },
    /// The device is older than the kernels.
    #[error("the GPU `{}` is too old\n  expected: compute capability {}.{} or later\n  found:    {}.{}", Escaped(name), needed.0, needed.1, found.0, found.1)]
    ComputeCapability {
        /// The device.
        name: String,
        /// The least.
        needed: (u32, u32),
        /// The device's.
        found: (u32, u32),
    },
    /// Rows do not fit the device's memory, or what may be used of it.
    #[error("the GPU `{}` has too little memory\n  expected: {needed} bytes\n  found:    {found} bytes {}", Escaped(name), if *limited { "(--device-memory)" } else { "free" })]
    OutOfMemory {
        /// The device.
        name: String,
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes that there are.
        found: u64,
        /// Whether that is a limit that was set.
        limited: bool,
    },
    /// A function of the driver failed.
    #[error("the GPU `{}` failed\n  {call}: {code} (error {number})", Escaped(name))]
    Failed {
        /// The device.
        name: String,
        /// The function.
        call: &'static str,
        /// The driver's name of the error.
        code: String,
        /// Its number.
        number: i32,
    },
}

/// The devices that there are, as they are asked for.
fn numbers(names: &[String]) -> String {
    let numbers: Vec<String> = (0..names.len()).map(|i| format!("cuda:{i}")).collect();
    numbers.join(", ")
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Choice { .. } | Error::NotBuilt => ErrorKind::Misuse,
            Error::OutOfMemory { limited: true, .. } => ErrorKind::Limit,
            Error::NoDriver { .. }
            | Error::DriverTooOld { .. }
            | Error::NoDevice { .. }
            | Error::NoSuchDevice { .. }
            | Error::ComputeCapability { .. }
            | Error::OutOfMemory { .. }
            | Error::Failed { .. } => ErrorKind::Io,
        }
    }

    /// The text, for within a sentence.
    pub fn in_one_line(&self) -> String {
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        self.to_string().lines().map(line).collect::<Vec<_>>().join("; ")
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Choice { .. } | Error::NoSuchDevice { .. } => None,
            Error::NotBuilt => Some(
                "build it with `cargo build --release --features cuda` where CUDA's compiler is (docs/gpu.md); \
                 the CPU gives the same bytes"
                    .to_owned(),
            ),
            Error::OutOfMemory { limited: true, .. } => Some("give a larger --device-memory".to_owned()),
            _ => Some("--device cpu gives the same bytes".to_owned()),
        }
    }
}
