//! Names the ways in which an earlier runner is kept from writing a destination before another one does.

use super::volume::is_network_or_socket;
use blockhaul_engine::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How an earlier runner is kept from writing a destination before another one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum FenceMethod {
    /// A path of one node: the destination's lock is enough.
    Local,
    /// The earlier runner stops by its own clock before its lease ends.
    Lease,
    /// A program on the dispatcher's node cuts it off.
    Command,
    /// An operator confirms that it is off.
    Manual,
}

impl FenceMethod {
    /// Returns its name as clients write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Parses a name.
    ///
    /// # Errors
    /// `EBadRequest` with the names that there are.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        text.parse().map_err(|_| {
            Error::bad_request(format!("invalid fence '{}': use local, lease, command or manual", text.escape_debug()))
        })
    }
}

/// Returns the default fence of a destination: its lock if it is a path, the runner's lease if it is an export (a
/// server has no lock, and a killed runner's requests may still be in flight).
#[must_use]
pub(crate) fn default_fence(destination: &str) -> FenceMethod {
    if is_network_or_socket(destination) { FenceMethod::Lease } else { FenceMethod::Local }
}
