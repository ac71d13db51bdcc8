//! Defines what a task waits for: how another task has to end before it may start.
//!
//! A dependency is level-triggered: it is judged by the present record of the other task, the predecessor, and only when
//! that one is settled. A predecessor whose record is missing, or whose name another task has by now, breaks it.

use super::TaskId;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::flow::graph::Condition;
use serde::{Deserialize, Deserializer, Serialize};

/// Largest number of tasks that one task depends on.
pub const DEPENDENCIES_MAX: usize = 64;
/// Largest length of the names of those tasks together, in bytes.
pub const DEPENDENCY_BYTES_MAX: usize = 2048;

/// Task that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The predecessor.
    pub task: TaskId,
    /// How it has to end.
    #[serde(deserialize_with = "condition")]
    pub condition: Condition,
    /// When the predecessor was created, in milliseconds since 1970: tells it from a later task of the same name.
    pub created_ms: u64,
}

fn condition<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Condition, D::Error> {
    let text = String::deserialize(deserializer)?;
    named(&text).ok_or_else(|| serde::de::Error::custom(format!("unknown condition '{}'", text.escape_debug())))
}

fn named(text: &str) -> Option<Condition> {
    Condition::ALL.iter().copied().find(|condition| condition.as_str() == text)
}

/// Splits `ID[:success|:failure|:end]`; without a condition it is success.
///
/// # Errors
/// `EBadRequest` for another condition.
pub fn parse_dependency(text: &str) -> Result<(&str, Condition)> {
    let Some((id, condition)) = text.split_once(':') else { return Ok((text, Condition::Success)) };
    let refused = || {
        let text = text.chars().take(80).collect::<String>();
        let message =
            format!("'{}' is not a dependency: use ID, ID:success, ID:failure or ID:end", text.escape_debug());
        Error::bad_request(message)
    };
    Ok((id, named(condition).ok_or_else(refused)?))
}

/// Checks the number and length of dependencies, as texts or names.
///
/// # Errors
/// `EBadRequest`.
pub(crate) fn check_dependencies<T: AsRef<str>>(after: &[T]) -> Result<()> {
    let bytes: usize = after.iter().map(|text| text.as_ref().len()).sum();
    if after.len() <= DEPENDENCIES_MAX && bytes <= DEPENDENCY_BYTES_MAX {
        return Ok(());
    }
    Err(Error::bad_request(format!(
        "{} dependencies with {bytes} bytes: at most {DEPENDENCIES_MAX} with {DEPENDENCY_BYTES_MAX} bytes are possible",
        after.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_names_a_task_and_how_it_has_to_end() {
        for (text, id, condition) in [
            ("a", "a", Condition::Success),
            ("a:success", "a", Condition::Success),
            ("a.b:failure", "a.b", Condition::Failure),
            ("a:end", "a", Condition::End),
        ] {
            assert_eq!(parse_dependency(text).unwrap(), (id, condition));
        }
        for text in ["a:", "a:ends", "a:end:end", ":x"] {
            assert!(parse_dependency(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_record_names_the_condition() {
        let dependency = Dependency { task: TaskId::new("a").unwrap(), condition: Condition::End, created_ms: 7 };
        let text = serde_json::to_string(&dependency).unwrap();
        assert_eq!(text, r#"{"task":"a","condition":"end","created_ms":7}"#);
        assert_eq!(serde_json::from_str::<Dependency>(&text).unwrap(), dependency);
        assert!(serde_json::from_str::<Dependency>(&text.replace("end", "ends")).is_err());
    }
}
