//! Creates a folder that only this user or root can change, with all folders above it: programs that run hooks insist on
//! that, and refuse folders below `/tmp`.

use crate::programs::temporary_folder;
use nix::unistd::Uid;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Such a folder, for one test.
#[derive(Debug)]
pub struct SafeDir(TempDir);

impl SafeDir {
    /// Creates an empty folder below the build folder, or else in the folder for files of running programs; `None` if
    /// others may change both.
    pub fn new() -> Option<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_else(|| "/run".into());
        let places = [temporary_folder(), PathBuf::from(runtime)];
        let mut places = places.iter().filter_map(|place| place.canonicalize().ok()).filter(|place| is_safe(place));
        places.find_map(|place| tempfile::tempdir_in(place).ok()).map(Self)
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a program, with the folders that it lies in; returns its path.
    ///
    /// Another process writes it. Otherwise a process that is forked meanwhile would hold it open for writing, and the
    /// program could not be executed (`ETXTBSY`).
    pub fn executable(&self, name: impl AsRef<Path>, content: &str) -> PathBuf {
        let path = self.path(name);
        let script =
            r#"umask 022; mkdir -p "$(dirname "$0")" && cat > "$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0""#;
        let mut writer = Command::new("sh");
        writer.arg("-c").arg(script).arg(&path).stdin(Stdio::piped());
        let mut writer = writer.spawn().expect("there is a shell");
        let mut input = writer.stdin.take().expect("it is piped");
        input.write_all(content.as_bytes()).expect("the shell reads it");
        drop(input);
        assert!(writer.wait().expect("it was started").success(), "{path:?} cannot be written");
        path
    }
}

fn is_safe(place: &Path) -> bool {
    place.ancestors().all(|folder| {
        let is_owned = |owner| owner == 0 || owner == Uid::effective().as_raw();
        folder.metadata().is_ok_and(|stat| is_owned(stat.uid()) && stat.mode() & 0o022 == 0)
    })
}
