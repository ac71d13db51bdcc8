//! Holds the name of a volume: bytes, as the system has it, and text only where people read it.

use crate::shown::Escaped;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An absolute path, or the canonical URI of an export. Shown as [`crate::shown`] says.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct VolumeName(Vec<u8>);

impl VolumeName {
    /// As it is.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path. Of an export it leads nowhere.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Appends `text` to the name.
    pub(crate) fn push_str(&mut self, text: &str) {
        self.0.extend(text.as_bytes());
    }

    /// Returns whether `text` is a part of it.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.0.windows(text.len().max(1)).any(|part| part == text.as_bytes())
    }
}

impl From<Vec<u8>> for VolumeName {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<String> for VolumeName {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for VolumeName {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<&Path> for VolumeName {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped::from(&*self.0).fmt(f)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_bytes_and_is_shown_escaped() {
        let name = VolumeName::from(b"/gr\xc3\xb6\xc3\x9fe\n\xff\x1b[2J".to_vec());
        assert_eq!(name.to_string(), "/größe\\n\\xff\\x1b[2J");
        assert_eq!(VolumeName::from(name.as_path()), name);
        assert!(name.contains("größe") && !name.contains("/x") && !VolumeName::from("").contains("x"));
    }
}
