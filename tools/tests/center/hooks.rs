//! Tests hooks: programs of a node's administrator that run as tasks, while their `taskd` stops and dies.

use crate::support::{
    ExportPair, MIB, NEEDS, Need, Node, SHORT_SESSION, SafeDir, Task, TestCluster, TestDirs, need, run, text,
};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest wait for something that a hook does.
const PATIENCE: Duration = Duration::from_secs(60);

/// A hooks folder with one hook, and a file that the hook writes.
struct Hook {
    dir: SafeDir,
}

impl Hook {
    /// Writes the hook `h`: `$out` is the path of its file.
    fn new(script: &str) -> Result<Self, String> {
        let dir = SafeDir::new().ok_or("a folder that nobody else can change")?;
        let out = dir.path("out");
        dir.executable("hooks/h", &format!("#!/bin/sh\nout={}\n{script}\n", text(&out)));
        Ok(Self { dir })
    }

    fn folder(&self) -> PathBuf {
        self.dir.path("hooks")
    }

    /// Returns a cluster of nodes that all have the hook.
    fn cluster(&self, nodes: usize) -> TestCluster {
        TestCluster::with(nodes, 1, &["--hooks-dir", text(&self.folder())])
    }

    fn out(&self) -> String {
        fs::read_to_string(self.dir.path("out")).unwrap_or_default()
    }

