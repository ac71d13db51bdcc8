//! Tests hosts with few resources: no privileges, little locked memory, no io_uring.

use crate::support::{MIB, Need, TestDir, assert_same, mixed, need, program, text, write_sparse};
use std::os::unix::fs::PermissionsExt;

const SIZE: usize = 6 * MIB + 4097;
const UNPRIVILEGED: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Creates a directory of an unprivileged user, with the program in it.
fn public_dir(source: &[u8]) -> TestDir {
    let dir = TestDir::public();
    write_sparse(&dir.path("a"), source);
    std::fs::copy(program(), dir.path("blockhaul")).expect("there is room for the program");
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(dir.root(), open).expect("it is ours");
    dir
}

fn as_unprivileged(dir: &TestDir, limits: &[&str], args: &[&str]) -> crate::support::Outcome {
    let wrapper: Vec<&str> = limits.iter().chain(&UNPRIVILEGED).copied().collect();
    let (first, rest) = wrapper.split_first().expect("it is not empty");
    let mut command = dir.command(first.as_ref(), rest);
    let output = command.arg(dir.path("blockhaul")).args(args).arg("--json").output().expect("it was checked");
    crate::support::outcome(&output)
}

#[test]
fn an_unprivileged_user_can_copy_with_64_kib_of_locked_memory() {
    let test = "an_unprivileged_user_can_copy_with_64_kib_of_locked_memory";
    need!(test, &[Need::Root, Need::Program("setpriv"), Need::Program("prlimit")]);
    let source = mixed(SIZE, 91);
    let dir = public_dir(&source);
    for (number, memlock) in ["--memlock=65536", "--memlock=0"].iter().enumerate() {
        let name = format!("b{number}");
        let copied = as_unprivileged(&dir, &["prlimit", memlock], &["copy", "a", &name, "--verify"]);
        copied.assert_done();
        assert_same(&dir.read(&name), &source, memlock);
    }
}

#[test]
fn an_unprivileged_user_is_refused_volumes_of_other_users() {
    let test = "an_unprivileged_user_is_refused_volumes_of_other_users";
    need!(test, &[Need::Root, Need::Program("setpriv")]);
    let dir = public_dir(b"data");
    dir.file("mine", b"precious");
    std::fs::set_permissions(dir.path("mine"), std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    as_unprivileged(&dir, &[], &["copy", "mine", "b"]).assert_failed(1, "EPermission");
    as_unprivileged(&dir, &[], &["copy", "a", "mine", "--overwrite"]).assert_failed(1, "EPermission");
    let elsewhere = as_unprivileged(&dir, &[], &["copy", "a", "b", "--state-dir", "/proc/1/state"]);
    elsewhere.assert_failed(1, "EPermission");
    assert!(elsewhere.stderr.contains("--state-dir"), "the message names the flag: {elsewhere:#?}");
    assert_eq!(dir.read("mine"), b"precious");
    assert!(!dir.path("b").exists());
}

#[test]
fn a_copy_works_when_io_uring_is_denied() {
    need!("a_copy_works_when_io_uring_is_denied", &[Need::Program("strace")]);
    let source = mixed(SIZE, 92);
    for errno in ["EPERM", "ENOSYS", "EACCES"] {
        let dir = TestDir::new();
        write_sparse(&dir.path("a"), &source);
        let deny = format!("io_uring_setup:error={errno}");
        let (copied, was_made) = dir.injected(&deny, &["copy", "a", "b", "--verify"]);
        assert!(was_made, "the program sets up a ring");
        copied.assert_done();
        assert!(copied.report()["path"].as_str().is_some_and(|path| path.contains("threads")), "{copied:#?}");
        assert_same(&dir.read("b"), &source, errno);
        let (refused, _) = dir.injected(&deny, &["copy", "a", "c", "--path", "ring"]);
        refused.assert_failed(1, "EUnsupported");
        assert!(!dir.path("c").exists(), "a refusal creates nothing");
        let (inline, _) = dir.injected(&deny, &["copy", "a", "c", "--path", "inline"]);
        inline.assert_done();
        assert_same(&dir.read("c"), &source, errno);
    }
}

#[test]
fn a_copy_begun_with_io_uring_resumes_without_it() {
    need!("a_copy_begun_with_io_uring_resumes_without_it", &[Need::Program("strace")]);
    let dir = TestDir::new();
    let source = mixed(SIZE, 93);
    write_sparse(&dir.path("a"), &source);
    let args = ["copy", "a", "b", "--block-size", "64KiB", "--checkpoint-every", "512KiB", "--reflink", "never"];
    let mut copying = dir.start(&[&args[..], &["--limit", "8MiB/s"]].concat());
    copying.until(crate::support::recorded);
    copying.crash();
    let again: Vec<&str> = args.iter().copied().chain(["--resume"]).collect();
    let (resumed, _) = dir.injected("io_uring_setup:error=EPERM", &again);
    resumed.assert_done();
    assert!(resumed.bytes("resumed") > 0, "the threads resume the copy of the ring: {resumed:#?}");
    assert_same(&dir.read("b"), &source, text(&dir.path("b")));
}
