//! Judges owner and mode of folders and files that lead to a program which runs with our rights.
//!
//! Whoever can write a hook, its folder or one of the folders above can run any program as us. So each of them belongs
//! to root or to us, and neither its group nor others may write it. The sticky bit excuses nothing: in a folder such as
//! `/tmp` anybody may create the name that we look for. An access list that lets another user write shows in the bits
//! of the group, which hold the mask of the list then, so it is refused as well.

use nix::libc::mode_t;
use nix::sys::stat::{FileStat, SFlag};
use nix::unistd::Uid;

/// Bits of the mode by which group and others may write.
const WRITABLE_BY_OTHERS: mode_t = 0o022;
/// Bits of the mode that give a program the rights of its owner or group.
const SET_ID: mode_t = 0o6000;
/// Bits of the mode by which anybody may execute.
const EXECUTABLE: mode_t = 0o111;

/// Returns what is wrong with a folder on the way to a hook, and what to do about it.
pub(crate) fn folder_fault(stat: &FileStat, user: Uid) -> Option<String> {
    match file_type(stat) {
        SFlag::S_IFDIR => writer_fault(stat, user),
        SFlag::S_IFLNK => Some(String::from("it is a symbolic link: give the path without links")),
        _ => Some(String::from("it is no folder")),
    }
}

/// Returns what is wrong with the file of a hook, and what to do about it.
pub(crate) fn hook_fault(stat: &FileStat, user: Uid) -> Option<String> {
    match file_type(stat) {
        SFlag::S_IFREG => {}
        SFlag::S_IFLNK => return Some(String::from("it is a symbolic link: put the program itself there")),
        _ => return Some(String::from("it is no regular file")),
    }
    if let Some(fault) = writer_fault(stat, user) {
        return Some(fault);
    }
    if stat.st_mode & SET_ID != 0 {
        return Some(format!("it is setuid or setgid (mode {:04o}): take the bit away with chmod ug-s", mode(stat)));
    }
    // Another name may lie in a folder where others may replace or remove it, or be what somebody else edits.
    if stat.st_nlink != 1 {
        return Some(format!("it has {} links: put a copy there", stat.st_nlink));
    }
    (stat.st_mode & EXECUTABLE == 0)
        .then(|| format!("it is not executable (mode {:04o}): allow it with chmod u+x", mode(stat)))
}

fn writer_fault(stat: &FileStat, user: Uid) -> Option<String> {
    let owner = Uid::from_raw(stat.st_uid);
    if !owner.is_root() && owner != user {
        return Some(format!("it belongs to user {owner}: give it to root with chown"));
    }
    (stat.st_mode & WRITABLE_BY_OTHERS != 0)
        .then(|| format!("its group or others may write it (mode {:04o}): forbid it with chmod go-w", mode(stat)))
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn mode(stat: &FileStat) -> mode_t {
    stat.st_mode & 0o7777
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(kind: SFlag, mode: mode_t, owner: u32, links: u64) -> FileStat {
        let mut stat = nix::sys::stat::stat("/").unwrap();
        (stat.st_mode, stat.st_uid) = (kind.bits() | mode, owner);
        stat.st_nlink = links;
        stat
    }

    #[test]
    fn folders_belong_to_root_or_us_and_only_their_owner_writes_them() {
        let user = Uid::from_raw(1000);
        let fault = |kind, mode, owner| folder_fault(&stat(kind, mode, owner, 2), user);
        assert_eq!(fault(SFlag::S_IFDIR, 0o755, 0), None);
        assert_eq!(fault(SFlag::S_IFDIR, 0o700, 1000), None);
        for (kind, mode, owner, remedy) in [
            (SFlag::S_IFDIR, 0o755, 1001, "chown"),
            (SFlag::S_IFDIR, 0o775, 0, "chmod go-w"),
            (SFlag::S_IFDIR, 0o757, 0, "chmod go-w"),
            (SFlag::S_IFDIR, 0o1777, 0, "chmod go-w"),
            (SFlag::S_IFLNK, 0o777, 0, "without links"),
            (SFlag::S_IFREG, 0o755, 0, "no folder"),
        ] {
            let said = fault(kind, mode, owner).unwrap();
            assert!(said.contains(remedy), "{mode:o} {owner}: {said}");
        }
    }

    #[test]
    fn hooks_are_regular_executable_files_with_one_name_and_no_rights_of_their_own() {
        let user = Uid::from_raw(1000);
        let fault = |kind, mode, owner, links| hook_fault(&stat(kind, mode, owner, links), user);
        assert_eq!(fault(SFlag::S_IFREG, 0o755, 0, 1), None);
        assert_eq!(fault(SFlag::S_IFREG, 0o500, 1000, 1), None);
        for (kind, mode, owner, links, remedy) in [
            (SFlag::S_IFREG, 0o755, 1001, 1, "chown"),
            (SFlag::S_IFREG, 0o775, 0, 1, "chmod go-w"),
            (SFlag::S_IFREG, 0o757, 0, 1, "chmod go-w"),
            (SFlag::S_IFREG, 0o4755, 0, 1, "chmod ug-s"),
            (SFlag::S_IFREG, 0o2755, 0, 1, "chmod ug-s"),
            (SFlag::S_IFREG, 0o755, 0, 2, "a copy"),
            (SFlag::S_IFREG, 0o644, 0, 1, "chmod u+x"),
            (SFlag::S_IFLNK, 0o777, 0, 1, "the program itself"),
            (SFlag::S_IFIFO, 0o755, 0, 1, "no regular file"),
            (SFlag::S_IFDIR, 0o755, 0, 1, "no regular file"),
        ] {
            let said = fault(kind, mode, owner, links).unwrap();
            assert!(said.contains(remedy), "{mode:o} {owner}: {said}");
        }
    }
}
