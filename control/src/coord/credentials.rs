//! Reads the credentials for ZooKeeper from a file. They are read once and never printed.

use blockhaul_engine::shown::Shown;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Largest file of credentials, in bytes; guards against the path of another file.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A scheme and a secret, as ZooKeeper's `addauth` takes them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    scheme: String,
    secret: Vec<u8>,
}

/// Error of a file of credentials.
#[derive(Debug, thiserror::Error)]
#[error("read the ZooKeeper credentials in {}: {why}", path.shown())]
pub struct CredentialsError {
    /// The file.
    pub path: PathBuf,
    /// Defect of the file.
    pub why: BadCredentials,
}

/// Defect of a file of credentials.
#[derive(Debug, thiserror::Error)]
pub enum BadCredentials {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// The content is not one line of a scheme and credentials.
    #[error("expected one line SCHEME:CREDENTIALS, for example digest:NAME:PASSWORD")]
    Malformed,
}

impl Credentials {
    /// Reads `SCHEME:CREDENTIALS`, one line, from a file; for the scheme `digest` the credentials are `NAME:PASSWORD`.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let read = || {
            if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
                return Err(BadCredentials::Malformed);
            }
            Self::parse(&std::fs::read(path)?).ok_or(BadCredentials::Malformed)
        };
        read().map_err(|why| CredentialsError { path: path.to_owned(), why })
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let line = text.trim_ascii();
        let (scheme, secret) = line.split_at(line.iter().position(|&byte| byte == b':')?);
        let (scheme, secret) = (std::str::from_utf8(scheme).ok()?, &secret[1..]);
        let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_whole = scheme != "digest" || secret.contains(&b':');
        let is_one_line = !secret.is_empty() && !secret.contains(&b'\n');
        (is_scheme && is_whole && is_one_line).then(|| Self { scheme: scheme.to_owned(), secret: secret.to_owned() })
    }

    pub(super) fn scheme(&self) -> &str {
        &self.scheme
    }

    pub(super) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:...", self.scheme)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_scheme_and_credentials() {
        let parsed = Credentials::parse(b"digest:center:a:b c\n").expect("it is well formed");
        assert_eq!((parsed.scheme(), parsed.secret()), ("digest", &b"center:a:b c"[..]));
        for bad in ["", "\n", "digest", "digest:", ":center:secret", "digest:center", "two words:x", "a:b\nc:d"] {
            assert_eq!(Credentials::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_secret_is_never_printed() {
        let parsed = Credentials::parse(b"digest:center:secret").expect("it is well formed");
        assert_eq!(format!("{parsed:?}"), "digest:...");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Credentials::read(Path::new("/no/such/file")).expect_err("there is none");
        assert!(error.to_string().contains("/no/such/file: No such file"), "{error}");
    }
}
