//! Reads both clocks together, for one decision.

use std::time::Duration;

/// Readings of the clocks, taken together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    /// Boot time, for waiting: never jumps.
    pub(crate) boot: Duration,
    /// Wall clock for records, in milliseconds since 1970.
    pub(crate) unix_ms: u64,
    /// Wall clock of the slowest known node, without jumps: this time has passed by every clock. `None` until a node
    /// has answered.
    pub(crate) sure_ms: Option<u64>,
    /// Whether this node's wall clock agrees with its peers', as far as is known.
    pub(crate) is_clock_right: bool,
}

impl Now {
    /// Returns the boot time at which the wall clock will show `unix_ms`, if it does not jump.
    pub(crate) fn at_unix(self, unix_ms: u64) -> Duration {
        self.boot + Duration::from_millis(unix_ms.saturating_sub(self.unix_ms))
    }
}
