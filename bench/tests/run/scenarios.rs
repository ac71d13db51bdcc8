//! Tests that every scenario runs with all of its targets and gives consistent numbers.

use crate::consistency::assert_consistent;
use crate::support::{TestDir, errors, is_root, scenario_of, target};
use blockhaul_testkit::unmet;
use serde_json::Value;
use std::collections::BTreeSet;

/// Scenarios that mount or attach something.
const FOR_ROOT: [&str; 4] = ["tmpfs", "reflink", "loop-devices", "cores"];

fn names(list: &Value) -> BTreeSet<&str> {
    list.as_array().expect("a list").iter().filter_map(|it| it["name"].as_str()).collect()
}

#[test]
fn every_scenario_runs_tiny_with_all_of_its_targets() {
    let dir = TestDir::new();
    let output = dir.run(&["--trials", "1"]);
    // The program fails if one of our targets did.
    assert!(output.status.success(), "{}", errors(&output));
    let results = dir.results();
    assert_consistent(&results);
    assert_eq!(results["run"]["complete"], true);
    for scenario in results["scenarios"].as_array().unwrap() {
        let name = scenario["name"].as_str().unwrap();
        if !is_root() && FOR_ROOT.contains(&name) {
            unmet(name, "needs root");
            assert_eq!(scenario["doubts"][0]["kind"], "skipped");
            continue;
        }
        let targets = scenario["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{name}: {:#}", scenario["doubts"]);
        for target in targets {
            assert_eq!(target["outcome"]["status"], "ran", "{name}: {target:#}");
            assert_eq!(target["trials"].as_array().unwrap().len(), 1, "{name}: {target:#}");
        }
    }
    let listed = dir.run(&["--list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let listed: BTreeSet<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names(&results["scenarios"]), listed);
    has_expected_targets(&results);
    leaves_files_that_can_be_read(&dir, &results);
    assert!(std::fs::read_dir(dir.volumes()).unwrap().next().is_none(), "volumes are left");
}

fn has_expected_targets(results: &Value) {
    let rivals = BTreeSet::from(["qemu-img", "nbdcopy", "dd", "ddrescue", "cp"]);
    let ours = BTreeSet::from(["engine", "blockhaul", "bare-loop", "null"]);
    let dense = names(&scenario_of(results, "dense-direct")["targets"]);
    assert!(dense.is_superset(&rivals) && dense.is_superset(&ours), "{dense:?}");
    assert!(dense.iter().any(|name| name.starts_with("fio-")), "{dense:?}");
    let jobs = names(&scenario_of(results, "jobs")["targets"]);
    assert!(jobs.is_superset(&BTreeSet::from(["engine@1", "engine@4", "engine@16", "engine@64"])), "{jobs:?}");
    let blocks = names(&scenario_of(results, "small-blocks")["targets"]);
    assert!(blocks.is_superset(&BTreeSet::from(["engine@4", "engine@16", "engine@64", "engine@256"])), "{blocks:?}");
    assert!(target(results, "dense-direct", "dd")["trials"][0]["system_calls"].as_u64().is_some_and(|calls| calls > 8));
    assert!(target(results, "dense-direct", "engine")["trials"][0]["system_calls"].as_u64().is_some());
    assert!(target(results, "resume", "blockhaul")["figures"]["copied_again_bytes"].is_number());
    assert!(target(results, "protection", "engine")["latency"]["foreground"]["count"].as_u64().is_some());
    let versions = results["programs"].as_array().unwrap();
    assert!(versions.iter().all(|program| program["version"].is_string()), "{versions:#?}");
}

fn leaves_files_that_can_be_read(dir: &TestDir, results: &Value) {
    for (scenario, operation) in [("dense-direct", "read"), ("dense-direct", "write"), ("cancel", "cancel")] {
        let latency = &target(results, scenario, "engine")["latency"][operation];
        let file = latency["file"].as_str().expect("kept in a file");
        assert!(std::fs::read_to_string(dir.out().join(file)).unwrap().contains("Percentile"));
    }
    assert!(std::fs::read_to_string(dir.out().join("report.html")).unwrap().contains("<svg"));
}

#[test]
fn trials_are_interleaved_and_a_run_equals_itself() {
    let dir = TestDir::new();
    let output = dir.run(&["--trials", "3", "--scenario", "sparse"]);
    assert!(output.status.success(), "{}", errors(&output));
    let results = dir.results();
    assert_consistent(&results);
    let targets = scenario_of(&results, "sparse")["targets"].as_array().unwrap().len() as u64;
    for (at, target) in scenario_of(&results, "sparse")["targets"].as_array().unwrap().iter().enumerate() {
        let positions: Vec<u64> =
            target["trials"].as_array().unwrap().iter().map(|trial| trial["position"].as_u64().unwrap()).collect();
        assert_eq!(positions, [at as u64, at as u64 + targets, at as u64 + 2 * targets]);
    }
    let mut compare = std::process::Command::new(env!("CARGO_BIN_EXE_copy-bench"));
    let compared = compare.arg("compare").args([dir.out(), dir.out()]).output().unwrap();
    assert!(compared.status.success(), "{}", errors(&compared));
}
