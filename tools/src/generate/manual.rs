//! Writes manual pages: one for each command that is not hidden, in section 1, and one for `taskd`, in section 8.

use crate::args::Cli;
use blockhaul_control::config::RawConfig;
use blockhaul_control::timestamp::Timestamp;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// Name of the manual, at the top of each page.
const MANUAL: &str = "Blockhaul";

/// Writes all pages into a folder, replacing older ones.
pub(super) fn write_pages(folder: &Path) -> Result<()> {
    // The pages of `help` would say that they are help.
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    write_tree(&cli, folder)?;
    write_page(RawConfig::command(), "8", folder)
}

fn write_tree(command: &Command, folder: &Path) -> Result<()> {
    command.get_subcommands().filter(|one| !one.is_hide_set()).try_for_each(|one| write_tree(one, folder))?;
    write_page(command.clone(), "1", folder)
}

fn write_page(command: Command, section: &str, folder: &Path) -> Result<()> {
    let source = format!("{MANUAL} {}", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command).section(section).date(date()).source(source).manual(MANUAL);
    let mut file = BufWriter::new(File::create(folder.join(page.get_filename()))?);
    page.render(&mut file)?;
    file.flush()
}

/// Returns the day of `$SOURCE_DATE_EPOCH`, as `2026-01-31`; without one a dash, as an empty date would be left out and the
/// rest of the title would move up.
fn date() -> String {
    let seconds = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse::<u64>().ok());
    let time = seconds.map(|seconds| Timestamp(seconds.saturating_mul(1000)).to_string());
    time.and_then(|time| time.split_once('T').map(|(day, _)| day.to_owned())).unwrap_or_else(|| String::from("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_command_has_a_page_that_names_its_flags() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(folder.path()).unwrap();
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let names: BTreeSet<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        for name in
            ["blockhaul.1", "blockhaul-copy.1", "blockhaul-submit-copy.1", "blockhaul-schedule-add-copy.1", "taskd.8"]
        {
            assert!(names.contains(name), "{name}: {names:?}");
        }
        assert!(names.iter().all(|name| !name.contains("generate") && !name.contains("help")), "{names:?}");
        let page = std::fs::read_to_string(folder.path().join("blockhaul-submit-copy.1")).unwrap();
        let first = page.lines().find(|line| line.starts_with(".TH")).unwrap();
        let title = (first.starts_with(".TH blockhaul-submit-copy 1 "), first.ends_with("\" Blockhaul"));
        assert_eq!(title, (true, true), "{first}");
        assert!(first.contains(&date()), "{first}");
        assert!(page.contains("source\\-stable") && page.contains(".SH SYNOPSIS"), "{page}");
    }
}
