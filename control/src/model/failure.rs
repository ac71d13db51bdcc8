//! Defines how records keep an error.

use blockhaul_engine::error::{Code, Error};
use serde::{Deserialize, Deserializer, Serialize};

/// Most characters of a message that are kept.
const MESSAGE_CHARS_MAX: usize = 400;

/// Error of the engine, short enough for a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Error code.
    #[serde(deserialize_with = "code")]
    pub code: Code,
    /// Side: `source destination engine coordination caller`.
    pub side: String,
    /// Operation that failed.
    pub operation: String,
    /// First byte of the range, if there is one.
    pub offset: Option<u64>,
    /// Length of the range in bytes.
    pub length: Option<u64>,
    /// Errno of the system, if there is one.
    pub errno: Option<i32>,
    /// Whether a retry may succeed.
    pub retryable: bool,
    /// What happened and what can be done about it; cut to 400 characters.
    pub message: String,
}

fn code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
    let text = String::deserialize(deserializer)?;
    Failure::parse_code(&text).ok_or_else(|| serde::de::Error::custom(format!("unknown error code '{text}'")))
}

impl Failure {
    /// Returns the failure with another message, cut to what a record has room for.
    #[must_use]
    pub fn with_message(self, message: &str) -> Self {
        Self { message: message.chars().take(MESSAGE_CHARS_MAX).collect(), ..self }
    }

    /// Returns the code of that name.
    #[must_use]
    pub fn parse_code(text: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let Error { code, side, operation, offset, length, errno, retryable, effect: _, message, detail: _ } = error;
        Self {
            code: *code,
            side: side.as_str().to_owned(),
            operation: operation.as_str().to_owned(),
            offset: *offset,
            length: *length,
            errno: *errno,
            retryable: *retryable,
            message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_storage_but_for_the_end_of_a_long_message() {
        let kept = Failure::from(&Error::bad_request("ü".repeat(1000)).at(4096, 512));
        assert_eq!(kept.message.chars().count(), MESSAGE_CHARS_MAX);
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), kept);
        assert!(serde_json::from_str::<Failure>(&text.replace("EBadRequest", "ENonsense")).is_err());
    }
}
