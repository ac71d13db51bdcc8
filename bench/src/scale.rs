//! Sets the sizes and the number of trials of full, quick and test runs.

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub(crate) const GIB: u64 = 1 << 30;

/// The size of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Sizes at which the device matters and the start of programs does not.
    Full,
    /// All scenarios in under three minutes; too small for claims.
    Quick,
    /// A few MiB; only shows that the harness works.
    Tiny,
}

impl Scale {
    /// Returns the value for this scale.
    pub(crate) fn of<T>(self, full: T, quick: T, tiny: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Tiny => tiny,
        }
    }

    /// Returns the default number of trials of each target.
    pub(crate) fn trials(self) -> u32 {
        self.of(5, 3, 2)
    }

    /// Returns the memory to touch before a trial that may put `cached_bytes` into the page cache.
    pub(crate) fn pretouch_bytes(self, cached_bytes: u64) -> u64 {
        self.of(256 * MIB + cached_bytes, 32 * MIB, 0)
    }
}
