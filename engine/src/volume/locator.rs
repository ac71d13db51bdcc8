//! How a caller names a volume.

use crate::error::{Code, Error, Operation, Result, Side};
use std::fmt;
use std::path::{Path, PathBuf};

/// The name of a volume, parsed but not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Locator {
    /// A regular file or block device of this host.
    Path(PathBuf),
}

impl Locator {
    /// A path, as the command line or a request names it.
    ///
    /// # Errors
    /// `EBadRequest` for an empty name or one with a NUL byte, `EUnsupported` for a URI scheme that is not built in.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() || text.contains('\0') {
            return Err(Error::bad_request("a volume's name is empty or contains a NUL byte"));
        }
        match text.split_once("://") {
            Some((scheme @ ("nbd" | "nbds" | "nbd+unix" | "nbds+unix" | "http" | "https" | "ssh" | "file"), _)) => {
                Err(Error::new(
                    Code::Unsupported,
                    Side::Caller,
                    Operation::Parse,
                    format!("{scheme}:// volumes are not supported: name a regular file or a block device by its path"),
                ))
            }
            _ => Ok(Self::Path(PathBuf::from(text))),
        }
    }

    /// The path of a local volume.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Path(path) => path,
        }
    }
}

impl From<&Path> for Locator {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<PathBuf> for Locator {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}
