//! Checks that the numbers of a run do not contradict each other.
//!
//! Derived numbers (summaries, rates, goals) must follow from the measured ones. Measured numbers must be possible:
//! trials follow one another, end before the run does, and use no more CPU than there is.

use serde_json::Value;

/// Equal numbers may differ by this share, because JSON rounds them.
const ROUNDING: f64 = 1e-6;
/// Tolerance in seconds: the clocks of a trial and of the run are read one after the other.
const CLOCK_TOLERANCE_SECONDS: f64 = 0.01;
/// Tolerance in seconds: CPU time is counted in ticks per thread, and programs that time themselves, such as fio, also
/// use CPU outside of the time they report.
const CPU_TOLERANCE_SECONDS: f64 = 1.0;

/// Fails with the number that contradicts another one.
pub(crate) fn assert_consistent(results: &Value) {
    for scenario in list(results, "scenarios") {
        let name = &scenario["name"];
        assert!(number(scenario, "data_bytes") <= number(scenario, "volume_bytes"), "{name}: more data than volume");
        let mut trials = Vec::new();
        for target in list(scenario, "targets") {
            check_summary(target);
            check_latencies(target);
            list(target, "trials").iter().for_each(|trial| check_trial(trial, scenario, results));
            trials.extend(list(target, "trials"));
        }
        check_order(&mut trials);
        list(scenario, "goals").iter().for_each(check_goal);
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("no {name} in {value:#}"))
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value:#}"))
}

fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= ROUNDING * b.abs()
}

fn check_summary(target: &Value) {
    let mut values: Vec<f64> = list(target, "trials").iter().map(|trial| number(trial, "value")).collect();
    values.sort_by(f64::total_cmp);
    if target["outcome"]["status"] != "ran" {
        assert!(target["summary"].is_null(), "a summary without success: {target:#}");
        return;
    }
    let (summary, half) = (&target["summary"], values.len() / 2);
    let median = if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
    assert_eq!(summary["count"].as_u64(), Some(values.len() as u64), "{target:#}");
    for (name, expected) in [("median", median), ("min", values[0]), ("max", values[values.len() - 1])] {
        assert!(is_close(number(summary, name), expected), "{name} is not {expected}: {target:#}");
    }
}

fn check_latencies(target: &Value) {
    for (operation, latency) in target["latency"].as_object().expect("a map") {
        let rising = ["p50", "p90", "p99", "max"].map(|name| number(latency, name));
        assert!(number(latency, "count") > 0.0 && rising.is_sorted(), "{operation} latency of {}", target["name"]);
    }
    let moments: Vec<f64> = list(target, "timeline").iter().map(|point| number(point, "seconds")).collect();
    assert!(moments.is_sorted(), "the timeline of {} goes back in time", target["name"]);
}

fn check_trial(trial: &Value, scenario: &Value, results: &Value) {
    let [wall, user, system] = ["wall_seconds", "user_seconds", "system_seconds"].map(|name| number(trial, name));
    assert!(wall >= 0.0 && user >= 0.0 && system >= 0.0, "{trial:#}");
    let most = wall * number(&results["host"], "cpus") * 1.05 + CPU_TOLERANCE_SECONDS;
    assert!(user + system <= most, "more CPU time than {most} s: {trial:#}");
    let end = number(trial, "started_seconds") + wall;
    assert!(end <= number(&results["run"], "seconds") + CLOCK_TOLERANCE_SECONDS, "it ended after the run: {trial:#}");
    if scenario["metric"] == "bytes_per_second" {
        assert!(is_close(number(trial, "value"), number(trial, "bytes") / wall), "{trial:#}");
    }
}

/// Trials never run at the same time.
fn check_order(trials: &mut [&Value]) {
    trials.sort_by_key(|trial| trial["position"].as_u64());
    for pair in trials.windows(2) {
        assert!(pair[0]["position"].as_u64() < pair[1]["position"].as_u64(), "{pair:#?}");
        let end = number(pair[0], "started_seconds") + number(pair[0], "wall_seconds");
        assert!(end <= number(pair[1], "started_seconds") + CLOCK_TOLERANCE_SECONDS, "at the same time: {pair:#?}");
    }
}

fn check_goal(goal: &Value) {
    let met = goal["measured"].as_f64().map(|measured| match goal["sense"].as_str() {
        Some("at_least") => measured >= number(goal, "bound"),
        _ => measured <= number(goal, "bound"),
    });
    assert_eq!(goal["met"].as_bool(), met, "{goal:#}");
}