    /// Waits until the file holds `wanted`.
    fn wait_for(&self, wanted: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.out().contains(wanted) {
            assert!(Instant::now() < until, "'{wanted}' is not in what the hook has written: {}", self.out());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn submit(cluster: &TestCluster, id: &str, args: &[&str]) {
    cluster.ask(&[&["submit", "run", "h", "--id", id], args].concat());
}

fn wait_for_end(cluster: &TestCluster, id: &str) -> Task {
    cluster.wait_for(id, "its end", Task::is_over)
}

fn message(task: &Task) -> &str {
    task.0["error"]["message"].as_str().unwrap_or_default()
}

#[test]
fn a_hook_gets_what_its_task_says_and_its_exit_code_decides() {
    let script = r#"echo "$BLOCKHAUL_TASK $BLOCKHAUL_NODE $BLOCKHAUL_ATTEMPT $BLOCKHAUL_ARG_VM $(cat)"
                    [ "$BLOCKHAUL_ARG_EXIT" = 75 ] && [ "$BLOCKHAUL_ATTEMPT" = 2 ] && exit 0
                    exit "$BLOCKHAUL_ARG_EXIT""#;
    let name = "a_hook_gets_what_its_task_says_and_its_exit_code_decides";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new(script));
    let cluster = hook.cluster(1);
    fs::write(hook.dir.path("input"), "frozen").unwrap();
    let input = hook.dir.path("input");
    submit(&cluster, "zero", &["--arg", "EXIT=0", "--arg", "VM=v 42", "--input", text(&input)]);
    let task = cluster.wait_for_success("zero");
    assert_eq!((task.0["kind"].as_str(), task.0["hook"].as_str()), (Some("run"), Some("h")), "{task:?}");
    assert_eq!(task.0["report"]["output_tail"], "zero n0 1 v 42 frozen", "{task:?}");
    submit(&cluster, "three", &["--arg", "EXIT=3", "--node", "n0"]);
    let task = wait_for_end(&cluster, "three");
    assert_eq!((task.state(), task.error(), task.outcomes().len()), ("FAILED", "EHook", 1), "{task:?}");
    assert!(message(&task).contains("exit code 3"), "{task:?}");
    assert_eq!(task.0["report"]["output_tail"], "three n0 1", "{task:?}");
    submit(&cluster, "again", &["--arg", "EXIT=75"]);
    assert_eq!(cluster.wait_for_success("again").outcomes(), ["EHook", "succeeded"]);
    submit(&cluster, "once", &["--arg", "EXIT=75", "--at-most-once"]);
    let task = wait_for_end(&cluster, "once");
    assert_eq!((task.state(), task.error(), task.outcomes().len()), ("FAILED", "EHook", 1), "{task:?}");
    assert!(message(&task).contains("at most once"), "{task:?}");
    let log = cluster.nodes[0].log();
    assert!(log.contains("hook ended") && log.contains("again n0 2"), "its output is in the log:\n{log}");
    let refused = cluster.blockhaul(&["submit", "run", "../h", "--id", "x"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("EBadRequest"), "{refused:?}");
}

#[test]
fn a_hook_is_ended_when_it_is_cancelled_or_takes_too_long() {
    let script = r#"trap 'echo "$BLOCKHAUL_TASK stopped" >> "$out"; exit 0' TERM
                    echo "$BLOCKHAUL_TASK began" >> "$out"
                    while :; do sleep 0.05; done"#;
    let name = "a_hook_is_ended_when_it_is_cancelled_or_takes_too_long";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new(script));
    let mut cluster = hook.cluster(1);
    submit(&cluster, "cancelled", &[]);
    hook.wait_for("cancelled began");
    cluster.ask(&["cancel", "cancelled"]);
    assert_eq!(wait_for_end(&cluster, "cancelled").state(), "CANCELLED");
    assert!(hook.out().contains("cancelled stopped"), "{}", hook.out());
    submit(&cluster, "slow", &["--timeout", "300ms"]);
    let task = wait_for_end(&cluster, "slow");
    assert_eq!((task.state(), task.error(), task.outcomes().len()), ("FAILED", "ETimeout", 1), "{task:?}");
    hook.wait_for("slow stopped");
    // A stop of the node interrupts one hook, which runs again, and ends the other for good.
    submit(&cluster, "often", &[]);
    submit(&cluster, "once", &["--at-most-once"]);
    hook.wait_for("often began");
    hook.wait_for("once began");
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    assert!(hook.out().contains("often stopped") && hook.out().contains("once stopped"), "{}", hook.out());
    cluster.start();
    cluster.wait_for_second_attempt("often");
    let task = wait_for_end(&cluster, "once");
    assert_eq!((task.state(), task.error()), ("FAILED", "ERunnerInterrupt"), "{task:?}");
    cluster.ask(&["cancel", "often"]);
    assert_eq!(wait_for_end(&cluster, "often").outcomes(), ["ERunnerInterrupt", "ECancelled"]);
}

#[test]
fn what_a_killed_taskd_leaves_of_a_hook_is_killed_before_the_next_attempt() {
    // The first run leaves a process in a session of its own behind; the second one looks whether that still runs.
    let script = r#"echo "$BLOCKHAUL_TASK run $BLOCKHAUL_ATTEMPT" >> "$out"
                    if [ "$BLOCKHAUL_ATTEMPT" = 1 ]; then
                        setsid sleep 1000 & echo $! > "$out.$BLOCKHAUL_TASK"
                        echo "$BLOCKHAUL_TASK waits" >> "$out"; wait
                    fi
                    status="/proc/$(cat "$out.$BLOCKHAUL_TASK")/status"
                    [ -e "$status" ] && ! grep -q '^State:.*Z' "$status" && echo "overlap" >> "$out"
                    exit 0"#;
    let name = "what_a_killed_taskd_leaves_of_a_hook_is_killed_before_the_next_attempt";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new(script));
    let mut cluster = hook.cluster(1);
    submit(&cluster, "often", &["--node", "n0"]);
    submit(&cluster, "once", &["--node", "n0", "--at-most-once"]);
    hook.wait_for("often waits");
    hook.wait_for("once waits");
    cluster.nodes[0].kill();
    let left = |id: &str| {
        let pid = fs::read_to_string(hook.dir.path(format!("out.{id}"))).unwrap();
        // A zombie waits for its new parent only.
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    };
    assert!(left("often") && left("once"), "what the hooks have started lives on");
    cluster.start();
    let task = cluster.wait_for_success("often");
    assert_eq!(task.outcomes(), ["ELeaseLost", "succeeded"], "{task:?}");
    let task = wait_for_end(&cluster, "once");
    assert_eq!((task.state(), task.error(), task.outcomes().len()), ("FAILED", "ELeaseLost", 1), "{task:?}");
    assert!(message(&task).contains("at most once"), "{task:?}");
    let out = hook.out();
    assert!(!out.contains("overlap") && out.contains("often run 2") && !out.contains("once run 2"), "{out}");
    assert!(!left("often") && !left("once"), "{out}");
    assert!(cluster.nodes[0].log().contains("killed what a hook had left behind"));
}

#[test]
fn a_taskd_without_hooks_kills_what_an_earlier_one_with_hooks_has_left() {
    let script = r#"setsid sleep 1000 & echo $! > "$out.left"; echo waits >> "$out"; wait"#;
    let name = "a_taskd_without_hooks_kills_what_an_earlier_one_with_hooks_has_left";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new(script));
    let mut cluster = hook.cluster(1);
    submit(&cluster, "left", &["--node", "n0", "--at-most-once"]);
    hook.wait_for("waits");
    cluster.nodes[0].kill();
    let pid = fs::read_to_string(hook.dir.path("out.left")).unwrap();
    let is_left = || {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    };
    assert!(is_left(), "what the hook has started lives on");
    cluster.nodes[0].set_flags(&[]);
    cluster.start();
    assert!(!is_left());
    assert!(cluster.nodes[0].log().contains("killed what a hook had left behind"));
}

