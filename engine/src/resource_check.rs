//! Makes sure that descriptors and threads are available before a library is started that panics without them.

use crate::error::{Error, Operation, Result, Side};
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

/// Descriptors that an asynchronous runtime opens, signals included, and some more: other threads open theirs
/// meanwhile.
pub const RUNTIME_DESCRIPTORS: usize = 12;

/// Makes sure that `count` descriptors are available, for a library that panics without them.
///
/// # Errors
/// `EOverloaded`, naming the limit.
pub fn require_descriptors(count: usize, what: &str) -> Result<()> {
    let failed = |errno| Error::os(Side::Engine, Operation::Start, errno, what);
    let some = fs::File::open("/").map_err(|error| Error::io(Side::Engine, Operation::Start, &error, what))?;
    let more: nix::Result<Vec<OwnedFd>> = (1..count).map(|_| nix::unistd::dup(&some)).collect();
    more.map(drop).map_err(failed)
}

/// Makes sure that `count` more threads can run at once, for a library that panics without them.
///
/// # Errors
/// `EOverloaded`, naming the limits.
pub fn require_threads(count: usize, what: &str) -> Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // No thread ends before the last one has started.
        let _closed = gate.lock();
        (0..count).try_for_each(|_| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()));
            thread.map(drop).map_err(|error| Error::io(Side::Engine, Operation::Start, &error, what))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use nix::errno::Errno;
    use nix::sys::resource::{Resource, getrlimit};

    #[test]
    fn an_exhausted_limit_is_named_with_its_value() {
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let os = |errno, operation| Error::os(Side::Destination, operation, errno, "do it");
        let error = os(Errno::EMFILE, Operation::Open);
        assert_eq!(error.code, Code::Overloaded);
        assert!(error.message.contains(&descriptors.to_string()) && error.message.contains("ulimit -n"), "{error}");
        for (errno, operation, word) in [
            (Errno::ENFILE, Operation::Open, "fs.file-max"),
            (Errno::EAGAIN, Operation::Start, "ulimit -u"),
            (Errno::EAGAIN, Operation::Start, "control group"),
            (Errno::ECANCELED, Operation::Write, "kernel.threads-max"),
            (Errno::ENOMEM, Operation::Start, "ulimit -l"),
            (Errno::ENOMEM, Operation::Start, "ulimit -v"),
        ] {
            let error = os(errno, operation);
            assert_eq!(error.code, Code::Overloaded, "{error}");
            assert!(error.message.contains(word), "{error}");
        }
        assert_eq!(os(Errno::EAGAIN, Operation::Read).code, Code::Io);
    }

    #[test]
    fn descriptors_are_closed_after_the_check() {
        require_descriptors(8, "start").unwrap();
        let error = require_descriptors(1 << 24, "start").unwrap_err();
        assert_eq!((error.code, error.errno), (Code::Overloaded, Some(Errno::EMFILE as i32)));
        require_descriptors(8, "start").unwrap();
    }
}
