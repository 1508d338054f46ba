//! Turns at writing to one file, and what waits for them.
//!
//! The system locks a file while a thread writes to it, and a second thread spins or sleeps meanwhile. Here it leaves its bytes
//! to the first and goes on computing.

use crate::SharedBytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that may wait to be written to one file.
const WAITING_LEN: usize = 4 << 20;

/// Buffers that are kept for the next bytes to wait.
const SPARE_BUFFERS: usize = 16;

/// The bytes that wait to be written to one file. Whoever has the turn writes them; who pushes without it looks for
/// [`WriteQueue::left_over`] afterwards, so nothing stays behind.
#[derive(Default)]
pub(crate) struct WriteQueue {
    turn: Mutex<()>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    extents: VecDeque<(u64, SharedBytes)>,
    byte_len: usize,
    spare: Vec<Vec<u8>>,
}

/// Who writes.
pub(crate) enum Turn<'a> {
    /// The caller, until this is dropped.
    Mine(MutexGuard<'a, ()>),
    /// Another thread, which also writes what is pushed.
    Another,
}

impl WriteQueue {
    /// The turn to write `byte_len` bytes. Where too many wait already, this waits for it.
    pub(crate) fn enter(&self, byte_len: usize) -> Turn<'_> {
        if let Ok(turn) = self.turn.try_lock() {
            return Turn::Mine(turn);
        }
        if self.waiting().byte_len + byte_len <= WAITING_LEN {
            return Turn::Another;
        }
        Turn::Mine(self.turn.lock().expect("no thread panics holding the lock"))
    }

    /// The turn, where something waits and nobody has it.
    pub(crate) fn left_over(&self) -> Option<MutexGuard<'_, ()>> {
        if self.waiting().extents.is_empty() {
            return None;
        }
        self.turn.try_lock().ok()
    }

    /// A copy of `bytes` for [`WriteQueue::push`].
    pub(crate) fn copy(&self, bytes: &[u8]) -> SharedBytes {
        let mut copy = self.waiting().spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(bytes);
        Arc::new(copy)
    }

    /// Leaves bytes to be written at `offset`.
    pub(crate) fn push(&self, offset: u64, bytes: SharedBytes) {
        let mut waiting = self.waiting();
        waiting.byte_len += bytes.len();
        waiting.extents.push_back((offset, bytes));
    }

    /// The bytes that have waited longest, and where they go.
    pub(crate) fn pop(&self) -> Option<(u64, SharedBytes)> {
        self.waiting().extents.pop_front()
    }

    /// Says that bytes are written.
    pub(crate) fn give_back(&self, bytes: SharedBytes) {
        let mut waiting = self.waiting();
        waiting.byte_len -= bytes.len();
        if let Ok(buffer) = Arc::try_unwrap(bytes)
            && waiting.spare.len() < SPARE_BUFFERS
        {
            waiting.spare.push(buffer);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no thread panics holding the lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_second_leaves_its_bytes_until_too_many_wait() {
        let queue = WriteQueue::default();
        let Turn::Mine(turn) = queue.enter(1) else { panic!("nobody writes") };
        for _ in 0..2 {
            assert!(matches!(queue.enter(WAITING_LEN / 2), Turn::Another));
            queue.push(7, queue.copy(&vec![1; WAITING_LEN / 2]));
        }
        assert!(queue.left_over().is_none());
        while let Some((offset, bytes)) = queue.pop() {
            assert_eq!((offset, bytes.len()), (7, WAITING_LEN / 2));
            queue.give_back(bytes);
        }
        drop(turn);
        assert!(queue.left_over().is_none());
        queue.push(0, queue.copy(b"a"));
        assert!(queue.left_over().is_some());
    }
}
