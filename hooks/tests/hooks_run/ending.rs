//! Checks that a hook ends when it has to, with all that it has started.

use crate::site::{NEVER, failure, is_running, is_there, site, until};
use blockhaul_engine::error::Code;
use blockhaul_hooks::{HookEvent, HookOutcome, HookRequest};
use blockhaul_testkit::test_dir::TestDir;
use blockhaul_testkit::{Need, need};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[test]
fn a_stop_asks_first() {
    let site = site!("a_stop_asks_first");
    let script =
        format!("trap 'echo stopped; exit 0' TERM; echo $$ > {}; while :; do sleep 0.05; done", site.quoted("pid"));
    site.script("h", &script);
    let state = site.state();
    let started = site.start(&state, "h");
    let pid = site.pid("pid");
    started.stop(NEVER);
    let report = started.finish();
    assert_eq!(report.outcome, HookOutcome::Stopped);
    // The shell tells before that its own child was ended as well.
    assert!(report.output.first().ends_with(b"stopped\n"), "{report:?}");
    assert!(!is_there(pid));
    site.assert_no_state();
}

#[test]
fn who_ignores_sigterm_is_killed() {
    let site = site!("who_ignores_sigterm_is_killed");
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $! > {}; echo $$ > {}; wait",
        site.quoted("child"),
        site.quoted("pid")
    );
    site.script("h", &script);
    let state = site.state();
    let started = site.start(&state, "h");
    let pids = [site.pid("pid"), site.pid("child")];
    started.stop(NEVER);
    // A second stop shortens the first one.
    started.stop(Duration::from_millis(50));
    assert_eq!(started.finish().outcome, HookOutcome::Stopped);
    assert!(!pids.into_iter().any(is_there));
}

#[test]
fn a_flood_of_output_does_not_hold_up_a_stop() {
    let site = site!("a_flood_of_output_does_not_hold_up_a_stop");
    site.script("h", &format!("trap '' TERM; echo $$ > {}; while :; do yes; done", site.quoted("pid")));
    let state = site.state();
    let started = site.start(&state, "h");
    let pid = site.pid("pid");
    started.stop(Duration::from_millis(50));
    let report = started.finish();
    assert_eq!(report.outcome, HookOutcome::Stopped);
    assert!(!is_there(pid));
}

#[test]
fn a_timeout_ends_the_hook_and_says_so() {
    let site = site!("a_timeout_ends_the_hook_and_says_so");
    site.script("h", "echo waiting; trap '' TERM; while :; do sleep 0.05; done");
    let times =
        HookRequest { timeout: Duration::from_millis(300), timeout_grace: Duration::from_millis(50), ..site.request() };
    let report = site.start_with(&site.state(), "h", times).finish();
    assert!(matches!(report.outcome, HookOutcome::TimedOut(_)), "{report:?}");
    let error = failure(&report.outcome);
    assert_eq!(error.code, Code::Timeout);
    assert!(error.message.contains("300ms") && error.message.ends_with("it wrote last: waiting"), "{error}");
    site.assert_no_state();
}

#[test]
fn a_daemon_that_keeps_the_output_open_delays_nothing_and_is_killed() {
    let site = site!("a_daemon_that_keeps_the_output_open_delays_nothing_and_is_killed");
    // Forked twice, in a session of its own, deaf to SIGTERM.
    let script = format!(
        "(setsid sh -c 'trap \"\" TERM; echo $$ > {pid}; while :; do sleep 0.05; done' &) ; \
         while [ ! -s {pid} ]; do sleep 0.01; done; echo done",
        pid = site.quoted("pid").replace('\'', "")
    );
    let report = site.run("h", &script);
    assert_eq!(report.outcome, HookOutcome::Succeeded);
    assert_eq!(report.output.first(), b"done\n");
    assert!(!is_there(site.pid("pid")), "it is killed and reaped");
    site.assert_no_state();
}

