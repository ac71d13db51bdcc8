//! Makes what is installed: a Debian package, and a tarball of static programs.
//!
//! Both hold the same bytes whenever and wherever they are made from one commit with one compiler: times are that of the
//! commit, paths of this machine are replaced, and entries are sorted.
//!
//! | file | what |
//! | --- | --- |
//! | `build` | builds the programs reproducibly |
//! | `generated` | manual pages and completions |
//! | `deb` | the Debian package |
//! | `tarball` | the tarball |
//! | `installed` | installs the package, in a copy of this system, and uses it |

mod build;
mod deb;
mod generated;
mod installed;
mod tarball;

use crate::Refused;
use crate::step::{Tally, Verdict, root};
use std::path::{Path, PathBuf};

/// Version of all packages of the workspace, which this one is.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes what the words name, `deb` or `tarball`; both, if they name nothing. With `--test` also tests the Debian
/// package, which takes root.
///
/// # Errors
/// Unknown words; folders that cannot be created; no commit to take the time from.
pub(crate) fn run(words: &[&str]) -> Result<Verdict, Refused> {
    let is_tested = words.contains(&"--test");
    let kinds: Vec<&str> = words.iter().copied().filter(|word| *word != "--test").collect();
    if let Some(unknown) = kinds.iter().find(|kind| !["deb", "tarball"].contains(*kind)) {
        return Err(format!("package makes deb or tarball, not '{unknown}'"));
    }
    let wants = |kind| kinds.is_empty() || kinds.contains(&kind);
    let (dist, epoch) = (created(&target().join("dist"))?, build::commit_time()?);
    let mut tally = Tally::default();
    if wants("deb") || is_tested {
        let file = deb::make(&mut tally, &dist, epoch)?;
        if let Some(file) = file.filter(|_| is_tested) {
            installed::test(&mut tally, &file);
        }
    }
    if wants("tarball") {
        tarball::make(&mut tally, &dist, epoch)?;
    }
    Ok(tally.conclude())
}

/// Writes manual pages into a folder.
///
/// # Errors
/// The folder cannot be created.
pub(crate) fn manual(folder: &str) -> Result<Verdict, Refused> {
    let mut tally = Tally::default();
    generated::manual(&mut tally, &generated::from_source(), &created(Path::new(folder))?);
    Ok(tally.conclude())
}

/// Writes completions into a folder, one folder below it for each shell.
///
/// # Errors
/// The folder cannot be created.
pub(crate) fn completions(folder: &str) -> Result<Verdict, Refused> {
    let mut tally = Tally::default();
    generated::completions(&mut tally, &generated::from_source(), &created(Path::new(folder))?)?;
    Ok(tally.conclude())
}

/// Returns the folder of all that is built.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Creates a folder and those above it; returns its absolute path.
fn created(folder: &Path) -> Result<PathBuf, Refused> {
    let made = std::fs::create_dir_all(folder).and_then(|()| folder.canonicalize());
    made.map_err(|error| format!("create {}: {error}", folder.display()))
}
