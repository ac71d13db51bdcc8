//! Kills the program that runs hooks, and checks that nothing of them is left when it starts again.
//!
//! The program is this test once more, told by an environment variable where to work.

use crate::site::{NEVER, PATIENCE, Site, is_running, site, until};
use blockhaul_engine::error::Code;
use blockhaul_hooks::{HookOutcome, HookStateFolder};
use std::fs;
use std::io::BufRead;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Names the site to a process that shall run the hook `h` there.
const SITE: &str = "BLOCKHAUL_HOOKS_TEST_SITE";

/// Runs `test` of this program in another process, which runs the hook `h` of the site.
fn supervisor(site: &Site, test: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(SITE, site.dir.path(""));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// A process in a session of its own that is no hook.
struct Bystander {
    pid: i32,
    /// Its parent, which is in our session: our children in other sessions are taken for orphans of hooks.
    parent: Child,
}

impl Bystander {
    fn new() -> Self {
        let script = "setsid sleep 1000 & echo $!; wait; cat";
        let mut command = Command::new("sh");
        let mut parent = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        until("it has a session of its own", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3) == Some(line.trim())
        });
        Self { pid, parent }
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // The shell waits for it, and ends when its input does.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
        drop(self.parent.stdin.take());
        let _ = self.parent.wait();
    }
}

/// In the other process: runs the hook, and never returns. The end of the hook goes into a file.
fn supervise() {
    let Some(path) = std::env::var_os(SITE) else { return };
    let path = Path::new(&path);
    let state = HookStateFolder::open(path.join("state")).unwrap();
    let folder = blockhaul_hooks::HookFolder::open(path.join("hooks")).unwrap();
    let hook = folder.hook(&blockhaul_hooks::HookName::parse("h").unwrap()).unwrap();
    let order = blockhaul_hooks::HookOrder::try_from(crate::site::request(path)).unwrap();
    let (send, events) = std::sync::mpsc::channel();
    let subreaper = blockhaul_hooks::become_subreaper().unwrap();
    let on_event = move |event| drop(send.send(event));
    let handle = blockhaul_hooks::HookHandle::start(subreaper, hook, order, &state, on_event).unwrap();
    let report = events.recv().unwrap();
    fs::write(path.join("report"), format!("{report:?}\n")).unwrap();
    events.recv().unwrap();
    drop(handle);
    std::process::exit(0);
}

#[test]
fn a_hook_dies_with_its_program_and_what_it_started_is_killed_later() {
    supervise();
    let site = site!("a_hook_dies_with_its_program_and_what_it_started_is_killed_later");
    // In the session, in a session of its own, and deaf; an orphan of each kind.
    let script = format!(
        "sh -c 'trap \"\" TERM; echo $$ > {child}; while :; do sleep 0.05; done' & \
         (setsid sh -c 'trap \"\" TERM; echo $$ > {daemon}; while :; do sleep 0.05; done' &) ; \
         touch file; echo $$ > {first}; wait",
        child = site.dir.path("child").display(),
        daemon = site.dir.path("daemon").display(),
        first = site.quoted("first"),
    );
    site.script("h", &script);
    let mut program = supervisor(&site, "crash::a_hook_dies_with_its_program_and_what_it_started_is_killed_later");
    let (first, child, daemon) = (site.pid("first"), site.pid("child"), site.pid("daemon"));
    assert_eq!(HookStateFolder::open(site.dir.path("state")).unwrap_err().code, Code::Busy, "it is in use");

    program.kill().unwrap();
    program.wait().unwrap();
    until("the first process dies", || !is_running(first));
    assert!(is_running(child) && is_running(daemon));

    let state = site.state();
    let bystander = Bystander::new();
    let leftovers = state.kill_leftovers(PATIENCE).unwrap();
    assert_eq!(leftovers.len(), 1, "{leftovers:?}");
    assert_eq!((leftovers[0].hook.as_str(), &leftovers[0].task, leftovers[0].attempt), ("h", &site.request().task, 1));
    assert_eq!(leftovers[0].survivors, [] as [i32; 0]);
    assert!(!is_running(child) && !is_running(daemon));
    assert!(is_running(bystander.pid));
    site.assert_no_state();
    assert_eq!(state.kill_leftovers(PATIENCE).unwrap(), []);
}

#[test]
fn records_of_other_boots_and_versions_kill_nobody() {
    let site = site!("records_of_other_boots_and_versions_kill_nobody");
    let state = site.state();
    let bystander = Bystander::new();
    let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.pid)).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = |boot: &str, stat: &str| {
        format!("blockhaul-hook 1\nboot {boot}\nhook h\ntask t\nnode n1\nattempt 1\nepoch 7\nstat {stat}")
    };
    let path = site.dir.path("state/run-1.record");
    let other_boot = record("00000000-0000-0000-0000-000000000000", &stat);
    let number_used_again = {
        let (head, start) = (stat.split_whitespace(), 21);
        let words: Vec<&str> = head.enumerate().map(|(at, word)| if at == start { "1" } else { word }).collect();
        record(boot.trim(), &format!("{}\n", words.join(" ")))
    };
    for content in [other_boot.as_str(), number_used_again.as_str(), "", "blockhaul-hook 1\nboot "] {
        fs::write(&path, content).unwrap();
        fs::create_dir_all(site.dir.path("state/run-1/sub")).unwrap();
        assert_eq!(state.kill_leftovers(PATIENCE).unwrap(), [], "{content}");
        assert!(is_running(bystander.pid), "{content}");
        site.assert_no_state();
    }
    fs::write(&path, "blockhaul-hook 2\nsomething\n").unwrap();
    let error = state.kill_leftovers(PATIENCE).unwrap_err();
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.message.contains("run-1.record"), "{error}");
    // The same record, of this boot and this process, does kill.
    fs::write(&path, record(boot.trim(), &stat)).unwrap();
    let leftovers = state.kill_leftovers(PATIENCE).unwrap();
    assert_eq!(leftovers.len(), 1);
    assert!(!is_running(bystander.pid));
}

#[test]
fn a_stop_after_the_end_is_harmless() {
    let site = site!("a_stop_after_the_end_is_harmless");
    site.script("h", "true");
    let state = site.state();
    let started = site.start(&state, "h");
    assert_eq!(started.finish().outcome, HookOutcome::Succeeded);
    started.stop(NEVER);
    site.assert_no_state();
}
