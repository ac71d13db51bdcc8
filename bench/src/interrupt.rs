//! The wish to stop: Ctrl-C, SIGTERM or a terminal that went away.
//!
//! A signal only sets a flag. Whoever waits looks at it at least every few dozen milliseconds, ends what it started and
//! gives back [`Stopped`]; owners of files, devices and servers then remove them on the way out, as at every other end.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether somebody wants the run to stop. Clones are the same wish.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// It was wished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

impl Interrupt {
    /// One that signals set.
    ///
    /// # Errors
    /// The system denied a handler.
    pub(crate) fn catch() -> io::Result<Self> {
        let wish = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&wish.0))?;
        }
        Ok(wish)
    }

    /// Sets it, as a signal does.
    #[cfg(test)]
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was wished.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// It was wished.
    pub(crate) fn check(&self) -> Result<(), Stopped> {
        if self.is_set() { Err(Stopped) } else { Ok(()) }
    }
}
