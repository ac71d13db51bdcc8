//! Holds what a job is given to reach its volumes besides their names: descriptors of a supervisor, and the revoker of
//! the job's connections.
//!
//! A given descriptor is opened anew through `/proc/self/fd`. That leads to the same inode whatever has become of its
//! name, and gives a description of our own, with flags and a lock that are not shared. The given one stays open for as
//! long as this value lives, so that the inode can be reached again (for a verification, say).

use super::Locator;
use crate::error::{Error, Result, Side};
use crate::nbd::connection_revoker::ConnectionRevoker;
use crate::supervision::OpenedDestination;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// Volumes that a job is given. By default none: it opens them by name.
#[derive(Debug, Default)]
pub(crate) struct GivenVolumes {
    pub revoker: Arc<ConnectionRevoker>,
    pub source: Option<OwnedFd>,
    pub destination: Option<OpenedDestination>,
}

impl GivenVolumes {
    /// With the volumes of a comparison, as far as they are open.
    pub(crate) fn to_compare(
        revoker: &Arc<ConnectionRevoker>,
        reference: Option<OwnedFd>,
        volume: Option<OwnedFd>,
    ) -> Self {
        let destination = volume.map(|file| OpenedDestination { file, created: false, parent: None });
        Self { revoker: Arc::clone(revoker), source: reference, destination }
    }

    /// The descriptor of that side.
    pub(super) fn of(&self, side: Side) -> Option<&OwnedFd> {
        match side {
            Side::Source => self.source.as_ref(),
            _ => self.destination.as_ref().map(|destination| &destination.file),
        }
    }

    /// Refuses a descriptor of what is reached by no descriptor.
    ///
    /// # Errors
    /// `EBadRequest`.
    pub(crate) fn refuse_misplaced(&self, source: &Locator, destination: &Locator) -> Result<()> {
        for (side, locator) in [(Side::Source, source), (Side::Destination, destination)] {
            if let (Some(_), Locator::Nbd(uri)) = (self.of(side), locator) {
                return Err(Error::bad_request(format!("the {side} {uri} is an export: no descriptor leads to it")));
            }
        }
        Ok(())
    }
}

/// A path that leads to what is open, for as long as it is.
pub(super) fn path_of(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}
