//! Tests the web console of a daemon: with `curl`, what it answers and refuses; in Chromium, what people see.
//!
//! `BLOCKHAUL_TEST_SCREENS=DIR` keeps the screenshots there.

use crate::daemon::{Daemon, Room, text};
use blockhaul_control::rpc::wire;
use blockhaul_testkit::authority::{Authority, Identity};
use blockhaul_testkit::{Need, need};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A daemon with a console.
struct Site {
    daemon: Daemon,
    address: String,
}

impl Site {
    fn start(room: &Room, flags: &[&str]) -> Self {
        let daemon = room.start(&[&["--console", "127.0.0.1:0"], flags].concat());
        let line = daemon.says("serving the console");
        let address = line.split("console=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        Self { daemon, address }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn submit(&self, id: &str, milliseconds: u64, after: &[&str], group: Option<&str>) {
        let work = wire::spec::Work::Noop(wire::NoopWork { milliseconds, node: None });
        let dependency = |task: &&str| wire::Dependency { task: (*task).to_owned(), condition: String::from("end") };
        let request = wire::SubmitRequest {
            id: id.to_owned(),
            spec: Some(wire::Spec { work: Some(work) }),
            after: after.iter().map(dependency).collect(),
            group: group.map(|group| wire::Membership { group: group.to_owned(), clean_up: false }),
            ..wire::SubmitRequest::default()
        };
        self.daemon.client().submit(request).await.unwrap();
    }
}

/// Returns the status, and the headers and the body, of a request.
fn curl(arguments: &[&str]) -> (String, String) {
    let output = Command::new("curl").args(["-sS", "-i", "-m", "60", "-w", "\n%{http_code}"]).args(arguments).output();
    let output = output.unwrap();
    let whole = String::from_utf8(output.stdout).unwrap();
    let (answer, status) = whole.rsplit_once('\n').unwrap();
    (status.to_owned(), answer.to_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// Opens a group of two tasks, of which the first one runs for long.
async fn fill(site: &Site) {
    let group = wire::GroupWork { digest: "ab".repeat(32), members: 2, ..wire::GroupWork::default() };
    let spec = Some(wire::Spec { work: Some(wire::spec::Work::Group(group)) });
    let request = wire::SubmitRequest { id: String::from("night"), spec, ..wire::SubmitRequest::default() };
    let mut client = site.daemon.client();
    client.submit(request).await.unwrap();
    site.submit("night.first", 600_000, &[], Some("night")).await;
    site.submit("night.second", 1, &["night.first"], Some("night")).await;
    client.seal(wire::TaskName { id: String::from("night") }).await.unwrap();
    site.submit("done", 1, &[], None).await;
    client.follow("done", |_| ()).await.unwrap();
    let work = wire::spec::Work::Noop(wire::NoopWork { milliseconds: 1, node: None });
    let schedule = wire::AddScheduleRequest {
        name: String::from("nightly"),
        trigger: Some(wire::Trigger { when: Some(wire::trigger::When::Cron(String::from("0 2 * * *"))) }),
        zone: String::from("Europe/Berlin"),
        task: Some(wire::SubmitRequest {
            spec: Some(wire::Spec { work: Some(work) }),
            ..wire::SubmitRequest::default()
        }),
        ..wire::AddScheduleRequest::default()
    };
    client.add_schedule(schedule).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_show_what_the_center_has_and_change_nothing_without_permission() {
    need!("the_pages_show_what_the_center_has", &[Need::Program("curl")]);
    let room = Room::new();
    let site = Site::start(&room, &[]);
    fill(&site).await;
    for (path, words) in [
        ("/", &["led by <strong>n1</strong>", "night.first", "RUNNING", "href=\"/tasks?state=SUCCEEDED\""][..]),
        ("/tasks", &["night.second", "waiting for", "done"]),
        ("/tasks?state=SUCCEEDED", &["href=\"/tasks/done\""]),
        ("/tasks/night.second", &["Group", "<svg", "<line", "History", "PENDING"]),
        ("/tasks/done", &["Attempts", "/tasks/done/log/1", "succeeded", "ASSIGNED"]),
        ("/tasks/done/log/1", &["<pre"]),
        ("/nodes", &["n1", "1 of 4"]),
        ("/schedules", &["nightly", "0 2 * * *"]),
        ("/schedules/nightly", &["Europe/Berlin", "Tasks made"]),
        ("/settings", &["placement"]),
        ("/style.css", &["prefers-color-scheme"]),
        ("/live.js", &["EventSource"]),
    ] {
        let (status, answer) = curl(&[&site.url(path)]);
        assert_eq!(status, "200", "{path}: {answer}");
        for word in words {
            assert!(answer.contains(word), "{path}: {word}\n{answer}");
        }
        assert!(answer.contains("content-security-policy: default-src 'none'"), "{path}: {answer}");
        assert!(!answer.contains("style=") && !answer.contains("onclick"), "{path}: the policy forbids it");
    }
    for (arguments, status, word) in [
        (&["/tasks/nothing"][..], "404", "ENotFound"),
        (&["/nowhere"], "404", "There is no page"),
        (&["/tasks?state=SLEEPING"], "400", "EBadRequest"),
        (&["/tasks/night/cancel"], "403", "--console-write"),
        (&["/", "-H", "Host: attacker.example"], "403", "Without TLS"),
        (&["/tasks/night/cancel", "-X", "POST", "-H", "Origin: http://attacker.example"], "403", "another site"),
    ] {
        let (found, answer) = curl(&[&[site.url(arguments[0]).as_str()], &arguments[1..]].concat());
        assert!(found == status && answer.contains(word), "{arguments:?}: {found} {answer}");
    }
    let origin = format!("Origin: http://{}", site.address);
    let (status, answer) = curl(&[&site.url("/tasks/night/cancel"), "-X", "POST", "-H", &origin]);
    assert_eq!(status, "405", "{answer}");
    let task = site.daemon.client().get(wire::TaskName { id: String::from("night") }).await.unwrap();
    assert_eq!(task.desired_state, "run");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_asked_for_and_made() {
    need!("changes_are_asked_for_and_made", &[Need::Program("curl")]);
    let room = Room::new();
    let site = Site::start(&room, &["--console-write"]);
    fill(&site).await;
    let origin = format!("Origin: http://{}", site.address);
    for (path, leads_to) in [
        ("/nodes/n1/drain", "/nodes"),
        ("/nodes/n1/undrain", "/nodes"),
        ("/schedules/nightly/pause", "/schedules/nightly"),
        ("/tasks/night/cancel", "/tasks/night"),
    ] {
        let (status, question) = curl(&[&site.url(path)]);
        assert!(status == "200" && question.contains("<form method=\"post\""), "{path}: {status} {question}");
        let (status, answer) = curl(&[&site.url(path), "-X", "POST", "-H", &origin]);
        assert_eq!(status, "303", "{path}: {answer}");
        assert!(answer.contains(&format!("location: {leads_to}\r\n")), "{answer}");
    }
    assert_eq!(site.daemon.client().follow("night", |_| ()).await.unwrap().state, "CANCELLED");
    assert!(curl(&[&site.url("/schedules/nightly")]).1.contains("PAUSED"));
    let audit = std::fs::read_to_string(room.path("state/audit.jsonl")).unwrap();
    assert!(audit.contains("\"what\":\"Cancel\""), "{audit}");
}

#[test]
fn browsers_have_the_rights_of_their_certificates() {
    need!("browsers_have_the_rights_of_their_certificates", &[Need::Program("curl"), Need::Program("openssl")]);
    let (room, ours) = (Room::new(), Authority::new());
    let roles = room.path("roles.toml");
    std::fs::write(&roles, "view = ['viewer']\noperate = ['ops']\n").unwrap();
    let daemon = ours.certify("daemon");
    let flags = [&daemon.flags()[..], &["--roles", text(&roles), "--console-write"]].concat();
    let site = Site::start(&room, &flags);
    let url = |path: &str| format!("https://{}{path}", site.address);
    let origin = format!("Origin: https://{}", site.address);
    let ask = |identity: &Identity, path: &str, more: &[&str]| {
        let Identity { certificate, key, authority } = identity;
        let url = url(path);
        curl(&[&["--cert", text(certificate), "--key", text(key), "--cacert", text(authority), &url], more].concat())
    };
    let (viewer, ops, stranger) = (ours.certify("viewer"), ours.certify("ops"), ours.certify("stranger"));
    let change = ["-X", "POST", "-H", &origin];
    // Until a leader is elected, pages say that there is none.
    while ask(&viewer, "/nodes", &[]).0 == "503" {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ask(&viewer, "/nodes", &[]).0, "200");
    let (status, answer) = ask(&viewer, "/nodes/n1/drain", &change);
    assert!(status == "403" && answer.contains("role operate"), "{status} {answer}");
    assert_eq!(ask(&stranger, "/", &[]).0, "403");
    assert_eq!(ask(&ops, "/nodes/n1/drain", &change).0, "303");
    assert!(ask(&viewer, "/nodes", &[]).1.contains("draining"));
    let (_, refused) = curl(&["--cacert", text(&ours.certify("x").authority), &url("/")]);
    assert!(!refused.contains("blockhaul"), "without a certificate there is no page: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_is_told_of_changes() {
    need!("an_open_page_is_told_of_changes", &[Need::Program("curl")]);
    let room = Room::new();
    let site = Site::start(&room, &[]);
    // There is a leader.
    site.submit("first", 1, &[], None).await;
    let mut page = Command::new("curl")
        .args(["-sS", "-N", &site.url("/live?of=%2Ftasks")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(page.stdout.take().unwrap()).lines().map_while(Result::ok);
    let first = lines.find(|line| line.starts_with("data:")).unwrap();
    assert!(first.contains("/tasks/first") && !first.contains("/tasks/new"), "{first}");
    site.submit("new", 600_000, &[], None).await;
    let mut later = lines.filter(|line| line.contains("/tasks/new"));
    assert!(later.any(|line| line.contains("RUNNING")));
    // The stop of the daemon does not wait for its readers.
    let Site { mut daemon, .. } = site;
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.ended(), Some(0));
    page.wait().unwrap();
}

/// Runs Chromium without a screen.
fn chromium(profile: &Room, arguments: &[&str]) -> Vec<u8> {
    let folder = format!("--user-data-dir={}", text(&profile.path("profile")));
    let output = Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", &folder])
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}");
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_readable_in_a_browser_at_any_width() {
    need!("pages_are_readable_in_a_browser_at_any_width", &[Need::Program("chromium")]);
    let room = Room::new();
    let site = Site::start(&room, &["--console-write"]);
    fill(&site).await;
    let kept = std::env::var_os("BLOCKHAUL_TEST_SCREENS").map(PathBuf::from);
    let shown = chromium(&room, &["--dump-dom", &site.url("/tasks/night.second")]);
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("What waits for what") && shown.contains("night.first"), "{shown}");
    for (width, path, more) in [
        (400, "/", &[][..]),
        (1600, "/", &["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]),
        (400, "/tasks/night.second", &["--blink-settings=preferredColorScheme=0"]),
        (1600, "/tasks/night.second", &[]),
        (1600, "/nodes", &[]),
        (400, "/schedules/nightly", &[]),
    ] {
        let name = format!("{}-{width}.png", path.trim_matches('/').replace('/', "-"));
        let file = kept.clone().unwrap_or_else(|| room.path("")).join(name);
        let (size, target) = (format!("--window-size={width},900"), format!("--screenshot={}", text(&file)));
        chromium(&room, &[&[size.as_str(), &target, &site.url(path)], more].concat());
        let picture = std::fs::read(&file).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{path} at {width}: {} bytes", picture.len());
    }
}
