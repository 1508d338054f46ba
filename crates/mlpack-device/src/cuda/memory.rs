//! Memory on both sides, and the stream between them.

use super::driver::{Address, Context};
use crate::Error;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// Memory of the device.
pub(crate) struct Buffer {
    context: Arc<Context>,
    at: Address,
    len: usize,
}

#[allow(unsafe_code, reason = "the driver is a C library")]
impl Buffer {
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has not so much left.
    pub(crate) fn new(context: &Arc<Context>, len: usize) -> Result<Buffer, Error> {
        let mut at = 0;
        let functions = context.enter()?;
        // SAFETY: the pointer is to a local of the type that the function fills.
        let code = unsafe { (functions.allocate)(&mut at, len) };
        context.check_room("cuMemAlloc", code, len)?;
        Ok(Buffer { context: Arc::clone(context), at, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The place of a byte of it.
    ///
    /// # Panics
    /// When `len` bytes from there on are not in it.
    pub(crate) fn at(&self, offset: usize, len: usize) -> Address {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "{len} bytes at {offset} of {}", self.len);
        self.at + offset as u64
    }
}

impl Drop for Buffer {
    #[allow(unsafe_code, reason = "the driver is a C library")]
    fn drop(&mut self) {
        if let Ok(functions) = self.context.enter() {
            // SAFETY: it was allocated once. The driver frees it when no work uses it any more.
            unsafe { (functions.free)(self.at) };
        }
    }
}

/// Memory of the host that the device copies from and to by itself, and the stream that does so. While work is under way
/// nobody else looks at the memory.
pub(crate) struct Channel {
    context: Arc<Context>,
    stream: *mut c_void,
    pinned: *mut u8,
    len: usize,
    busy: bool,
}

#[allow(unsafe_code, reason = "streams and memory may be used from any thread")]
// SAFETY: the stream and the memory belong to this value alone.
unsafe impl Send for Channel {}

#[allow(unsafe_code, reason = "the driver is a C library")]
impl Channel {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Channel, Error> {
        let stream = context.create_stream()?;
        Ok(Channel { context: Arc::clone(context), stream, pinned: ptr::null_mut(), len: 0, busy: false })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all work is done.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        let functions = self.context.enter()?;
        // SAFETY: the stream was created by this context.
        let code = unsafe { (functions.stream_wait)(self.stream) };
        self.context.check("cuStreamSynchronize", code)?;
        self.busy = false;
        Ok(())
    }

    /// The memory, of at least so many bytes, once no work uses it. What was in it is lost where it grows.
    pub(crate) fn memory(&mut self, len: usize) -> Result<&mut [u8], Error> {
        if self.busy {
            self.wait()?;
        }
        if self.len < len {
            self.free();
            let functions = self.context.enter()?;
            let mut at = ptr::null_mut();
            // SAFETY: the pointer is to a local of the type that the function fills.
            let code = unsafe { (functions.allocate_pinned)(&mut at, len, 0) };
            self.context.check("cuMemHostAlloc", code)?;
            // SAFETY: the driver gave so many bytes; they are zeroed so that they are initialised.
            unsafe { ptr::write_bytes(at.cast::<u8>(), 0, len) };
            (self.pinned, self.len) = (at.cast(), len);
        }
        if len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: the bytes are initialised, belong to this value, and no work is under way that uses them.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.pinned, len) })
    }

    /// Copies the first bytes of the memory to the device.
    ///
    /// # Panics
    /// When either side is shorter.
    pub(crate) fn copy_in(&mut self, to: &Buffer, offset: usize, len: usize) -> Result<(), Error> {
        assert!(len <= self.len, "{len} of {} bytes", self.len);
        let functions = self.context.enter()?;
        self.busy = true;
        // SAFETY: both sides have so many bytes. The memory stays, and is not looked at, until the stream was waited for;
        // the buffer is freed only by the driver's own rules.
        let code = unsafe { (functions.copy_in)(to.at(offset, len), self.pinned.cast(), len, self.stream) };
        self.context.check("cuMemcpyHtoDAsync", code)
    }

    /// Copies bytes of the device into the memory, from byte `to` on.
    ///
    /// # Panics
    /// When either side is shorter.
    pub(crate) fn copy_out(&mut self, from: &Buffer, offset: usize, to: usize, len: usize) -> Result<(), Error> {
        assert!(to.checked_add(len).is_some_and(|end| end <= self.len), "{len} bytes at {to} of {}", self.len);
        let functions = self.context.enter()?;
        self.busy = true;
        // SAFETY: as for `copy_in`; the place is within the memory.
        let code = unsafe { (functions.copy_out)(self.pinned.add(to).cast(), from.at(offset, len), len, self.stream) };
        self.context.check("cuMemcpyDtoHAsync", code)
    }

    /// Sets a word of the device to zero.
    pub(crate) fn clear_word(&mut self, buffer: &Buffer, offset: usize) -> Result<(), Error> {
        let functions = self.context.enter()?;
        self.busy = true;
        // SAFETY: the buffer has a word there.
        let code = unsafe { (functions.set_words)(buffer.at(offset, 4), 0, 1, self.stream) };
        self.context.check("cuMemsetD32Async", code)
    }

    /// The stream, for launches.
    pub(crate) fn stream(&mut self) -> *mut c_void {
        self.busy = true;
        self.stream
    }

    fn free(&mut self) {
        if self.pinned.is_null() {
            return;
        }
        if let Ok(functions) = self.context.enter() {
            // SAFETY: it was allocated once, and no work uses it: the caller waited.
            unsafe { (functions.free_pinned)(self.pinned.cast()) };
        }
        (self.pinned, self.len) = (ptr::null_mut(), 0);
    }
}

impl Drop for Channel {
    #[allow(unsafe_code, reason = "the driver is a C library")]
    fn drop(&mut self) {
        if let Ok(functions) = self.context.enter() {
            // SAFETY: the stream was created once. Work that failed is over too when this returns.
            unsafe { (functions.stream_wait)(self.stream) };
        }
        self.free();
        if let Ok(functions) = self.context.enter() {
            // SAFETY: nothing is under way on it.
            unsafe { (functions.stream_destroy)(self.stream) };
        }
    }
}
