//! Refuses volumes and journals that standard output or standard error of this process lead to.
//!
//! A message that is printed into a volume is written there after the last look at it, or over its first bytes, and the
//! volume no longer holds what was copied. Pipes, terminals and `/dev/null` hold no volume, and a descriptor that is
//! only open for reading prints nothing.

use super::given_volumes::GivenVolumes;
use super::inode::Inode;
use super::overlap::share_bytes;
use super::{Locator, open_for_reading};
use crate::error::{Error, Result, Side};
use crate::shown::Shown;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// One of the two descriptors that a process prints to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardStream {
    /// Descriptor 1.
    Output,
    /// Descriptor 2.
    Error,
}

impl StandardStream {
    const ALL: [Self; 2] = [Self::Output, Self::Error];

    /// Returns the streams that lead to bytes of the file or device at `path`, also through links, `/dev/fd`,
    /// partitions and loop devices. Empty if nothing exists there.
    #[must_use]
    pub fn leading_to(path: &Path) -> Vec<Self> {
        let there = Inode::look_up(path, Side::Caller).ok().flatten();
        there.map(|inode| Self::ALL.into_iter().filter(|stream| stream.leads_to(&inode)).collect()).unwrap_or_default()
    }

    /// Creates the error that refuses output to `path`.
    #[must_use]
    pub fn refusal(self, path: &Path) -> Error {
        let what = format!("{} leads to {}: what is printed there would damage it", self.name(), path.shown());
        Error::bad_request(what).advise("send it elsewhere, such as to another file, a pipe or /dev/null")
    }

    fn name(self) -> &'static str {
        match self {
            Self::Output => "standard output",
            Self::Error => "standard error",
        }
    }

    fn leads_to(self, inode: &Inode) -> bool {
        let Some(held) = self.writable() else { return false };
        let own = Inode::opened(Path::new(self.name()), &held, Side::Caller);
        own.is_ok_and(|own| share_bytes(&own, inode))
    }

    /// The descriptor, if it can be written to.
    fn writable(self) -> Option<OwnedFd> {
        let held = match self {
            Self::Output => std::io::stdout().as_fd().try_clone_to_owned(),
            Self::Error => std::io::stderr().as_fd().try_clone_to_owned(),
        };
        let held = held.ok()?;
        let flags = OFlag::from_bits_retain(fcntl(&held, FcntlArg::F_GETFL).ok()?);
        (flags & OFlag::O_ACCMODE != OFlag::O_RDONLY).then_some(held)
    }
}

/// Refuses a job that this process would print into: into its volumes, however they are reached, or its `files`.
///
/// # Errors
/// `EBadRequest`, naming the stream and the place.
pub(crate) fn refuse_streams(
    volumes: &[(&Locator, Side)],
    files: &[Option<&Path>],
    given: &GivenVolumes,
) -> Result<()> {
    let refused = |path: &Path, streams: &[StandardStream]| match streams {
        [stream, ..] => Err(stream.refusal(path)),
        [] => Ok(()),
    };
    for (path, side) in volumes.iter().filter_map(|&(locator, side)| Some((locator.path()?, side))) {
        // What cannot be looked up is refused where it is opened, in the order of the rules.
        let Ok(inode) = open_for_reading::existing(path, side, given) else { continue };
        let streams: Vec<_> = StandardStream::ALL.into_iter().filter(|stream| stream.leads_to(&inode)).collect();
        refused(path, &streams)?;
    }
    files.iter().copied().flatten().try_for_each(|path| refused(path, &StandardStream::leading_to(path)))
}
