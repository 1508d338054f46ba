//! The functions of the CUDA driver that are called, and a device's context (CUDA Driver API 13.0, `cuda.h`).

use crate::Error;
use libloading::Library;
use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

/// Of devices before Turing, CUDA 13's compiler makes no code.
const MIN_COMPUTE: (u32, u32) = (7, 5);
/// Code of a compiler of CUDA 13 runs on drivers of CUDA 13 and later ones.
const MIN_DRIVER: u32 = 13_000;

const OUT_OF_MEMORY: c_int = 2;
const COMPUTE_MAJOR: c_int = 75;
const COMPUTE_MINOR: c_int = 76;
/// How much slower float64 is than float32.
const SLOW_DOUBLES: c_int = 87;
/// Where that is more, float64 is only for elements in doubt.
const FAST_DOUBLES: c_int = 4;
const NON_BLOCKING_STREAM: c_uint = 1;

/// Memory of the device.
pub(crate) type Address = u64;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($arg:ty),*);)*) => {
        /// The driver's functions, each with the signature of cuda.h.
        #[allow(unsafe_code, reason = "the driver is a C library")]
        pub(crate) struct Functions {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> c_int,)*
            _library: Library,
        }

        #[allow(unsafe_code, reason = "the driver is a C library")]
        impl Functions {
            fn load(path: &Path) -> Result<Functions, libloading::Error> {
                // SAFETY: the library is the driver, whose initialisation may be done at any time; its functions have had
                // these signatures since the version in their names, and live as long as the library beside them.
                unsafe {
                    let library = Library::new(path)?;
                    $(let $name = *library.get(concat!($symbol, "\0").as_bytes())?;)*
                    Ok(Functions { $($name,)* _library: library })
                }
            }
        }
    };
}