/// A mounted file system on which every write waits, whatever is sent to the writer.
struct FrozenVolume(PathBuf);

impl FrozenVolume {
    fn of(volume: PathBuf) -> Self {
        run("fsfreeze", &["--freeze", text(&volume)]);
        Self(volume)
    }
}

impl Drop for FrozenVolume {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", text(&self.0)]);
    }
}

#[test]
fn a_hook_that_survives_sigkill_keeps_its_slot_until_it_is_gone() {
    let name = "a_hook_that_survives_sigkill_keeps_its_slot_until_it_is_gone";
    let frozen = [Need::Root, Need::LoopDevices, Need::Filesystem("ext4"), Need::Program("fsfreeze")];
    need!(name, &[&NEEDS[..], &frozen[..]].concat());
    let dirs = TestDirs::new();
    let volume = dirs.filesystem("frozen", "ext4", 32 * MIB as u64);
    let hook = need!(name, Hook::new(&format!("echo began >> \"$out\"; touch {}/file", text(&volume))));
    let folder = hook.folder();
    let cluster = TestCluster::with(1, 1, &["--hooks-dir", text(&folder), "--slots", "1"]);
    let frozen = FrozenVolume::of(volume);
    submit(&cluster, "stuck", &["--timeout", "300ms"]);
    hook.wait_for("began");
    let survives = |task: &Task| task.0["reason"].as_str().is_some_and(|reason| reason.contains("survive SIGKILL"));
    let task = cluster.wait_for("stuck", "the reason that it survives", survives);
    assert_eq!(task.state(), "RUNNING", "{task:?}");
    cluster.ask(&["submit", "noop", "1ms", "--id", "next"]);
    std::thread::sleep(Duration::from_secs(2));
    let next = cluster.task("next");
    assert_eq!(next.state(), "PENDING", "its slot is taken: {next:?}");
    drop(frozen);
    let task = wait_for_end(&cluster, "stuck");
    assert_eq!((task.state(), task.error(), task.outcomes().len()), ("FAILED", "ETimeout", 1), "{task:?}");
    cluster.wait_for_success("next");
}

#[test]
fn the_hook_of_a_node_that_is_cut_off_is_killed_before_another_node_runs_it() {
    // The first run ignores SIGTERM; the second one looks whether it still runs.
    let script = r#"trap '' TERM
                    echo "run $BLOCKHAUL_ATTEMPT on $BLOCKHAUL_NODE" >> "$out"
                    if [ "$BLOCKHAUL_ATTEMPT" = 1 ]; then
                        echo $$ > "$out.first"; while :; do sleep 0.1; done
                    fi
                    status="/proc/$(cat "$out.first")/status"
                    [ -e "$status" ] && ! grep -q '^State:.*Z' "$status" && echo "overlap" >> "$out"
                    exit 0"#;
    let name = "the_hook_of_a_node_that_is_cut_off_is_killed_before_another_node_runs_it";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new(script));
    let folder = hook.folder();
    let flags = [&SHORT_SESSION[..], &["--hooks-dir", text(&folder)]].concat();
    let cluster = TestCluster::with(3, 1, &flags);
    submit(&cluster, "moving", &[]);
    hook.wait_for("run 1 on");
    let first = cluster.index(cluster.task("moving").node());
    cluster.cut_off(first);
    let task = cluster.wait_for_success("moving");
    assert_eq!(task.outcomes(), ["ELeaseLost", "succeeded"], "{task:?}");
    assert_ne!(cluster.index(task.node()), first, "{task:?}");
    assert!(!hook.out().contains("overlap") && hook.out().contains("run 2 on"), "{}", hook.out());
    cluster.reconnect(first);
}

