//! Defines a position in the changes of all tasks.

use super::Epoch;
use std::fmt;

/// Position in the changes of all tasks, as `EPOCH:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Epoch of the leader that counts.
    pub epoch: Epoch,
    /// Number of a change under that leader. Numbers are consecutive.
    pub number: u64,
}

impl Position {
    /// Parses a position.
    ///
    /// # Errors
    /// What is expected, if it is anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(epoch, number)| {
            let is_plain = [epoch, number].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
            let (epoch, number) = (epoch.parse().ok()?, number.parse().ok()?);
            is_plain.then_some(Self { epoch: Epoch(epoch), number })
        });
        let expected = "write EPOCH:N, as at the beginning of the lines of 'watch --all'";
        parsed.ok_or_else(|| format!("'{}' is no position: {expected}", text.escape_debug()))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch.0, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_shown() {
        let position = Position { epoch: Epoch(8_589_934_593), number: 17 };
        assert_eq!(position.to_string(), "8589934593:17");
        assert_eq!(Position::parse("8589934593:17"), Ok(position));
        for text in ["", "17", "1:", ":1", "-1:2", "1:+2", "1:2:3", "a:b", "99999999999999999999:1"] {
            assert!(Position::parse(text).unwrap_err().contains("is no position"), "{text}");
        }
    }
}