functions! {
    init = "cuInit" (c_uint);
    driver_version = "cuDriverGetVersion" (*mut c_int);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device = "cuDeviceGet" (*mut c_int, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut *mut c_void, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2" (c_int);
    context_enter = "cuCtxSetCurrent" (*mut c_void);
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    allocate = "cuMemAlloc_v2" (*mut Address, usize);
    free = "cuMemFree_v2" (Address);
    allocate_pinned = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    free_pinned = "cuMemFreeHost" (*mut c_void);
    copy_in = "cuMemcpyHtoDAsync_v2" (Address, *const c_void, usize, *mut c_void);
    copy_out = "cuMemcpyDtoHAsync_v2" (*mut c_void, Address, usize, *mut c_void);
    set_words = "cuMemsetD32Async" (Address, c_uint, usize, *mut c_void);
    stream_create = "cuStreamCreate" (*mut *mut c_void, c_uint);
    stream_wait = "cuStreamSynchronize" (*mut c_void);
    stream_destroy = "cuStreamDestroy_v2" (*mut c_void);
    module_load = "cuModuleLoadData" (*mut *mut c_void, *const c_void);
    module_function = "cuModuleGetFunction" (*mut *mut c_void, *mut c_void, *const c_char);
    launch = "cuLaunchKernel" (
        *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void
    );
    error_name = "cuGetErrorName" (c_int, *mut *const c_char);
}

/// A device that is open: everything on it keeps it so.
pub(crate) struct Context {
    functions: Functions,
    device: c_int,
    context: *mut c_void,
    pub name: String,
    /// Whether sums are better taken in float32 where that is enough.
    pub narrow: bool,
}

#[allow(unsafe_code, reason = "a context may be used from any thread that enters it first")]
// SAFETY: the driver's functions may be called from any thread, and the context is a name that they understand.
unsafe impl Send for Context {}
#[allow(unsafe_code, reason = "a context may be used from any thread that enters it first")]
// SAFETY: as above; nothing in here is changed after it was opened.
unsafe impl Sync for Context {}

#[allow(unsafe_code, reason = "the driver is a C library")]
impl Context {
    /// Opens a device of a driver.
    pub(crate) fn open(library: &Path, index: u32) -> Result<Arc<Context>, Error> {
        let functions = Functions::load(library).map_err(|error| {
            // The system's own words are those of the cause.
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Error::NoDriver { library: library.display().to_string(), reason }
        })?;
        // SAFETY: every pointer is to a local of the type that the function fills.
        let code = unsafe { (functions.init)(0) };
        if code != 0 {
            return Err(Error::NoDevice { reason: error_name(&functions, code) });
        }
        let mut version = 0;
        // SAFETY: as above.
        let code = unsafe { (functions.driver_version)(&mut version) };
        let version = u32::try_from(version).unwrap_or(0);
        if code != 0 || version < MIN_DRIVER {
            let of = |version: u32| (version / 1000, version % 1000 / 10);
            return Err(Error::DriverTooOld { needed: of(MIN_DRIVER), found: of(version) });
        }
        let mut context =
            Context { functions, device: 0, context: ptr::null_mut(), name: String::new(), narrow: false };
        context.choose(index)?;
        // SAFETY: the device is one that the driver counted.
        let code = unsafe { (context.functions.context_retain)(&mut context.context, context.device) };
        context.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(context))
    }

    /// Finds the device of a number, and what it is.
    fn choose(&mut self, index: u32) -> Result<(), Error> {
        let mut count = 0;
        // SAFETY: the pointer is to a local of the type that the function fills.
        let code = unsafe { (self.functions.device_count)(&mut count) };
        self.check("cuDeviceGetCount", code)?;
        let names = (0..count).map(|i| self.device_named(i)).collect::<Result<Vec<_>, _>>()?;
        let number = index as usize;
        match names.get(number) {
            _ if names.is_empty() => return Err(Error::NoDevice { reason: "no device".to_owned() }),
            None => {
                return Err(Error::NoSuchDevice { asked: index, names: names.into_iter().map(|(_, n)| n).collect() });
            }
            Some((device, name)) => (self.device, self.name) = (*device, name.clone()),
        }
        let found = (self.attribute(COMPUTE_MAJOR)? as u32, self.attribute(COMPUTE_MINOR)? as u32);
        if found < MIN_COMPUTE {
            return Err(Error::ComputeCapability { name: self.name.clone(), needed: MIN_COMPUTE, found });
        }
        self.narrow = self.attribute(SLOW_DOUBLES)? > FAST_DOUBLES;
        Ok(())
    }

    fn device_named(&self, index: c_int) -> Result<(c_int, String), Error> {
        let (mut device, mut name) = (0, [0u8; 256]);
        // SAFETY: the driver writes at most so many bytes, with a zero at the end.
        let code = unsafe {
            let code = (self.functions.device)(&mut device, index);
            if code == 0 { (self.functions.device_name)(name.as_mut_ptr().cast(), 256, device) } else { code }
        };
        self.check("cuDeviceGetName", code)?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok((device, name.to_string_lossy().into_owned()))
    }

    fn attribute(&self, attribute: c_int) -> Result<c_int, Error> {
        let mut value = 0;
        // SAFETY: the pointer is to a local of the type that the function fills.
        let code = unsafe { (self.functions.device_attribute)(&mut value, attribute, self.device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }

    /// Makes this thread's calls those of the device, and gives the functions to call.
    pub(crate) fn enter(&self) -> Result<&Functions, Error> {
        // SAFETY: the context was retained, and is released only when this goes.
        let code = unsafe { (self.functions.context_enter)(self.context) };
        self.check("cuCtxSetCurrent", code)?;
        Ok(&self.functions)
    }

    /// An error for what a function returned.
    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<(), Error> {
        match code {
            0 => Ok(()),
            _ => {
                let name = error_name(&self.functions, code);
                Err(Error::Failed { name: self.name.clone(), call, code: name, number: code })
            }
        }
    }

    /// The same for a function that takes memory.
    pub(crate) fn check_room(&self, call: &'static str, code: c_int, needed: usize) -> Result<(), Error> {
        if code != OUT_OF_MEMORY {
            return self.check(call, code);
        }
        let found = self.free_memory()?;
        Err(Error::OutOfMemory { name: self.name.clone(), needed: needed as u64, found, limited: false })
    }

    /// Bytes that nobody uses.
    pub(crate) fn free_memory(&self) -> Result<u64, Error> {
        let (mut free, mut total) = (0, 0);
        let functions = self.enter()?;
        // SAFETY: the pointers are to locals of the type that the function fills.
        let code = unsafe { (functions.memory_info)(&mut free, &mut total) };
        self.check("cuMemGetInfo", code)?;
        Ok(free as u64)
    }

    /// A stream that waits for no other.
    pub(crate) fn create_stream(&self) -> Result<*mut c_void, Error> {
        let mut stream = ptr::null_mut();
        let functions = self.enter()?;
        // SAFETY: the pointer is to a local of the type that the function fills.
        let code = unsafe { (functions.stream_create)(&mut stream, NON_BLOCKING_STREAM) };
        self.check("cuStreamCreate", code)?;
        Ok(stream)
    }
}

impl Drop for Context {
    #[allow(unsafe_code, reason = "the driver is a C library")]
    fn drop(&mut self) {
        if !self.context.is_null() {
            // SAFETY: it was retained once, and everything on it is gone, as all of that keeps the context.
            unsafe { (self.functions.context_release)(self.device) };
        }
    }
}

/// The driver's name of an error.
#[allow(unsafe_code, reason = "the driver is a C library")]
fn error_name(functions: &Functions, code: c_int) -> String {
    let mut name = ptr::null();
    // SAFETY: the driver gives a text with a zero at the end that is never freed, or nothing.
    unsafe {
        if (functions.error_name)(code, &mut name) == 0 && !name.is_null() {
            return CStr::from_ptr(name).to_string_lossy().into_owned();
        }
    }
    format!("error {code}")
}