#[test]
fn a_daemon_dies_at_a_stop_as_well() {
    let site = site!("a_daemon_dies_at_a_stop_as_well");
    let script = format!(
        "(setsid sh -c 'trap \"\" TERM; echo $$ > {pid}; while :; do sleep 0.05; done' &) ; wait; sleep 1000",
        pid = site.quoted("pid").replace('\'', "")
    );
    site.script("h", &script);
    let state = site.state();
    let started = site.start(&state, "h");
    let daemon = site.pid("pid");
    started.stop(Duration::from_millis(50));
    assert_eq!(started.finish().outcome, HookOutcome::Stopped);
    assert!(!is_there(daemon));
}

#[test]
fn short_daemons_leave_no_zombies() {
    let site = site!("short_daemons_leave_no_zombies");
    let script = format!(
        "for i in 1 2 3 4 5; do (setsid sh -c 'echo $$ >> {pids}' &); done; \
         while [ \"$(wc -l < {pids})\" -lt 5 ]; do sleep 0.01; done",
        pids = site.quoted("pids").replace('\'', "")
    );
    fs::write(site.dir.path("pids"), "").unwrap();
    assert_eq!(site.run("h", &script).outcome, HookOutcome::Succeeded);
    let pids: Vec<i32> =
        fs::read_to_string(site.dir.path("pids")).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(pids.len(), 5);
    // While another hook is being started, orphans wait for the next look.
    until("all are reaped", || {
        site.run("reaping", "true");
        !pids.iter().any(|pid| is_there(*pid))
    });
}

#[test]
fn hundreds_of_forking_processes_are_gone_after_a_stop() {
    let site = site!("hundreds_of_forking_processes_are_gone_after_a_stop");
    // Each forks all the time, half of them in sessions of their own.
    let body = "trap \"\" TERM; while :; do sleep 0.3; done";
    let script = format!(
        "i=0; while [ $i -lt 150 ]; do sh -c '{body}' & setsid sh -c '{body}' & i=$((i+1)); done; echo $$ > {}; wait",
        site.quoted("ready")
    );
    site.script("h", &script);
    let state = site.state();
    let started = site.start(&state, "h");
    let pid = site.pid("ready");
    started.stop(Duration::from_millis(100));
    assert_eq!(started.finish().outcome, HookOutcome::Stopped);
    assert!(!is_there(pid));
    assert_eq!(marked(&site), [] as [i32; 0]);
}

/// Returns the processes in whose environment the task of the site stands.
fn marked(site: &crate::site::Site) -> Vec<i32> {
    let mark = format!("BLOCKHAUL_TASK={}\0", site.request().task);
    let is_marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&mark)
    };
    let names = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    names.filter(is_marked).collect()
}

#[test]
fn two_hooks_leave_each_other_alone() {
    let site = site!("two_hooks_leave_each_other_alone");
    let script = |name: &str| {
        format!(
            "(setsid sh -c 'echo $$ > {daemon}; sleep 1000' &) ; while [ ! -s {daemon} ]; do sleep 0.01; done; \
             while [ ! -e {end} ]; do sleep 0.01; done",
            daemon = site.quoted(&format!("{name}.daemon")).replace('\'', ""),
            end = site.quoted(&format!("{name}.end")),
        )
    };
    site.script("one", &script("one"));
    site.script("two", &script("two"));
    let state = site.state();
    let one = site.start(&state, "one");
    let two = site.start_with(&state, "two", HookRequest { attempt: 2, ..site.request() });
    let (daemon_of_one, daemon_of_two) = (site.pid("one.daemon"), site.pid("two.daemon"));
    fs::write(site.dir.path("one.end"), "").unwrap();
    assert_eq!(one.finish().outcome, HookOutcome::Succeeded);
    assert!(!is_there(daemon_of_one));
    assert!(is_running(daemon_of_two), "the other hook still runs");
    fs::write(site.dir.path("two.end"), "").unwrap();
    assert_eq!(two.finish().outcome, HookOutcome::Succeeded);
    assert!(!is_there(daemon_of_two));
}

