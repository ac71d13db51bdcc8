//! Builds the shell command that resumes or repeats a copy.
//!
//! It is the given command line with one flag added or replaced. It must be run in the same directory and with the same
//! environment.

use blockhaul_engine::shown::is_printable;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// Mode of the retried copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryMode {
    /// From the checkpoint.
    Resume,
    /// From the start, because the checkpoint cannot be resumed.
    Restart,
    /// From the start, because there is no checkpoint.
    Overwrite,
}

impl RetryMode {
    fn flag(self) -> &'static str {
        match self {
            Self::Resume => "--resume",
            Self::Restart => "--restart",
            Self::Overwrite => "--overwrite",
        }
    }
}

/// Returns `arguments`, which start with the program and the command, changed to retry by `mode`.
pub(crate) fn command(arguments: impl IntoIterator<Item = OsString>, mode: RetryMode) -> String {
    let mut operands = false;
    let mut words: Vec<OsString> = arguments
        .into_iter()
        .filter(|word| {
            operands |= word == "--";
            operands || !replaced(word, mode)
        })
        .collect();
    words.insert(words.len().min(2), mode.flag().into());
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// Returns whether an argument is the flag of `mode`, or excludes it.
fn replaced(word: &OsStr, mode: RetryMode) -> bool {
    word == mode.flag() || (mode != RetryMode::Overwrite && (word == "--resume" || word == "--restart"))
}

/// Quotes an argument for a POSIX shell; unprintable bytes become `$'\xNN'`, which bash, zsh and ksh know.
fn quote(word: &OsStr) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./:=,+@%".contains(byte);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.bytes().all(|byte| plain(&byte)) => text.to_owned(),
        Some(text) if text.chars().all(is_printable) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let escaped = word.as_bytes().iter().fold(String::new(), |mut text, byte| {
                let _ = if plain(byte) { write!(text, "{}", char::from(*byte)) } else { write!(text, "\\x{byte:02x}") };
                text
            });
            format!("$'{escaped}'")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<OsString> {
        text.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_flag_follows_the_command_and_its_opposite_goes() {
        let given = words(&["blockhaul", "copy", "--restart", "--limit", "1MiB/s", "a b", "d'e"]);
        assert_eq!(command(given.clone(), RetryMode::Resume), r"blockhaul copy --resume --limit 1MiB/s 'a b' 'd'\''e'");
        assert_eq!(command(given, RetryMode::Restart), r"blockhaul copy --restart --limit 1MiB/s 'a b' 'd'\''e'");
    }

    #[test]
    fn a_second_resume_is_the_same_command_and_operands_are_kept() {
        let given = words(&["blockhaul", "copy", "--resume", "--", "--restart", "-x"]);
        assert_eq!(command(given, RetryMode::Resume), "blockhaul copy --resume -- --restart -x");
    }

    #[test]
    fn without_a_checkpoint_the_copy_is_made_again() {
        let given = words(&["blockhaul", "copy", "--no-checkpoint", "a", "b"]);
        assert_eq!(command(given, RetryMode::Overwrite), "blockhaul copy --overwrite --no-checkpoint a b");
    }

    #[test]
    fn a_shell_reads_back_every_byte() {
        for word in [&b"plain"[..], b"", b"two words", b"$HOME `x` \"y\"", b"it's", b"a\nb", b"\xff\xfe", b"~", b"*"] {
            let script = format!("printf %s {}", quote(OsStr::from_bytes(word)));
            let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(output.stdout, word, "{script}");
        }
    }
}
