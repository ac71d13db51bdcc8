//! Prints a configuration file of `taskd` with all settings, from the declaration of its flags.
//!
//! The file of a new installation runs a node alone, with the default of everything else: it listens on the loopback
//! interface and allows no path. Every other setting is a comment: its help, and a line that sets it.

use blockhaul_control::config::RawConfig;
use clap::{Arg, ArgAction, CommandFactory};
use std::fmt::Write;

/// Columns of a comment.
const COLUMNS: usize = 100;

/// Setting that is on.
const ALONE: &str = "standalone";

const HEADER: &str = "\
# Settings of taskd, read by `taskd --config FILE`. They have the names of its flags, which `man taskd` explains, too.
# A flag wins over the environment, and the environment over this file. Unknown names are refused.
# `systemctl reload taskd` applies slots, log, certificates and roles; all else needs a restart.
";

/// Returns the file.
pub(super) fn text() -> String {
    let mut text = HEADER.to_owned();
    let command = RawConfig::command();
    // What names this file is no setting in it.
    for arg in command.get_arguments().filter(|arg| arg.get_id() != "config") {
        let Some(name) = arg.get_long() else { continue };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        text.push('\n');
        wrapped(&help).iter().for_each(|line| _ = writeln!(text, "# {line}"));
        let mark = if name == ALONE { "" } else { "#" };
        _ = writeln!(text, "{mark}{name} = {}", example(arg, &help));
    }
    text
}

/// Returns a value of the type of a setting: its default where the help has it as one word, else the name of the value.
fn example(arg: &Arg, help: &str) -> String {
    let value_name = arg.get_value_names().and_then(|names| names.first()).map_or("VALUE", |name| name.as_str());
    let default = help.rsplit_once("[default: ").and_then(|(_, rest)| rest.strip_suffix(']'));
    let default = default.filter(|text| *text != "none" && !text.contains([' ', ',', '$']));
    match (arg.get_action(), value_name) {
        (ArgAction::Append, _) => format!("[\"{value_name}\"]"),
        (_, "BOOL") => String::from("true"),
        (_, "N") => default.unwrap_or("1").to_owned(),
        _ => format!("\"{}\"", default.unwrap_or(value_name)),
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= COLUMNS {
            *line += &format!(" {word}");
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::net::Ipv4Addr;
    use std::path::Path;

    /// Reads the text as a configuration file.
    fn read(text: &str) -> blockhaul_engine::error::Result<RawConfig> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("taskd.toml");
        std::fs::write(&file, text).unwrap();
        RawConfig { config: Some(file), ..RawConfig::default() }.with_file()
    }

    #[test]
    fn a_new_installation_runs_alone_and_allows_nothing() {
        let state = |name: &str| (name == "STATE_DIRECTORY").then(|| OsString::from("/var/lib/blockhaul"));
        let config = read(&text()).unwrap().resolve(state).unwrap();
        assert_eq!(config.store, blockhaul_control::config::Store::Embedded);
        assert_eq!((config.listen.ip(), config.allow_paths.len()), (Ipv4Addr::LOCALHOST.into(), 0));
        assert_eq!(config.state_dir, Path::new("/var/lib/blockhaul"));
    }

    #[test]
    fn each_setting_is_accepted_when_its_mark_is_removed() {
        let text = text();
        let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
        let settings: Vec<&str> = text.lines().filter(is_setting).map(|line| &line[1..]).collect();
        assert!(settings.len() > 25, "{text}");
        for setting in settings {
            read(setting).unwrap_or_else(|error| panic!("{setting}: {error}"));
        }
        let error = read("slots = 4\n\nalow-path = [\"/srv\"]\n").unwrap_err();
        assert!(error.message.contains("line 3") && error.message.contains("alow-path"), "{error}");
    }

    #[test]
    fn the_packaged_file_is_the_generated_one() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/taskd.toml");
        let packaged = std::fs::read_to_string(file).unwrap();
        assert_eq!(packaged, text(), "run: cargo run -- generate config > packaging/taskd.toml");
    }
}
