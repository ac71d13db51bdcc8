//! Makes sure that files which decide about the rights of tasks lie apart from the paths that tasks may use.
//!
//! A task writes and reads whatever lies in an allowed path. So nothing there may be a hook, a file of roles, an order key, the key of
//! this node or its state, to which the audit log belongs.

use crate::config::Config;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::shown::Shown;
use blockhaul_hooks::overlap;
use std::path::{Path, PathBuf};

/// Refuses a file of roles, order keys, certificates or a state directory in an allowed path, where roles or signatures count.
///
/// # Errors
/// `EBadRequest` naming both, and those of the system.
pub(super) fn check(config: &Config) -> Result<()> {
    let roles = config.access.as_ref().map(|access| ("--roles", access.path()));
    let keys = config.order_keys.as_ref().map(|keys| ("--order-keys", keys.path()));
    if roles.is_none() && keys.is_none() {
        return Ok(());
    }
    let files = [roles, keys, Some(("--state-dir", config.state_dir.as_path()))];
    let certificates = config.tls.as_ref().map(|tls| tls.paths()).into_iter().flatten();
    for (flag, path) in files.into_iter().flatten().chain(certificates) {
        check_apart(
            flag,
            path,
            &config.allow_paths,
            "a task could take rights that nobody gave it, or hide what it has done",
        )?;
    }
    Ok(())
}

/// Refuses a path that lies in an allowed one, or contains one. `danger` says what a task could do.
///
/// # Errors
/// `EBadRequest` naming both, and those of the system.
pub(super) fn check_apart(flag: &str, path: &Path, allowed: &[PathBuf], danger: &str) -> Result<()> {
    for allow_path in allowed {
        if overlap(path, allow_path)? {
            let message = format!("{flag} {} and --allow-path {} overlap", path.shown(), allow_path.shown());
            return Err(Error::bad_request(message).advise(format!("{danger}: name paths that lie apart")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::Code;

    #[test]
    fn folders_that_tasks_may_write_lie_apart_from_what_gives_rights() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("srv/hooks")).unwrap();
        std::fs::create_dir_all(path("etc/hooks")).unwrap();
        std::fs::write(path("srv/roles.toml"), "").unwrap();
        std::fs::write(path("etc/roles.toml"), "").unwrap();
        let allowed = [path("images"), path("srv")];
        let check = |flag, path: &Path| check_apart(flag, path, &allowed, "bad");
        for (flag, name) in [("--hooks-dir", "srv/hooks"), ("--roles", "srv/roles.toml"), ("--state-dir", "")] {
            let refused = check(flag, &path(name)).unwrap_err();
            assert_eq!(refused.code, Code::BadRequest);
            assert!(refused.message.contains(flag) && refused.message.contains("bad"), "{refused}");
        }
        check("--hooks-dir", &path("etc/hooks")).unwrap();
        check("--roles", &path("etc/roles.toml")).unwrap();
    }
}
