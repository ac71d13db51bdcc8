//! Tests hosts with few resources: no privileges, little locked memory, no io_uring.

use crate::support::{MIB, Need, Room, assert_same, mixed, need, program, text, write_sparse};
use std::os::unix::fs::PermissionsExt;

const SIZE: usize = 6 * MIB + 4097;
const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// A room of nobody's, with the program in it.
fn public_room(source: &[u8]) -> Room {
    let room = Room::public();
    write_sparse(&room.path("a"), source);
    std::fs::copy(program(), room.path("blockhaul")).expect("there is room for the program");
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(room.dir(), open).expect("it is ours");
    room
}

fn as_nobody(room: &Room, limits: &[&str], words: &[&str]) -> crate::support::Outcome {
    let wrapper: Vec<&str> = limits.iter().chain(&NOBODY).copied().collect();
    let (first, rest) = wrapper.split_first().expect("it is not empty");
    let mut command = room.command(first.as_ref(), rest);
    let output = command.arg(room.path("blockhaul")).args(words).arg("--json").output().expect("it was checked");
    crate::support::outcome(&output)
}

#[test]
fn an_unprivileged_user_can_copy_with_64_kib_of_locked_memory() {
    let test = "an_unprivileged_user_can_copy_with_64_kib_of_locked_memory";
    need!(test, &[Need::Root, Need::Program("setpriv"), Need::Program("prlimit")]);
    let source = mixed(SIZE, 91);
    let room = public_room(&source);
    for (number, memlock) in ["--memlock=65536", "--memlock=0"].iter().enumerate() {
        let name = format!("b{number}");
        let copied = as_nobody(&room, &["prlimit", memlock], &["copy", "a", &name, "--verify"]);
        copied.assert_done();
        assert_same(&room.read(&name), &source, memlock);
    }
}

#[test]
fn an_unprivileged_user_is_refused_volumes_of_other_users() {
    let test = "an_unprivileged_user_is_refused_volumes_of_other_users";
    need!(test, &[Need::Root, Need::Program("setpriv")]);
    let room = public_room(b"data");
    room.file("mine", b"precious");
    std::fs::set_permissions(room.path("mine"), std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    as_nobody(&room, &[], &["copy", "mine", "b"]).assert_failed(1, "EPermission");
    as_nobody(&room, &[], &["copy", "a", "mine", "--overwrite"]).assert_failed(1, "EPermission");
    let elsewhere = as_nobody(&room, &[], &["copy", "a", "b", "--state-dir", "/proc/1/state"]);
    elsewhere.assert_failed(1, "EPermission");
    assert!(elsewhere.stderr.contains("--state-dir"), "the flag that helps is named: {elsewhere:#?}");
    assert_eq!(room.read("mine"), b"precious");
    assert!(!room.path("b").exists());
}

#[test]
fn a_copy_works_when_io_uring_is_denied() {
    need!("a_copy_works_when_io_uring_is_denied", &[Need::Program("strace")]);
    let source = mixed(SIZE, 92);
    for errno in ["EPERM", "ENOSYS", "EACCES"] {
        let room = Room::new();
        write_sparse(&room.path("a"), &source);
        let deny = format!("io_uring_setup:error={errno}");
        let (copied, was_made) = room.injected(&deny, &["copy", "a", "b", "--verify"]);
        assert!(was_made, "the program asks for a ring");
        copied.assert_done();
        assert!(copied.report()["path"].as_str().is_some_and(|path| path.contains("threads")), "{copied:#?}");
        assert_same(&room.read("b"), &source, errno);
        let (refused, _) = room.injected(&deny, &["copy", "a", "c", "--path", "ring"]);
        refused.assert_failed(1, "EUnsupported");
        assert!(!room.path("c").exists(), "a refusal creates nothing");
        let (inline, _) = room.injected(&deny, &["copy", "a", "c", "--path", "inline"]);
        inline.assert_done();
        assert_same(&room.read("c"), &source, errno);
    }
}

#[test]
fn a_copy_begun_with_io_uring_resumes_without_it() {
    need!("a_copy_begun_with_io_uring_resumes_without_it", &[Need::Program("strace")]);
    let room = Room::new();
    let source = mixed(SIZE, 93);
    write_sparse(&room.path("a"), &source);
    let words = ["copy", "a", "b", "--block-size", "64KiB", "--checkpoint-every", "512KiB", "--reflink", "never"];
    let mut copying = room.start(&[&words[..], &["--limit", "8MiB/s"]].concat());
    copying.until(crate::support::recorded);
    copying.crash();
    let again: Vec<&str> = words.iter().copied().chain(["--resume"]).collect();
    let (resumed, _) = room.injected("io_uring_setup:error=EPERM", &again);
    resumed.assert_done();
    assert!(resumed.bytes("resumed") > 0, "what a ring wrote, threads go on with: {resumed:#?}");
    assert_same(&room.read("b"), &source, text(&room.path("b")));
}