#[test]
fn a_copy_between_two_hooks_is_one_task() {
    let name = "a_copy_between_two_hooks_is_one_task";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new(r#"echo "$BLOCKHAUL_TASK of $BLOCKHAUL_GROUP" >> "$out""#));
    let cluster = hook.cluster(2);
    let pair = ExportPair::new(&cluster, "pair", 4 * MIB);
    pair.submit(&cluster, "c", &["--before", "h", "--finally", "h"]);
    let group = cluster.wait_for_success("c");
    assert_eq!((group.0["kind"].as_str(), &group.0["members"]["SUCCEEDED"]), (Some("group"), &3.into()), "{group:?}");
    assert_eq!(hook.out(), "c.before of c\nc.finally of c\n");
    pair.assert_copied();
}

#[test]
fn a_node_without_hooks_leaves_them_to_others() {
    let name = "a_node_without_hooks_leaves_them_to_others";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new("exit 0"));
    let mut cluster = TestCluster::idle(2, 1, &[]);
    cluster.nodes[1].set_flags(&["--hooks-dir", text(&hook.folder())]);
    cluster.start();
    let ids: Vec<String> = (0..6).map(|number| format!("run-{number}")).collect();
    ids.iter().for_each(|id| submit(&cluster, id, &[]));
    for id in &ids {
        assert_eq!(cluster.wait_for_success(id).node(), "n1");
    }
    submit(&cluster, "bound", &["--node", "n0"]);
    let task = wait_for_end(&cluster, "bound");
    assert_eq!((task.state(), task.error(), task.outcomes().len()), ("FAILED", "EUnsupported", 1), "{task:?}");
    assert!(message(&task).contains("--hooks-dir"), "{task:?}");
}

#[test]
fn a_taskd_whose_tasks_could_write_hooks_does_not_start() {
    let name = "a_taskd_whose_tasks_could_write_hooks_does_not_start";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new("exit 0"));
    let dirs = TestDirs::new();
    let mut node = Node::new(&dirs, "n0");
    node.set_flags(&["--zookeeper", "127.0.0.1:1/none", "--hooks-dir", text(&hook.folder())]);
    node.set_flags(&["--allow-path", text(&hook.dir.path(""))]);
    node.start();
    assert_eq!(node.wait().code(), Some(1));
    assert!(node.log().contains("--hooks-dir") && node.log().contains("overlap"), "{}", node.log());
}

#[test]
fn a_failed_task_runs_the_hook_that_the_settings_name() {
    let script = r#"[ -z "$BLOCKHAUL_ARG_TASK" ] && exit 3
                    echo "told of $BLOCKHAUL_ARG_TASK: $BLOCKHAUL_ARG_CODE, $(cat)" >> "$out""#;
    let name = "a_failed_task_runs_the_hook_that_the_settings_name";
    need!(name, &NEEDS);
    let hook = need!(name, Hook::new(script));
    let cluster = hook.cluster(2);
    submit(&cluster, "before", &[]);
    assert_eq!(wait_for_end(&cluster, "before").state(), "FAILED");
    let set = cluster.ask(&["center", "set", "notify=h", "placement=fill"]).pop().expect("an answer");
    assert_eq!((&set["version"], &set["settings"]["notify"]), (&1.into(), &"h".into()), "{set}");
    submit(&cluster, "after", &[]);
    assert_eq!(wait_for_end(&cluster, "after").state(), "FAILED");
    hook.wait_for("told of after: EHook, ");
    assert!(hook.out().contains("exit code 3") && !hook.out().contains("before"), "{}", hook.out());
    let got = cluster.ask(&["center", "get", "placement"]).pop().expect("an answer");
    assert_eq!(got["settings"]["placement"], "fill", "{got}");
    let refused = cluster.blockhaul(&["center", "set", "notify=../h"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
}
