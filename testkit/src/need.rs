//! Checks what a test needs of its host, and skips tests whose needs are not met.
//!
//! On a developer's machine such a test prints its name and passes. In CI (`CI` is set) it fails: a test that is never
//! run proves nothing, and `cargo xtask test` installs everything that tests need.

use nix::unistd::Uid;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Skips the calling test, which must return `()`, if `$needs` is not met; otherwise evaluates to what the needs
/// provide.
///
/// `$needs` is a list of [`Need`]s, or the `Result` of a set-up whose error says what is missing.
#[macro_export]
macro_rules! need {
    ($test:expr, $needs:expr) => {
        match $crate::Requirement::meet($needs) {
            Ok(met) => met,
            Err(missing) => return $crate::unmet($test, &missing),
        }
    };
}

/// Reports that `test` is skipped because `missing` is missing.
///
/// # Panics
/// In CI, where tests must not be skipped.
pub fn unmet(test: &str, missing: &str) {
    let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    assert!(!is_ci, "{test} cannot run, and CI skips no test: {missing}");
    skipped(test, missing);
}

/// Reports that `test` is skipped, also in CI: for features that the running kernel lacks, which cannot be installed.
pub fn skipped(test: &str, missing: &str) {
    // Bypasses the test harness, which hides the output of passing tests.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {missing}");
}

/// A requirement on the host.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Root privileges.
    Root,
    /// A program on `PATH` or in a system directory.
    Program(&'static str),
    /// A file, by its absolute path.
    File(&'static str),
    /// A file system that can be created and mounted.
    Filesystem(&'static str),
    /// Loop devices.
    LoopDevices,
}

impl Need {
    fn is_met(self) -> bool {
        match self {
            Self::Root => Uid::effective().is_root(),
            Self::Program(name) => is_on_path(name),
            Self::File(path) => Path::new(path).is_file(),
            Self::Filesystem(name) => {
                let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                known.split_whitespace().any(|known| known == name) && is_on_path(&format!("mkfs.{name}"))
            }
            Self::LoopDevices => Path::new("/dev/loop-control").exists() && is_on_path("losetup"),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Program(name) | Self::File(name) => f.write_str(name),
            Self::Filesystem(name) => write!(f, "the file system {name} and mkfs.{name}"),
            Self::LoopDevices => f.write_str("loop devices"),
        }
    }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(program).is_file())
}

/// Argument of [`need!`](macro@crate::need).
pub trait Requirement {
    /// What the test uses.
    type Met;

    /// # Errors
    /// Describes what the host lacks.
    fn meet(self) -> Result<Self::Met, String>;
}

impl<T, E: fmt::Display> Requirement for Result<T, E> {
    type Met = T;

    fn meet(self) -> Result<T, String> {
        self.map_err(|missing| missing.to_string())
    }
}

impl<N: AsRef<[Need]> + ?Sized> Requirement for &N {
    type Met = ();

    fn meet(self) -> Result<(), String> {
        let missing: Vec<String> = self.as_ref().iter().filter(|need| !need.is_met()).map(Need::to_string).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("needs {}", missing.join(", "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn met_needs_pass_and_all_missing_ones_are_named() {
        assert_eq!([Need::Program("sh"), Need::File("/bin/sh")].as_slice().meet(), Ok(()));
        let needs =
            &[Need::Program("sh"), Need::Program("no-such-program"), Need::Filesystem("nofs"), Need::File("/bin")];
        assert_eq!(needs.meet(), Err("needs no-such-program, the file system nofs and mkfs.nofs, /bin".into()));
        assert_eq!(Ok::<_, String>(3).meet(), Ok(3));
        assert_eq!(Err::<u8, _>("nothing").meet(), Err("nothing".into()));
    }

    #[test]
    fn a_test_ends_where_a_need_is_not_met() {
        let end = |needs: Result<u8, &'static str>, then: fn(u8)| {
            let test = move || then(need!("this test", needs));
            std::thread::spawn(test).join().is_ok()
        };
        let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        assert!(end(Ok(3), |met| assert_eq!(met, 3)));
        assert_eq!(end(Err("missing"), |_| unreachable!("the test has ended")), !in_ci, "skipped here, failed in CI");
    }
}
