//! Installs the Debian packages of the tools that tests use.

use crate::step::Verdict;
use std::path::Path;
use std::process::{Command, Stdio};

/// Packages, each with the programs that show that it is installed, from whatever source. A name that starts with a
/// slash is a file.
const PACKAGES: [(&str, &[&str]); 22] = [
    ("nbdkit", &["nbdkit"]),
    ("libnbd-bin", &["nbdcopy", "nbdinfo"]),
    ("qemu-utils", &["qemu-img", "qemu-io", "qemu-nbd"]),
    ("nbd-server", &["nbd-server"]),
    ("fio", &["fio"]),
    ("gddrescue", &["ddrescue"]),
    ("xfsprogs", &["mkfs.xfs"]),
    ("btrfs-progs", &["mkfs.btrfs"]),
    ("util-linux", &["losetup", "flock", "setpriv", "unshare", "nsenter", "fsfreeze"]),
    ("iproute2", &["ip"]),
    ("systemd", &["systemd-analyze"]),
    ("e2fsprogs", &["mkfs.ext4"]),
    ("dmsetup", &["dmsetup"]),
    ("python3", &["python3"]),
    ("strace", &["strace"]),
    ("openssl", &["openssl"]),
    ("faketime", &["faketime"]),
    ("curl", &["curl"]),
    ("chromium", &["chromium"]),
    ("prometheus", &["promtool"]),
    ("default-jre-headless", &["java"]),
    ("zookeeper", &["/usr/share/java/zookeeper.jar"]),
];

/// Directories of `mkfs.*` and `losetup`, which are not on every user's `PATH`.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Installs missing packages as root; otherwise prints the command to run.
pub(crate) fn ensure() -> Verdict {
    let missing = missing();
    if missing.is_empty() {
        return Verdict::Passed;
    }
    let install = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !is_root() {
        println!("the tests need Debian packages that are missing; run this once:\n\n  sudo {install}\n");
        return Verdict::Failed;
    }
    println!("== installing {}", missing.join(" "));
    let script = format!("apt-get update -qq && {install}");
    let status =
        Command::new("sh").args(["-c", &script]).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Verdict::Passed,
        Ok(status) => {
            println!("{script}: {status}");
            Verdict::Failed
        }
        Err(error) => {
            println!("{script}: {error}");
            Verdict::Failed
        }
    }
}

fn missing() -> Vec<&'static str> {
    let absent = |programs: &[&str]| programs.iter().any(|program| !is_installed(program));
    PACKAGES.iter().filter(|(_, programs)| absent(programs)).map(|(package, _)| *package).collect()
}

fn is_installed(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.iter().map(Into::into))
        .any(|directory| directory.join(program).is_file())
}

fn is_root() -> bool {
    // The owner of the own entry is the effective user.
    std::fs::metadata("/proc/self").is_ok_and(|entry| std::os::unix::fs::MetadataExt::uid(&entry) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_on_the_path_and_files_where_they_are() {
        assert!(is_installed("sh") && is_installed("/bin/sh"));
        assert!(!is_installed("/bin") && !is_installed("/no/such/file.jar"));
        assert!(!is_installed("no-such-program-anywhere"));
    }
}
