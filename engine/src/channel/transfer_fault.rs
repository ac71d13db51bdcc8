//! Defines the reasons for which the transfer of a block fails.

use nix::errno::Errno;

/// Reason why the transfer of a block failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferFault {
    /// The errno of the kernel.
    Os(Errno),
    /// No byte was moved and there is no errno: the volume has shrunk, or is full.
    NoProgress,
}
