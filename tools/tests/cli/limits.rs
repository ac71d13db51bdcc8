//! Tests process limits: an error names the limit that stopped the copy.

use blockhaul_testkit::scratch::{MIB, Outcome, Scratch, noise, outcome};
use blockhaul_testkit::{Need, need};
use std::os::unix::fs::PermissionsExt;

/// Runs the program under a limit set by `ulimit`.
fn limited(scratch: &Scratch, ulimit: &str, args: &str) -> Outcome {
    let program = assert_cmd::cargo::cargo_bin!("blockhaul").display().to_string();
    let script = format!("ulimit {ulimit} && exec '{program}' {args} --json");
    outcome(&scratch.shell(&script).output().expect("every host has a shell"))
}

#[test]
fn a_write_past_the_file_size_limit_fails_and_names_it() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(4 * MIB, 5));
    for path in ["auto", "ring", "inline", "threads"] {
        // A long destination is not resized, so its writes exceed the limit.
        for (name, before) in [("short", 0), ("long", 4 * MIB)] {
            scratch.file(name, &vec![1; before]);
            let args = format!("copy a {name} --overwrite --no-checkpoint --reflink never --cores 1 --path {path}");
            // The unit of the limit is 512 bytes.
            let failed = limited(&scratch, "-f 2048", &args);
            failed.assert_failed(1, "EOverloaded");
            assert!(failed.stderr.contains("(ulimit -f) is 1048576 bytes"), "{failed:?}");
        }
    }
}

#[test]
fn with_few_descriptors_a_copy_succeeds_or_names_the_limit() {
    let scratch = Scratch::new();
    let data = noise(MIB, 5);
    scratch.file("a", &data);
    for (refused, descriptors) in (6..64).enumerate() {
        let ran = limited(&scratch, &format!("-n {descriptors}"), "copy a b --overwrite --restart --cores 1");
        assert!(!ran.stderr.contains("panicked"), "{descriptors}: {ran:#?}");
        if ran.code == Some(0) {
            assert!(refused > 0 && scratch.read("b") == data);
            return;
        }
        ran.assert_failed(1, "EOverloaded");
        assert!(ran.stderr.contains(&format!("may have {descriptors} descriptors open")), "{ran:#?}");
    }
    panic!("64 descriptors are enough");
}

#[test]
fn with_few_threads_a_copy_succeeds_or_names_the_limit() {
    let test = "with_few_threads_a_copy_succeeds_or_names_the_limit";
    need!(test, &[Need::Root, Need::Program("setpriv"), Need::Program("prlimit")]);
    let scratch = Scratch::public();
    let data = noise(MIB, 5);
    scratch.file("a", &data);
    std::fs::copy(assert_cmd::cargo::cargo_bin!("blockhaul"), scratch.path("blockhaul")).expect("there is room for it");
    std::fs::set_permissions(scratch.path(""), std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    // No other process runs as that user.
    let become_another = "exec setpriv --reuid 61234 --regid 61234 --clear-groups";
    for (refused, threads) in (1..64).enumerate() {
        let script = format!(
            "{become_another} prlimit --nproc={threads} ./blockhaul copy a b --overwrite --restart --cores 1 --json"
        );
        let ran = outcome(&scratch.shell(&script).output().expect("every host has a shell"));
        assert!(!ran.stderr.contains("panicked"), "{threads}: {ran:#?}");
        if ran.code == Some(0) {
            assert!(refused > 0 && scratch.read("b") == data);
            return;
        }
        ran.assert_failed(1, "EOverloaded");
        assert!(ran.stderr.contains(&format!("may have {threads} threads (ulimit -u)")), "{ran:#?}");
    }
    panic!("64 threads are enough");
}
