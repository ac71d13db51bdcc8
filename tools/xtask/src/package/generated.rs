//! Writes the files that the programs generate: manual pages, completions, and the Debian changelog.

use super::{VERSION, created};
use crate::Refused;
use crate::step::{Tally, cargo};
use std::path::Path;
use std::process::Command;

/// Shells, each with the names of the scripts of `blockhaul` and `taskd` in the folder that the shell looks into.
const SHELLS: [(&str, [&str; 2]); 3] =
    [("bash", ["blockhaul", "taskd"]), ("zsh", ["_blockhaul", "_taskd"]), ("fish", ["blockhaul.fish", "taskd.fish"])];

/// Makes a command that runs `blockhaul`.
pub(super) type Blockhaul = dyn Fn() -> Command;

/// Returns `blockhaul` as it is built for development.
pub(super) fn from_source() -> Box<Blockhaul> {
    Box::new(|| cargo(&["run", "--quiet", "--package", "blockhaul-tools", "--bin", "blockhaul", "--"]))
}

/// Returns a program that has been built, with the date of what it writes.
pub(super) fn built(program: &Path, epoch: u64) -> Box<Blockhaul> {
    let program = program.to_owned();
    Box::new(move || {
        let mut command = Command::new(&program);
        command.env("SOURCE_DATE_EPOCH", epoch.to_string());
        command
    })
}

/// Writes the manual pages.
pub(super) fn manual(tally: &mut Tally, blockhaul: &Blockhaul, folder: &Path) {
    tally.run("manual pages", blockhaul().args(["generate", "man"]).arg(folder));
}

/// Writes the completions of each shell into a folder of its own.
///
/// # Errors
/// A folder or file cannot be written.
pub(super) fn completions(tally: &mut Tally, blockhaul: &Blockhaul, folder: &Path) -> Result<(), Refused> {
    for (shell, names) in SHELLS {
        let folder = created(&folder.join(shell))?;
        for (program, name) in ["blockhaul", "taskd"].into_iter().zip(names) {
            let file = folder.join(name);
            let to = std::fs::File::create(&file).map_err(|error| format!("create {}: {error}", file.display()))?;
            tally.run_into(
                &format!("completion of {program} in {shell}"),
                blockhaul().args(["completions", shell, program]),
                to,
            );
        }
    }
    Ok(())
}

/// Returns a Debian changelog with the one entry of this version. What has changed is in `CHANGELOG.md`.
pub(super) fn debian_changelog(date: &str) -> String {
    format!(
        "blockhaul ({VERSION}-1) unstable; urgency=medium\n\n  * Release {VERSION}: see CHANGELOG.md.\n\n \
         -- Blockhaul maintainers <blockhaul@users.noreply.github.com>  {date}\n"
    )
}
