//! Buffers whose bytes are kept by whoever still writes or hashes them.

use std::sync::Arc;

/// Bytes that may be kept after the call they are given to, until they are written and hashed.
pub type SharedBytes = Arc<Vec<u8>>;

/// The buffers of one thread. One that nobody keeps any more is used again, so a thread has as many as are on the way at the
/// same time.
#[derive(Debug, Default)]
pub struct Buffers {
    given: Vec<SharedBytes>,
}

impl Buffers {
    /// A buffer of `len` bytes, whatever they are.
    pub fn take(&mut self, len: usize) -> Buffer {
        // One of the same length need not be cleared.
        let mut free_with = |fits: fn(usize, usize) -> bool| {
            self.given.iter_mut().position(|bytes| fits(bytes.len(), len) && Arc::get_mut(bytes).is_some())
        };
        let free = free_with(|a, b| a == b).or_else(|| free_with(|_, _| true));
        let mut bytes = free.map_or_else(SharedBytes::default, |free| self.given.swap_remove(free));
        Arc::get_mut(&mut bytes).expect("nobody else has it").resize(len, 0);
        Buffer { bytes }
    }

    /// Takes a buffer for use again once nobody keeps its bytes.
    pub fn give_back(&mut self, buffer: SharedBytes) {
        self.given.push(buffer);
    }
}

/// A buffer that nobody else has.
#[derive(Debug)]
pub struct Buffer {
    bytes: SharedBytes,
}

impl Buffer {
    /// Its bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.bytes).expect("nobody else has it")
    }

    /// The buffer itself, to be filled as a vector and shared then.
    pub fn into_vec(self) -> Vec<u8> {
        Arc::into_inner(self.bytes).expect("nobody else has it")
    }

    /// The bytes as they are from now on.
    pub fn share(self) -> SharedBytes {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_not_used_again_before_it_is_let_go() {
        let mut buffers = Buffers::default();
        let mut first = buffers.take(3);
        first.bytes_mut().copy_from_slice(b"abc");
        let first = first.share();
        let (kept, place) = (first.clone(), first.as_ptr());
        buffers.give_back(first);
        let second = buffers.take(2).share();
        assert_ne!(second.as_ptr(), place);
        assert_eq!(*kept, b"abc");
        drop(kept);
        assert_eq!(buffers.take(1).share().as_ptr(), place);
    }
}
