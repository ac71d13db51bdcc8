//! Chooses the state directory of a process when no flag names one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Returns the state directory: the flag's, else the first of `$STATE_DIRECTORY` (as systemd sets it), else
/// `$XDG_STATE_HOME/blockhaul`, else `~/.local/state/blockhaul`; `None` if nothing names one. It need not exist yet.
/// `variable` reads the environment.
pub fn locate(flag: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // The XDG rules say that a relative path is to be ignored.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let of_service = || {
        let list = variable("STATE_DIRECTORY").filter(|list| !list.is_empty())?;
        let first = list.as_bytes().split(|&byte| byte == b':').next().unwrap_or_default();
        Some(PathBuf::from(OsStr::from_bytes(first)))
    };
    flag.map(Path::to_owned)
        .or_else(of_service)
        .or_else(|| absolute("XDG_STATE_HOME").map(|state| state.join("blockhaul")))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state/blockhaul")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_then_systemd_then_xdg_then_home() {
        let all = [("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), ("XDG_STATE_HOME", "/xdg"), ("HOME", "/people/me")];
        let found = |flag: Option<&str>, skip: usize| {
            let variable = |name: &str| all[skip..].iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            locate(flag.map(Path::new), variable)
        };
        assert_eq!(found(Some("here"), 0).unwrap(), Path::new("here"));
        assert_eq!(found(None, 0).unwrap(), Path::new("/var/lib/a"));
        assert_eq!(found(None, 1).unwrap(), Path::new("/xdg/blockhaul"));
        assert_eq!(found(None, 2).unwrap(), Path::new("/people/me/.local/state/blockhaul"));
        assert_eq!(found(None, 3), None);
    }
}
