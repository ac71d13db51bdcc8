//! Tests destinations that fail: the task ends with the error of the volume, is not retried for ever, and releases its
//! claims.

use crate::support::{ClusterRecords, ExportPair, MIB, NEEDS, Server, Task, TestCluster, address, need, noise, text};

/// Runs a copy to a destination that fails, and checks that the task fails after at most `attempts` attempts.
fn fails(cluster: &TestCluster, pair: &ExportPair, id: &str, attempts: usize, code: &str) -> Task {
    pair.submit(cluster, id, &["--max-attempts", &attempts.to_string()]);
    let task = cluster.wait_for(id, "its end", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", code), "{task:?}");
    assert!((1..=attempts).contains(&task.outcomes().len()), "{task:?}");
    assert!(task.outcomes().iter().all(|outcome| outcome == code), "{task:?}");
    assert!(cluster.records().claims().is_empty(), "the claim is released");
    task
}

#[test]
fn a_destination_that_fails_to_write_fails_the_task_and_its_claim_is_released() {
    need!("a_destination_that_fails_to_write_fails_the_task_and_its_claim_is_released", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    for (id, errno, code) in [("io", "EIO", "EIo"), ("space", "ENOSPC", "ENoSpace")] {
        let trigger = cluster.dirs.file(&format!("{id}.trigger"), b"");
        let parameters = ["write", "zero", "trim"].map(|call| {
            let call = if call == "write" { "pwrite" } else { call };
            let trigger = text(&trigger);
            [format!("error-{call}={errno}"), format!("error-{call}-rate=50%"), format!("error-{call}-file={trigger}")]
        });
        let parameters: Vec<&str> = parameters.iter().flatten().map(String::as_str).collect();
        let pair = ExportPair::with(&cluster, id, 4 * MIB, &["--filter=error"], &parameters);
        let task = fails(&cluster, &pair, id, 2, code);
        // The source has data and zeros, and either may fail first.
        assert_eq!(task.0["error"]["side"], "destination", "{task:?}");
        let operation = task.0["error"]["operation"].as_str().unwrap_or_default();
        assert!(["write", "zero"].contains(&operation), "{task:?}");
        // No attempt runs after the task has failed.
        let writes = pair.writes();
        std::fs::remove_file(&trigger).expect("it was made above");
        cluster.submit_noop(&format!("{id}-after"), std::time::Duration::from_secs(2), &[]);
        cluster.wait_for_success(&format!("{id}-after"));
        assert_eq!((pair.writes(), cluster.task(id).0["attempts"].clone()), (writes, task.0["attempts"].clone()));
        pair.submit(&cluster, &format!("{id}-again"), &["--overwrite"]);
        cluster.wait_for_success(&format!("{id}-again"));
        pair.assert_copied();
    }
}

#[test]
fn a_destination_that_fails_to_flush_fails_the_task_and_nothing_counts_as_durable() {
    need!("a_destination_that_fails_to_flush_fails_the_task_and_nothing_counts_as_durable", &NEEDS);
    let cluster = TestCluster::new(2, 1);
    let golden = cluster.dirs.file("golden", &noise(MIB, 9));
    let source = ["--readonly", "file", text(&golden)];
    let source = Server::nbdkit_at(&cluster.dirs, "source", address(), &source);
    let destination = Server::without_flush(&cluster.dirs, "destination", address());
    cluster.submit("flush", &source.uri(), &destination.uri(), &["--max-attempts", "2"]);
    let task = cluster.wait_for("flush", "its end", Task::is_over);
    assert_eq!((task.state(), task.error()), ("FAILED", "EIo"), "{task:?}");
    assert_eq!(task.0["error"]["operation"], "flush", "{task:?}");
    assert_eq!(task.progress("durable"), 0, "{task:?}");
    assert!(task.outcomes().len() <= 2 && task.outcomes().iter().all(|outcome| outcome == "EIo"), "{task:?}");
    assert!(cluster.records().claims().is_empty(), "the claim is released");
}
