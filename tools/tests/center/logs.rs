//! Tests the logs of attempts: they come from the node that ran the attempt, also after its `taskd` was killed, and a node
//! that is away is named.

use crate::support::{MIB, NEEDS, SHORT_SESSION, SafeDir, Task, TestCluster, need, noise, text};
use blockhaul_testkit::scratch::Outcome;
use std::fs;

/// Returns the text of a log, line by line; gaps are in parentheses.
fn log(cluster: &TestCluster, args: &[&str]) -> String {
    let lines = cluster.ask(&[&["logs"], args].concat()).into_iter().map(|line| {
        assert_eq!(line["event"], "log", "{line}");
        match (line["line"].as_str(), line["dropped_bytes"].as_u64()) {
            (Some(line), None) => format!("{line}\n"),
            (None, Some(bytes)) => format!("({bytes} bytes)\n"),
            _ => panic!("{line}"),
        }
    });
    lines.collect()
}

fn assert_has(log: &str, all: &[&str]) {
    for said in all {
        assert!(log.contains(said), "'{said}' is missing:\n{log}");
    }
}

#[test]
fn a_hook_and_a_copy_say_in_their_logs_what_happened() {
    let name = "a_hook_and_a_copy_say_in_their_logs_what_happened";
    need!(name, &NEEDS);
    let dir = need!(name, SafeDir::new().ok_or("a folder that nobody else can change"));
    // 20,000 bytes: the first and the last 6,000 are kept.
    let script = r#"#!/bin/sh
                    echo "first words"
                    i=0; while [ $i -lt 1999 ]; do printf '%09d\n' $i; i=$((i+1)); done
                    printf 'last \033[2J words\n'
                    exit 3"#;
    dir.executable("hooks/h", script);
    let cluster = TestCluster::with(2, 1, &["--hooks-dir", text(&dir.path("hooks"))]);
    cluster.ask(&["submit", "run", "h", "--id", "hook"]);
    let task = cluster.wait_for("hook", "its end", Task::is_over);
    assert_eq!(task.error(), "EHook", "{task:?}");
    let said = log(&cluster, &["hook", "--follow"]);
    assert_has(&said, &["attempt begins", "copy may write", "  | first words\n", "  | 000000000\n"]);
    assert_has(&said, &["bytes of the output were dropped here)\n", "  | 000001998\n", "  | last \\x1b[2J words\n"]);
    assert_has(&said, &["work failed: hook h", "code=EHook", "outcome stored state=\"FAILED\""]);
    assert!(!said.contains("000001000"), "{said}");
    cluster.fill("a", &noise(4 * MIB, 1));
    cluster.submit("copy", &cluster.uri(0, "a"), &cluster.uri(0, "b"), &[]);
    cluster.wait_for_success("copy");
    let said = log(&cluster, &["copy", "--attempt", "1", "--follow"]);
    assert_has(&said, &["attempt begins node=n0", "work done", "outcome stored state=\"SUCCEEDED\""]);
    assert!(!said.contains("hook"), "{said}");
    cluster.submit("refused", &cluster.uri(0, "missing"), &cluster.uri(0, "c"), &["--max-attempts", "1"]);
    cluster.wait_for("refused", "its end", Task::is_over);
    assert_has(&log(&cluster, &["refused", "--follow"]), &["work failed: ", "ENotFound", "missing"]);
    let none = cluster.blockhaul(&["logs", "copy", "--attempt", "2"]);
    assert!(none.code == Some(1) && none.stderr.contains("task copy has had 1 attempt"), "{none:?}");
}

#[test]
fn the_log_of_a_killed_node_is_there_again_when_the_node_is() {
    let name = "the_log_of_a_killed_node_is_there_again_when_the_node_is";
    need!(name, &NEEDS);
    let dir = need!(name, SafeDir::new().ok_or("a folder that nobody else can change"));
    dir.executable(
        "hooks/h",
        r#"#!/bin/sh
           echo "run $BLOCKHAUL_ATTEMPT"; sleep 0.5; touch "$BLOCKHAUL_ARG_OUT"
           [ "$BLOCKHAUL_ATTEMPT" = 1 ] && sleep 1000
           exit 0"#,
    );
    let hooks = dir.path("hooks");
    let flags = [&SHORT_SESSION[..], &["--hooks-dir", text(&hooks)]].concat();
    let mut cluster = TestCluster::with(3, 1, &flags);
    let leader = cluster.leader().expect("a node leads");
    let victim = (leader + 1) % 3;
    let node = format!("n{victim}");
    cluster.fill("a", &noise(16 * MIB, 1));
    cluster.submit("copy", &cluster.uri(victim, "a"), &cluster.uri(victim, "b"), &["--limit", "2MiB/s"]);
    let out = dir.path("out");
    cluster.ask(&["submit", "run", "h", "--id", "hook", "--node", &node, "--arg", &format!("OUT={}", text(&out))]);
    assert_eq!(cluster.wait_for_progress("copy"), victim);
    cluster.wait_until("the hook runs", |_| out.exists());
    let before = log(&cluster, &["copy"]);
    assert_has(&before, &["attempt begins", "copy may write"]);
    cluster.nodes[victim].kill();
    let away = |outcome: &Outcome, id: &str| {
        let said = format!("node {node} is away; its log of attempt 1 is shown when it is back");
        assert!(outcome.code == Some(1) && outcome.stderr.contains(&said), "{id}: {outcome:?}");
    };
    for id in ["copy", "hook"] {
        away(&cluster.blockhaul(&["logs", id, "--attempt", "1"]), id);
    }
    cluster.wait_until("its registration is gone", |cluster| cluster.runners().len() == 2);
    away(&cluster.blockhaul(&["logs", "copy", "--attempt", "1"]), "copy");
    let follower = cluster.launch(&["logs", "hook", "--attempt", "1", "--follow"]);
    cluster.start();
    let followed = follower.end();
    assert_eq!(followed.code, Some(0), "{followed:?}");
    assert!(followed.lines.iter().any(|line| line["line"] == "  | run 1"), "{followed:?}");
    assert!(log(&cluster, &["copy", "--attempt", "1"]).starts_with(&before));
    cluster.lift_limit("copy");
    cluster.wait_for_success("copy");
    cluster.wait_for_success("hook");
    let again = log(&cluster, &["copy", "--follow"]);
    assert_has(&again, &["outcome stored state=\"SUCCEEDED\""]);
    assert!(log(&cluster, &["copy", "--attempt", "1"]).starts_with(&before));
}

#[test]
fn a_node_that_cannot_keep_logs_says_so_and_runs_its_tasks() {
    let name = "a_node_that_cannot_keep_logs_says_so_and_runs_its_tasks";
    need!(name, &NEEDS);
    let mut cluster = TestCluster::idle(1, 1, &[]);
    let obstacle = cluster.nodes[0].state("attempt-logs");
    fs::create_dir_all(obstacle.parent().expect("it is in the state directory")).expect("the folder is ours");
    fs::write(&obstacle, "where the folder should be").expect("the folder is ours");
    cluster.start();
    cluster.fill("a", &noise(MIB, 1));
    cluster.submit("copy", &cluster.uri(0, "a"), &cluster.uri(0, "b"), &[]);
    cluster.wait_for_success("copy");
    let none = cluster.blockhaul(&["logs", "copy", "--follow"]);
    assert_eq!(none.code, Some(1), "{none:?}");
    assert!(none.stderr.contains("node n0 has no log of attempt 1: cannot create "), "{none:?}");
}
