//! Parses the name of a volume as a caller gives it.

use crate::error::{Code, Error, Operation, Result, Side};
use crate::nbd::uri::NbdUri;
use crate::shown::Shown;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The name of a volume, parsed but not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Locator {
    /// A regular file or block device of this host.
    Path(PathBuf),
    /// An export of a server.
    Nbd(NbdUri),
}

impl Locator {
    /// A path or the URI of an export, as the command line or a request names it. Paths need not be text; URIs are.
    ///
    /// # Errors
    /// `EBadRequest` for an empty name, one with a NUL byte or a malformed URI, `EUnsupported` for a URI scheme that is
    /// not built in, and as [`NbdUri::parse`].
    pub fn parse(name: &(impl AsRef<OsStr> + ?Sized)) -> Result<Self> {
        let name = name.as_ref();
        if name.is_empty() || name.as_bytes().contains(&0) {
            return Err(Error::bad_request("a volume's name is empty or contains a NUL byte"));
        }
        // A path is any bytes. What makes a URI is ASCII, and comes first.
        let start = name.as_bytes().utf8_chunks().next().map_or("", |chunk| chunk.valid());
        if NbdUri::recognises(start) {
            let no_text = || Error::bad_request(format!("{}: in a URI, what is no text is spelled %XX", name.shown()));
            return name.to_str().ok_or_else(no_text).and_then(NbdUri::parse).map(Self::Nbd);
        }
        match start.split_once("://") {
            Some((scheme @ ("http" | "https" | "ssh" | "file"), _)) => Err(Error::new(
                Code::Unsupported,
                Side::Caller,
                Operation::Parse,
                format!(
                    "{scheme}:// volumes are not supported: name a file or block device by its path, or an nbd:// URI"
                ),
            )),
            _ => Ok(Self::Path(PathBuf::from(name))),
        }
    }

    /// The path of a local volume; `None` for an export.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Nbd(_) => None,
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
        match self {
            Self::Path(path) => path.shown().fmt(f),
            Self::Nbd(uri) => uri.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_unless_it_is_the_uri_of_an_export() {
        for name in ["a", "/dev/sdb", "nbd", "nbd:x", "weird://x", "nbdx://h/"] {
            assert_eq!(Locator::parse(name).unwrap().path(), Some(Path::new(name)));
        }
        for name in ["nbd://h/x", "nbds://h/x", "nbd+unix:///x?socket=/s", "nbds+unix:///x?socket=/s"] {
            let locator = Locator::parse(name).unwrap();
            assert_eq!((locator.path(), &*locator.to_string()), (None, name));
        }
        let bytes = |name| Locator::parse(OsStr::from_bytes(name));
        for name in [&b"/bad\xff"[..], b"\xffnbd://h/x", b"weird://\xff"] {
            assert_eq!(bytes(name).unwrap().path(), Some(Path::new(OsStr::from_bytes(name))));
        }
        assert_eq!(
            bytes(b"nbd://h/\xff").unwrap_err().message,
            r"nbd://h/\xff: in a URI, what is no text is spelled %XX"
        );
        assert_eq!(bytes(b"file:///\xff").unwrap_err().code, Code::Unsupported);
        for (name, code) in [("", Code::BadRequest), ("nbd://", Code::BadRequest), ("ssh://h", Code::Unsupported)] {
            assert_eq!(Locator::parse(name).unwrap_err().code, code, "{name}");
        }
    }
}
