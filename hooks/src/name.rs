//! Defines the names of hooks: `[a-z0-9][a-z0-9._-]{0,63}`, without `..`.
//!
//! A name is one component of a path, never a path: it has no slash, and neither is nor contains `..`.

use crate::limits::NAME_BYTES_MAX;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::shown::Shown;
use std::fmt;

/// The name of a hook: its file name in the hooks folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookName(String);

impl HookName {
    /// Returns `text` as the name of a hook.
    ///
    /// # Errors
    /// `EBadRequest` if it is none.
    pub fn parse(text: &str) -> Result<Self> {
        let is_inner = |byte: u8| is_first(byte) || b"._-".contains(&byte);
        let is_name = text.bytes().next().is_some_and(is_first)
            && text.bytes().all(is_inner)
            && text.len() <= NAME_BYTES_MAX
            && !text.contains("..");
        if is_name {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::bad_request(format!(
            "'{}' is not the name of a hook: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, '.', '_' and '-', with a letter or digit \
             first and without '..'",
            text.shown()
        )))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_first(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

impl fmt::Display for HookName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::Code;
    use proptest::prelude::*;

    #[test]
    fn names_are_one_plain_component() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        for name in ["a", "0", "freeze-vm", "a.b_c-d", "a.", longest.as_str()] {
            assert_eq!(HookName::parse(name).unwrap().as_str(), name);
        }
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for name in ["", ".", "..", "a..b", ".a", "-a", "_a", "A", "a/b", "/a", "a b", "a\0", "a\n", "ä", &too_long] {
            assert_eq!(HookName::parse(name).unwrap_err().code, Code::BadRequest, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_stays_in_its_folder(text in ".{0,70}") {
            if let Ok(name) = HookName::parse(&text) {
                prop_assert_eq!(std::path::Path::new(name.as_str()).components().count(), 1);
                prop_assert!(std::path::Path::new("/hooks").join(name.as_str()).parent() == Some("/hooks".as_ref()));
            }
        }
    }
}
