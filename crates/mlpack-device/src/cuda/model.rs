//! A device modelled on the host, for tests: the library that `kernels/host.c` is built into stands for the driver's.

use super::{Device, Limits};
use crate::Error;
use libloading::Library;
use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use tempfile::TempDir;

/// A driver with a device of its own. Its settings are those of `kernels/host.c`: `init`, `version`, `devices`, `major`, `minor`,
/// `slow_doubles`, `memory`, `launches` (how many succeed), and what it counts: `used`, `launched`, `allocations`.
pub struct HostModel {
    library: Library,
    // Libraries have their state by file, so everyone has a copy.
    dir: TempDir,
}

const NAME: &str = "driver.so";

#[allow(unsafe_code, reason = "the model is a C library")]
impl HostModel {
    /// A model with 4 GiB, compute capability 9.0 and a driver of CUDA 13.0.
    ///
    /// # Panics
    /// When the library cannot be copied and loaded.
    #[allow(clippy::new_without_default, reason = "it makes a file")]
    pub fn new() -> HostModel {
        let dir = TempDir::new().expect("a folder for the model");
        let path = dir.path().join(NAME);
        std::fs::copy(env!("MLPACK_HOST_MODEL"), &path).expect("the model is copied");
        // SAFETY: the library has no initialisers.
        let library = unsafe { Library::new(&path) }.expect("the model is loaded");
        HostModel { library, dir }
    }

    /// Changes a setting.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn set(&self, name: &str, value: u64) {
        let name = CString::new(name).expect("a name without zeros");
        // SAFETY: the function has this signature in kernels/host.c.
        let code = unsafe {
            let set: libloading::Symbol<'_, unsafe extern "C" fn(*const c_char, u64) -> c_int> =
                self.library.get(b"mlpack_model_set\0").expect("the model has its functions");
            set(name.as_ptr(), value)
        };
        assert_eq!(code, 0, "a setting {name:?}");
    }

    /// What a setting is, or what was counted.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> u64 {
        let (name, mut value) = (CString::new(name).expect("a name without zeros"), 0);
        // SAFETY: as above; the pointer is to a local.
        let code = unsafe {
            let get: libloading::Symbol<'_, unsafe extern "C" fn(*const c_char, *mut u64) -> c_int> =
                self.library.get(b"mlpack_model_get\0").expect("the model has its functions");
            get(name.as_ptr(), &mut value)
        };
        assert_eq!(code, 0, "a setting {name:?}");
        value
    }

    /// Copies the library, to stand where programs look for the driver's.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn copy_to(&self, path: &Path) {
        std::fs::copy(self.dir.path().join(NAME), path).expect("the model is copied");
    }

    /// Opens one of its devices.
    ///
    /// # Errors
    /// As [`Device::open`], but for [`Error::NotBuilt`].
    pub fn open(&self, index: u32, limits: Limits) -> Result<Device, Error> {
        Device::of(&self.dir.path().join(NAME), b"host\0", index, limits)
    }

    /// The same where the driver's library is not there.
    ///
    /// # Errors
    /// [`Error::NoDriver`].
    pub fn open_missing(&self) -> Result<Device, Error> {
        Device::of(&self.dir.path().join("missing.so"), b"host\0", 0, Limits { memory: None, lanes: 1 })
    }
}
