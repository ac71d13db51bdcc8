//! How large a run is: sizes and numbers of trials, for the real thing, for a quick look, and for tests of the harness.

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub(crate) const GIB: u64 = 1 << 30;

/// The size of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Sizes at which the device, not the start of programs, decides.
    Full,
    /// Under three minutes for everything; for a look, not for claims.
    Quick,
    /// A few MiB: shows that the harness works, and nothing else.
    Tiny,
}

impl Scale {
    /// The one of three that belongs to this scale.
    pub(crate) fn of<T>(self, full: T, quick: T, tiny: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Tiny => tiny,
        }
    }

    /// Trials of each target unless the user or a scenario says otherwise.
    pub(crate) fn trials(self) -> u32 {
        self.of(5, 3, 2)
    }

    /// Memory to touch before a trial that may put so many bytes into the page cache. A quick look has no time for those.
    pub(crate) fn warm_up_bytes(self, cached_bytes: u64) -> u64 {
        self.of(256 * MIB + cached_bytes, 32 * MIB, 0)
    }
}
