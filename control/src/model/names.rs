//! Defines the names and numbers by which records refer to each other.

use crate::coord::Zxid;
use blockhaul_engine::error::{Code, Error, Operation, Side};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of a task, chosen by its client or made up for it: `[A-Za-z0-9._-]{1,64}`, and neither `.` nor `..`. The second
/// try of task `ID` is `ID~2`, and its members, if it is a group, are `ID~2.MEMBER`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

/// Name of a node: `[A-Za-z0-9._-]{1,64}`, and neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

/// Name of a schedule: `[A-Za-z0-9._-]{1,40}`, and neither `.` nor `..`. Its tasks are named after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScheduleName(String);

macro_rules! name {
    ($name:ident, $what:literal, $max:literal, $is_plain:expr) => {
        impl $name {
            /// Checks a name.
            ///
            /// # Errors
            /// `EBadRequest` for anything but the allowed number of letters, digits, `.`, `_` and `-`, and for `.` and
            /// `..`.
            pub fn new(text: impl Into<String>) -> Result<Self, Error> {
                let text = text.into();
                if (1..=$max).contains(&text.len()) && $is_plain(&text) && text != "." && text != ".." {
                    return Ok(Self(text));
                }
                let message = format!(
                    "invalid {} '{}': use 1 to {} letters, digits, '.', '_' and '-'",
                    $what,
                    text.chars().take(80).collect::<String>().escape_debug(),
                    $max
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

name!(TaskId, "task ID", 64, is_task_name);
name!(NodeId, "node ID", 64, is_plain);
name!(ScheduleName, "name of a schedule", 40, is_plain);

/// Sign before the number of a try.
const TRY: char = '~';
/// Largest number of a try.
const TRIES_MAX: u32 = 9999;

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_task_name(text: &str) -> bool {
    let Some((name, rest)) = text.split_once(TRY) else { return is_plain(text) };
    let (number, member) = rest.split_once('.').unwrap_or((rest, "m"));
    let is_number = number.parse::<u32>().is_ok_and(|number| (2..=TRIES_MAX).contains(&number));
    let is_canonical = number.bytes().all(|digit| digit.is_ascii_digit()) && !number.starts_with('0');
    !name.is_empty() && is_plain(name) && is_number && is_canonical && !member.is_empty() && is_plain(member)
}

impl TaskId {
    /// Returns the name of the next try of this task: `ID~2` of `ID`, `ID~3` of `ID~2`.
    ///
    /// # Errors
    /// `EBadRequest` if that would be no name, or of a member of a group.
    pub fn next_try(&self) -> Result<Self, Error> {
        let (name, number) = self.0.split_once(TRY).unwrap_or((&self.0, "1"));
        let number: u32 = number.parse().map_err(|_| {
            let message = format!("{self} is a member of a group, and is not tried again alone: retry its group");
            Error::new(Code::BadRequest, Side::Caller, Operation::Parse, message)
        })?;
        Self::new(format!("{name}{TRY}{}", number + 1))
    }

    /// Tells whether it is the name of a second or later try, or of a member of one.
    #[must_use]
    pub fn is_retry(&self) -> bool {
        self.0.contains(TRY)
    }

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

    #[test]
    fn each_try_has_a_name_of_its_own() {
        let next = |name: &str| TaskId::new(name).unwrap().next_try().map(String::from).ok();
        for (name, after) in [
            ("vm", Some("vm~2")),
            ("vm~2", Some("vm~3")),
            ("vm~99", Some("vm~100")),
            ("vm.a", Some("vm.a~2")),
            ("vm~9999", None),
            ("vm~2.a", None),
        ] {
            assert_eq!(next(name).as_deref(), after, "{name}");
        }
        for bad in ["~2", "vm~", "vm~1", "vm~02", "vm~+2", "vm~2~3", "vm~2.", "vm~2.a~3", "vm~x", "vm~2.a b"] {
            assert!(TaskId::new(bad).is_err(), "{bad}");
        }
        assert!(NodeId::new("vm~2").is_err());
    }
}
