//! Defines the names and numbers by which records refer to each other.

use crate::coord::Zxid;
use blockhaul_engine::error::{Code, Error, Operation, Side};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of a task, chosen by its client or made up for it: `[A-Za-z0-9._-]{1,64}`, and neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

/// Name of a node: as [`TaskId`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

macro_rules! name {
    ($name:ident, $what:literal) => {
        impl $name {
            /// Checks a name.
            ///
            /// # Errors
            /// `EBadRequest` for anything but 1 to 64 letters, digits, `.`, `_` and `-`, and for `.` and `..`.
            pub fn new(text: impl Into<String>) -> Result<Self, Error> {
                let text = text.into();
                let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
                if (1..=64).contains(&text.len()) && text.bytes().all(is_plain) && text != "." && text != ".." {
                    return Ok(Self(text));
                }
                let message = format!(
                    "invalid {} '{}': use 1 to 64 letters, digits, '.', '_' and '-'",
                    $what,
                    text.chars().take(80).collect::<String>().escape_debug()
                );
                Err(Error::new(Code::BadRequest, Side::Caller, Operation::Parse, message))
            }

            /// Returns the name as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name!(TaskId, "task ID");
name!(NodeId, "node ID");

impl TaskId {
    /// Returns an id that no other task has.
    #[must_use]
    pub fn fresh() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }
}

/// Grant of leadership or of a claim: the number of the transaction that granted it, so that a later one is higher,
/// whatever was deleted in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl From<Zxid> for Epoch {
    fn from(zxid: Zxid) -> Self {
        Self(zxid.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of one run of a `taskd` process, from start to exit: a random 128-bit number in hexadecimal digits. The
/// same process registers again with the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub String);

/// Identity of one write of a record: random, or drawn from a simulation's seed. If the record has it, the write has
/// happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpId(pub String);

impl OpId {
    /// Draws an id from the thread's random numbers ([`fastrand`]), which a simulation seeds.
    #[must_use]
    pub fn fresh() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "vm-17.disk_0", &"x".repeat(64)] {
            assert_eq!(TaskId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert_eq!(TaskId::new(bad).unwrap_err().code, Code::BadRequest, "{bad:?}");
            assert!(serde_json::from_value::<NodeId>(bad.into()).is_err());
        }
    }
}
