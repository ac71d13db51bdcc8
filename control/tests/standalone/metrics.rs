//! Tests the metrics of a daemon, and what is made of them: the reference, the alert rules and the board.

use crate::daemon::{Daemon, Room};
use blockhaul_control::rpc::wire;
use blockhaul_testkit::{Need, need};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A daemon that serves metrics, and their address.
fn start(room: &Room) -> (Daemon, String) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    (room.start(&["--metrics", &address]), format!("http://{address}/metrics"))
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sSf", "-m", "60"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a copy and a scheduled task, so that every metric has a value.
async fn work(daemon: &Daemon, room: &Room) {
    fs::write(room.volume("a"), [7; 1 << 20]).unwrap();
    let copy = wire::CopyWork {
        source: room.volume("a"),
        destination: room.volume("b"),
        sparse: String::from("auto"),
        reflink: String::from("never"),
        digest: String::from("xxh3"),
        fence: String::from("local"),
        ..wire::CopyWork::default()
    };
    let mut client = daemon.client();
    let spec = |work| Some(wire::Spec { work: Some(work) });
    let request = wire::SubmitRequest {
        id: String::from("copy"),
        spec: spec(wire::spec::Work::Copy(copy)),
        ..Default::default()
    };
    client.submit(request).await.unwrap();
    assert_eq!(client.follow("copy", |_| ()).await.unwrap().state, "SUCCEEDED");
    let noop = wire::spec::Work::Noop(wire::NoopWork { milliseconds: 1, node: None });
    let schedule = wire::AddScheduleRequest {
        name: String::from("nightly"),
        trigger: Some(wire::Trigger { when: Some(wire::trigger::When::Cron(String::from("0 2 * * *"))) }),
        zone: String::from("UTC"),
        task: Some(wire::SubmitRequest { spec: spec(noop), ..Default::default() }),
        ..Default::default()
    };
    client.add_schedule(schedule).await.unwrap();
    let run = wire::RunScheduleRequest { name: String::from("nightly"), ..Default::default() };
    let made = client.run_schedule(run).await.unwrap().last_task.unwrap();
    assert_eq!(client.follow(&made, |_| ()).await.unwrap().state, "SUCCEEDED");
}

/// Returns the names after `# TYPE`.
fn served(text: &str) -> BTreeSet<String> {
    let name = |line: &str| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned());
    text.lines().filter_map(name).collect()
}

/// Returns the names of the reference; not those that need something else than this daemon.
fn described() -> BTreeSet<String> {
    let reference = fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let name = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    reference.lines().filter(|line| !line.contains("only with TLS")).filter_map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_follow_the_rules_of_prometheus_and_are_those_of_the_reference() {
    need!("metrics_follow_the_rules_of_prometheus", &[Need::Program("curl"), Need::Program("promtool")]);
    let room = Room::new();
    let (daemon, url) = start(&room);
    work(&daemon, &room).await;
    let mut text = curl(&[&url]);
    // The clocks are asked now and then.
    while !text.contains("blockhaul_node_clock_offset_seconds{") {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        text = curl(&[&url]);
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = promtool.wait_with_output().unwrap();
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
    assert_eq!(served(&text), described(), "docs/metrics.md describes what is served");
    for line in [
        "blockhaul_attempts_total{kind=\"copy\",outcome=\"succeeded\"} 1",
        "blockhaul_attempts_total{kind=\"noop\",outcome=\"succeeded\"} 1",
        "blockhaul_attempt_bytes_total{operation=\"written\"} 1048576",
        "blockhaul_attempt_duration_seconds_count{kind=\"copy\"} 1",
        "blockhaul_tasks{state=\"SUCCEEDED\"} 2",
        "blockhaul_nodes_registered 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let open = curl(&["-H", "Accept: application/openmetrics-text;version=1.0.0", &url]);
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE blockhaul_attempts counter"), "{open}");
}

#[test]
fn each_alert_fires_for_its_cause_and_none_in_a_healthy_center() {
    need!("each_alert_fires_for_its_cause", &[Need::Program("promtool")]);
    let folder = repository().join("packaging/prometheus");
    let rules = fs::read_to_string(folder.join("blockhaul.rules.yml")).unwrap();
    let tests = fs::read_to_string(folder.join("blockhaul.rules.test.yml")).unwrap();
    for arguments in [["check", "rules", "blockhaul.rules.yml"], ["test", "rules", "blockhaul.rules.test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&folder).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}");
    }
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names {
        assert!(tests.contains(&format!("    name: {name}\n")), "{name} is not provoked");
    }
}

#[test]
fn rules_and_board_use_metrics_of_the_reference() {
    let reference = fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    for file in ["packaging/prometheus/blockhaul.rules.yml", "packaging/grafana/blockhaul.json"] {
        let text = fs::read_to_string(repository().join(file)).unwrap();
        let is_of_name = |char: char| char.is_ascii_lowercase() || char == '_';
        let words = text.split(|char| !is_of_name(char));
        let used = words.filter(|word| word.starts_with("blockhaul_") || word.starts_with("process_"));
        let mut count = 0;
        for name in used {
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(reference.contains(&format!("| `{family}` |")), "{file}: {name}");
            count += 1;
        }
        assert!(count > 10, "{file}");
    }
}