#[test]
fn children_of_other_code_are_not_reaped() {
    let site = site!("children_of_other_code_are_not_reaped");
    let mut other = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
    let pid = other.id().cast_signed();
    until("it has ended", || !is_running(pid));
    assert_eq!(site.run("h", "(setsid true &)").outcome, HookOutcome::Succeeded);
    assert_eq!(other.wait().unwrap().code(), Some(7));
}

#[test]
fn a_dropped_handle_ends_the_hook() {
    let site = site!("a_dropped_handle_ends_the_hook");
    site.script("h", &format!("echo $$ > {}; exec sleep 1000", site.quoted("pid")));
    let state = site.state();
    let mut started = site.start(&state, "h");
    let pid = site.pid("pid");
    drop(started.handle.take());
    assert_eq!(started.finish().outcome, HookOutcome::Stopped);
    assert!(!is_there(pid));
}

#[test]
fn leftovers_are_not_looked_for_while_hooks_run() {
    let site = site!("leftovers_are_not_looked_for_while_hooks_run");
    site.script("h", &format!("echo $$ > {}; exec sleep 1000", site.quoted("pid")));
    let state = site.state();
    let started = site.start(&state, "h");
    site.pid("pid");
    assert_eq!(state.kill_leftovers(NEVER).unwrap_err().code, Code::Internal);
    started.stop(Duration::ZERO);
    started.finish();
    assert_eq!(state.kill_leftovers(NEVER).unwrap(), []);
}

#[test]
fn who_waits_for_a_device_is_told_and_waited_for() {
    let needs = [Need::Root, Need::LoopDevices, Need::Filesystem("ext4"), Need::Program("fsfreeze")];
    need!("who_waits_for_a_device_is_told_and_waited_for", &needs);
    let site = site!("who_waits_for_a_device_is_told_and_waited_for");
    let dir = TestDir::new();
    let point = dir.filesystem("frozen", "ext4", 16 << 20);
    let file = point.join("file");
    // A write to a frozen file system waits without looking at any signal.
    let script = format!("echo $$ > {}; exec echo late > '{}'", site.quoted("pid"), file.display());
    site.script("h", &script);
    let state = site.state();
    let frozen = Frozen::new(&point);
    let started = site.start(&state, "h");
    let pid = site.pid("pid");
    started.stop(Duration::ZERO);
    let HookEvent::Ended(report) = started.next() else { panic!("the end is told first") };
    assert_eq!((report.outcome, report.survivors.as_slice()), (HookOutcome::Stopped, &[pid][..]));
    assert!(is_running(pid));
    assert!(site.dir.path("state/run-1.record").is_file(), "a later process can still find it");
    assert!(started.events.try_recv().is_err(), "its slot is kept");
    drop(frozen);
    assert_eq!(started.next(), HookEvent::Gone);
    assert!(!is_there(pid));
    site.assert_no_state();
}

/// A file system that is frozen until this is dropped.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(point: &'a Path) -> Self {
        let status = Command::new("fsfreeze").arg("--freeze").arg(point).status().unwrap();
        assert!(status.success());
        Self(point)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status();
    }
}

#[test]
fn what_is_mounted_in_a_working_folder_is_left_alone() {
    need!("what_is_mounted_in_a_working_folder_is_left_alone", &[Need::Root, Need::Program("unshare")]);
    let site = site!("what_is_mounted_in_a_working_folder_is_left_alone");
    let (kept, folder) = (site.dir.path("kept"), site.dir.path("state/run-1"));
    fs::create_dir_all(kept.join("sub")).unwrap();
    let script = format!("mkdir -p a/mounted b; mount --bind {0} a/mounted; mount --bind {0} .", site.quoted("kept"));
    let report = site.run("h", &script);
    let mounted = [folder.clone(), folder.join("a/mounted")];
    assert_eq!(report.outcome, HookOutcome::Succeeded, "{}", report.output.shown_tail());
    for mount in &mounted {
        assert!(kept.join("sub").is_dir(), "what is mounted is not emptied");
        nix::mount::umount(mount).unwrap();
        let state = site.state();
        assert_eq!(state.kill_leftovers(NEVER).unwrap(), []);
    }
    site.assert_no_state();
    assert!(kept.join("sub").is_dir());
}
