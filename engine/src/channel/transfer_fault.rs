//! Says why the transfer of a block failed.

use nix::errno::Errno;

/// Reason why the transfer of a block failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferFault {
    /// The kernel said so.
    Os(Errno),
    /// It moved no byte and gave no reason: the end of a volume that was longer before, or a full one.
    NoProgress,
}
