//! Finds the programs to measure and to measure with, and their versions.
//!
//! Rivals and tools are searched on `PATH`, then where system tools live. The `blockhaul` command and the bare ring
//! loop are searched beside this program first, because they must come from the same build. Under cargo, this program
//! has cargo build them.

use crate::results;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// Directories of `mkfs.xfs` and `losetup`, which are not on every user's `PATH`.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Programs to find, and what to install if one is missing.
const PROGRAMS: [(&str, &str); 14] = [
    ("blockhaul", "build it with cargo build --release -p blockhaul-tools"),
    ("qemu-img", "install qemu-utils"),
    ("nbdcopy", "install libnbd-bin"),
    ("dd", "install coreutils"),
    ("cp", "install coreutils"),
    ("ddrescue", "install gddrescue"),
    ("cmp", "install diffutils"),
    ("fio", "install fio"),
    ("nbdkit", "install nbdkit"),
    ("strace", "install strace"),
    ("mkfs.xfs", "install xfsprogs"),
    ("ionice", "install util-linux"),
    ("xargs", "install findutils"),
    (BARE_LOOP, "build it with cargo bench -p blockhaul-engine --bench bare_loop --no-run"),
];

/// Name of the bare ring loop's binary.
pub(crate) const BARE_LOOP: &str = "bare_loop";

/// Programs found, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programs(BTreeMap<&'static str, FoundProgram>);

#[derive(Clone, Debug)]
struct FoundProgram {
    path: Option<PathBuf>,
    version: Option<String>,
    install_hint: &'static str,
}

impl Programs {
    /// Searches all programs.
    pub(crate) fn find() -> Self {
        build_ours();
        let found = PROGRAMS.iter().map(|(name, install_hint)| {
            let path = locate(name);
            let version = path.as_deref().and_then(|path| version(name, path));
            (*name, FoundProgram { path, version, install_hint })
        });
        Self(found.collect())
    }

    /// Returns the path of a program.
    ///
    /// # Errors
    /// The program is not installed; the message says what to install.
    pub(crate) fn path(&self, name: &str) -> Result<String, String> {
        let found = self.0.get(name);
        match found.and_then(|found| found.path.as_ref()) {
            Some(path) => Ok(path.display().to_string()),
            None => Err(format!("{name} not found: {}", found.map_or("install it", |found| found.install_hint))),
        }
    }

    /// Returns the programs as they appear in the results.
    pub(crate) fn list(&self) -> Vec<results::Program> {
        let entry = |(name, found): (&&str, &FoundProgram)| results::Program {
            name: (*name).to_owned(),
            version: found.version.clone(),
            path: found.path.as_ref().map(|path| path.display().to_string()),
        };
        self.0.iter().map(entry).collect()
    }
}

/// Returns the path of this program.
pub(crate) fn own_path() -> String {
    // The link works even if the file was replaced meanwhile.
    std::env::current_exe().map_or_else(|_| "/proc/self/exe".to_owned(), |path| path.display().to_string())
}

fn locate(name: &str) -> Option<PathBuf> {
    let own_folder = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    match name {
        "blockhaul" => {
            own_folder.map(|folder| folder.join(name)).filter(|path| path.is_file()).or_else(|| on_path(name))
        }
        BARE_LOOP => own_folder.and_then(|folder| newest(&folder.join("deps"))),
        _ => on_path(name),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_DIRECTORIES.iter().map(Into::into));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Returns the bare loop that was built last: cargo adds a hash to its name.
fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let ours = entries.filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("bare_loop-") && path.extension().is_none()
    });
    let built = |path: &PathBuf| path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    ours.max_by_key(built)
}

/// Returns the first line that a program prints about its version.
fn version(name: &str, path: &Path) -> Option<String> {
    let flag = match name {
        BARE_LOOP => return Some("of this build".to_owned()),
        "mkfs.xfs" => "-V",
        _ => "--version",
    };
    let output = Command::new(path).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// Has cargo build our own programs, if it started this one. A failed build shows up later as a missing program.
fn build_ours() {
    let (Some(cargo), Some(_)) = (std::env::var_os("CARGO"), std::env::var_os("CARGO_MANIFEST_DIR")) else { return };
    let release = !cfg!(debug_assertions);
    let command: &[&str] = &["build", "--quiet", "--package", "blockhaul-tools", "--bin", "blockhaul"];
    let floor: &[&str] = &["--quiet", "--package", "blockhaul-engine", "--bench", BARE_LOOP];
    let (how, profile): (&[&str], &[&str]) =
        if release { (&["bench", "--no-run"], &["--release"]) } else { (&["build"], &[]) };
    for words in [[command, profile].concat(), [how, floor].concat()] {
        eprintln!("cargo {}", words.join(" "));
        let _ = Command::new(&cargo).args(words).stdin(Stdio::null()).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_what_to_install() {
        let nowhere = FoundProgram { path: None, version: None, install_hint: "install fio" };
        let programs = Programs(BTreeMap::from([("fio", nowhere)]));
        assert_eq!(programs.path("fio"), Err("fio not found: install fio".to_owned()));
        assert!(programs.path("no-such-program").is_err());
        assert_eq!(programs.list()[0].version, None);
    }

    #[test]
    fn a_version_is_one_line() {
        let cp = on_path("cp").unwrap();
        assert!(version("cp", &cp).unwrap().contains("cp"));
    }
}
