//! Checks what is said of hooks that cannot be started.

use crate::site::{failure, site};
use blockhaul_engine::error::{Code, Side};
use blockhaul_hooks::HookOutcome;
use std::fs;
use std::time::Duration;

#[test]
fn a_hook_that_cannot_be_executed_says_what_to_do() {
    let site = site!("a_hook_that_cannot_be_executed_says_what_to_do");
    let state = site.state();
    fs::write(site.dir.path("not-executable"), "").unwrap();
    let not_executable = format!("#! {} -x\n", site.dir.path("not-executable").display());
    for (name, content, code, said) in [
        ("a", "#!/no/such/interpreter -x\n", Code::NotFound, "/no/such/interpreter is not there"),
        ("b", "neither script nor program\n", Code::Unsupported, "#!/bin/sh"),
        ("c", not_executable.as_str(), Code::Permission, "not-executable must be an executable file"),
    ] {
        site.dir.executable(format!("hooks/{name}"), content);
        let report = site.start(&state, name).finish();
        let error = failure(&report.outcome);
        assert_eq!((error.code, error.side, error.retryable), (code, Side::Engine, false), "{error}");
        assert!(error.message.contains(said), "{error}");
        assert!(error.message.contains(&format!("execute hook {}", site.dir.path("hooks").display())), "{error}");
    }
    site.assert_no_state();
}

#[test]
fn a_hook_that_is_being_written_can_be_tried_again() {
    let site = site!("a_hook_that_is_being_written_can_be_tried_again");
    let path = site.script("h", "true");
    let state = site.state();
    let writer = fs::OpenOptions::new().append(true).open(path).unwrap();
    let report = site.start(&state, "h").finish();
    let error = failure(&report.outcome);
    assert_eq!((error.code, error.retryable), (Code::Busy, true), "{error}");
    drop(writer);
    // Another test may have forked while the file was open for writing, and hold it until it executes.
    crate::site::until("the hook runs", || site.start(&state, "h").finish().outcome == HookOutcome::Succeeded);
}

#[test]
fn a_hook_that_is_stopped_before_it_starts_does_nothing() {
    let site = site!("a_hook_that_is_stopped_before_it_starts_does_nothing");
    site.script("h", "sleep 1000");
    let state = site.state();
    let started = site.start(&state, "h");
    started.stop(Duration::ZERO);
    assert_eq!(started.finish().outcome, HookOutcome::Stopped);
    site.assert_no_state();
}
