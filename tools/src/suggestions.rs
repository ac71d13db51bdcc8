//! Suggests what there is for commands and flags of other programs that this one does not have.
//!
//! Spelling mistakes are not looked at here: the parser suggests what is similar.

use crate::args::Cli;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// Commands that people try, and what does that here.
const COMMANDS: [(&[&str], &str); 10] = [
    (&["version"], "--version"),
    (&["cp", "dd", "convert", "clone"], "copy"),
    (&["compare", "diff", "check"], "verify"),
    (&["info", "show", "describe"], "get"),
    (&["ls", "ps", "tasks"], "list"),
    (&["nodes"], "runners"),
    (&["stop", "kill", "abort"], "cancel"),
    (&["rm", "delete", "purge"], "remove"),
    (&["wait", "follow", "tail"], "watch"),
    (&["status", "config"], "center"),
];

/// Flags that people try, and what may do that here: the first one that the command has.
const FLAGS: [(&[&str], &[&str]); 7] = [
    (&["--force", "-f"], &["--overwrite", "--confirm", "--now", "--follow"]),
    (&["--bwlimit", "--rate", "--rate-limit", "--speed"], &["--limit"]),
    (&["--bs", "--blocksize"], &["--block-size"]),
    (&["--jobs", "-j", "--threads"], &["--parallel", "--cores"]),
    (&["--server", "--host", "--address"], &["--center"]),
    (&["--yes", "-y"], &["--confirm", "--overwrite"]),
    (&["--continue"], &["--resume"]),
];

/// Returns what to use instead of the unknown word that the parser has refused.
pub(crate) fn instead_of(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let tried = word(ContextKind::InvalidSubcommand)?;
            let command = command_of(arguments);
            let (_, known) = COMMANDS.iter().find(|(words, _)| words.contains(&tried))?;
            let exists = known.starts_with('-') || command.find_subcommand(known).is_some();
            exists.then(|| format!("use '{} {known}'", path_of(&command)))
        }
        ErrorKind::UnknownArgument => {
            let flag = word(ContextKind::InvalidArg)?;
            let command = command_of(arguments);
            let has = |known: &&&str| command.get_arguments().any(|arg| arg.get_long() == known.strip_prefix("--"));
            let (_, known) = FLAGS.iter().find(|(tried, _)| tried.contains(&flag))?;
            known.iter().find(has).map(|known| format!("use '{known}'"))
        }
        _ => None,
    }
}

/// Returns the command that the arguments name, however deep it is.
fn command_of(arguments: &[OsString]) -> clap::Command {
    let mut command = Cli::command();
    command.build();
    for word in arguments.iter().skip(1) {
        if let Some(found) = command.find_subcommand(word) {
            command = found.clone();
        }
    }
    command
}

fn path_of(command: &clap::Command) -> &str {
    command.get_bin_name().unwrap_or_else(|| command.get_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn suggested(words: &[&str]) -> Option<String> {
        let words: Vec<OsString> = ["blockhaul"].iter().chain(words).map(OsString::from).collect();
        instead_of(&Cli::try_parse_from(&words).unwrap_err(), &words)
    }

    #[test]
    fn words_of_other_programs_lead_to_those_of_this_one() {
        for (words, known) in [
            (&["version"][..], "use 'blockhaul --version'"),
            (&["cp", "a", "b"], "use 'blockhaul copy'"),
            (&["submit", "cp", "a", "b"], "use 'blockhaul submit copy'"),
            (&["schedule", "rm", "nightly"], "use 'blockhaul schedule remove'"),
            (&["copy", "--force", "a", "b"], "use '--overwrite'"),
            (&["submit", "copy", "a", "b", "-f"], "use '--overwrite'"),
            (&["fence", "n1", "--force"], "use '--confirm'"),
            (&["logs", "t", "-f"], "use '--follow'"),
            (&["batch", "f", "-j", "4"], "use '--parallel'"),
        ] {
            assert_eq!(suggested(words).as_deref(), Some(known), "{words:?}");
        }
    }

    #[test]
    fn nothing_is_suggested_that_does_not_exist() {
        for words in [&["teleport"][..], &["schedule", "status"], &["get", "t", "--force"], &["copy", "a"]] {
            assert_eq!(suggested(words), None, "{words:?}");
        }
    }

    #[test]
    fn each_suggestion_exists_somewhere_and_no_word_that_exists_is_replaced() {
        let cli = Cli::command();
        for (tried, known) in COMMANDS {
            assert!(tried.iter().all(|word| cli.find_subcommand(word).is_none()), "{tried:?}");
            assert!(known.starts_with('-') || cli.find_subcommand(known).is_some(), "{known}");
        }
        let longs: Vec<&str> = cli
            .get_subcommands()
            .flat_map(|command| command.get_arguments())
            .filter_map(|arg| arg.get_long())
            .collect();
        for (tried, known) in FLAGS {
            assert!(tried.iter().all(|flag| !longs.contains(&flag.trim_start_matches('-'))), "{tried:?}");
            assert!(known.iter().all(|flag| longs.contains(&flag.trim_start_matches('-'))), "{known:?}");
        }
    }
}
