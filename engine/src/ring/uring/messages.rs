//! Describes to the kernel the two parts of a send or a receive.
//!
//! There is one entry for every operation that can be in flight, allocated once, at an address that never changes. The
//! kernel reads an entry when an operation starts, and writes to it when the operation ends (the results of `recvmsg`).
//! So the kernel may use an entry as long as a block. The slot in the table of operations is free again only after the
//! answer, and a ring that ends before that leaks all entries with its blocks. As the kernel may write to them, the
//! entries are cells.

use nix::libc::{iovec, msghdr};
use std::cell::Cell;
use std::rc::Rc;

/// A message of two parts.
#[derive(Debug)]
struct Message {
    header: Cell<msghdr>,
    parts: Cell<[iovec; 2]>,
}

/// The messages of one ring. They stay in place until the last handle is gone; only the ring has one.
#[derive(Debug)]
pub(super) struct Messages {
    blank: msghdr,
    places: Rc<[Message]>,
}

impl Messages {
    /// Creates a message for each of `slots` operations. `blank` has no name, no parts and no control data.
    pub(super) fn new(slots: usize, blank: msghdr) -> Self {
        let nothing = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let message = || Message { header: Cell::new(blank), parts: Cell::new([nothing; 2]) };
        Self { blank, places: (0..slots).map(|_| message()).collect() }
    }

    /// Sets the parts of the message of operation `index` and returns its address.
    pub(super) fn write(&self, index: usize, parts: [iovec; 2]) -> *mut msghdr {
        let message = &self.places[index];
        message.parts.set(parts);
        let msg_iov = message.parts.as_ptr().cast::<iovec>();
        message.header.set(msghdr { msg_iov, msg_iovlen: parts.len() as _, ..self.blank });
        message.header.as_ptr()
    }

    /// Leaks all messages, as the kernel may still write to them.
    pub(super) fn leak(&self) {
        std::mem::forget(Rc::clone(&self.places));
    }

    /// Returns a weak handle whose strong count shows whether the messages are still allocated.
    #[cfg(test)]
    pub(super) fn witness(&self) -> std::rc::Weak<impl ?Sized + use<>> {
        Rc::downgrade(&self.places)
    }
}
