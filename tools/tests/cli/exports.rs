//! Tests NBD exports on the command line without copying: refusals, lists, dry runs.

use blockhaul_testkit::scratch::{MIB, Scratch, noise};
use blockhaul_testkit::{Need, need};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server on a unix socket in the scratch directory, killed on drop.
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts `nbdkit` with these further arguments.
    fn start(scratch: &Scratch, name: &str, args: &[&str]) -> Self {
        let socket = scratch.path(name);
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket).args(args).stderr(Stdio::null());
        let process = command.spawn().expect("nbdkit starts");
        let server = Self { process, socket };
        let listens = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            server.socket.exists()
        });
        assert!(listens, "nbdkit {args:?} listens");
        server
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("cannot end nbdkit: {error}");
        }
    }
}

#[test]
fn refusals_of_exports_are_named_and_touch_nothing() {
    let test = "refusals_of_exports_are_named_and_touch_nothing";
    let scratch = Scratch::new();
    let image = scratch.file("image", &noise(MIB, 1));
    let file = ["file", image.to_str().unwrap()];
    need!(test, &[Need::Program("nbdkit")]);
    let full = Server::start(&scratch, "full", &file);
    let read_only = Server::start(&scratch, "ro", &[&["--readonly"], &file[..]].concat());
    let (full, read_only) = (full.uri(""), read_only.uri(""));
    let absent = format!("nbd+unix:///?socket={}", scratch.path("absent").display());
    scratch.file("a", &noise(MIB / 2, 2));
    scratch.file("big", &noise(2 * MIB, 3));
    let refused = |args: &[&str], exit, code: &str, side: &str| {
        let outcome = scratch.json(&[&["copy"], args].concat());
        outcome.assert_failed(exit, code);
        assert_eq!(outcome.report()["error"]["side"], side, "{outcome:?}");
        assert!(!outcome.stderr.contains("incomplete"), "no destination was begun: {outcome:?}");
        outcome
    };
    for destination in [absent.as_str(), "b"] {
        refused(&[&absent, destination], 1, "ENotFound", "source");
    }
    refused(&["a", &absent], 1, "ENotFound", "destination");
    refused(&[&full, &full, "--overwrite"], 1, "ESameVolume", "caller");
    refused(&["a", &read_only], 1, "EReadOnly", "destination");
    refused(&["big", &full], 1, "ESizeMismatch", "destination");
    let outcome = refused(&["a", &full], 1, "EExists", "destination");
    assert!(outcome.stderr.contains("--overwrite"), "{outcome:?}");
    refused(&[&full, "b", "--changed-since", "monday"], 1, "ENotFound", "source");
    refused(&["a", &full, "--changed-since", "monday"], 2, "EBadRequest", "caller");
    refused(&["a", &full, "--overwrite", "--reflink", "always"], 1, "EUnsupported", "destination");
    refused(&["a", "nbd://host:port/x"], 2, "EBadRequest", "caller");
    refused(&["a", "nbd://127.0.0.1:1/x", "--retry-for", "1h"], 1, "EUnreachable", "destination");
    assert_eq!(scratch.read("image"), noise(MIB, 1));
    assert!(!scratch.path("b").exists());
    let left = std::fs::read_dir(scratch.path("state")).unwrap().count();
    assert_eq!(left, 0, "a refused copy leaves no journal");
}

#[test]
fn a_missing_export_is_named_before_the_state_directory() {
    let scratch = Scratch::new();
    scratch.file("no-directory", b"");
    let absent = format!("nbd+unix:///?socket={}", scratch.path("absent").display());
    let outcome = scratch.json(&["copy", &absent, "b", "--state-dir", "no-directory/state"]);
    outcome.assert_failed(1, "ENotFound");
    assert_eq!(outcome.report()["error"]["side"], "source", "{outcome:?}");
}

#[test]
fn a_map_shows_the_extents_of_an_export() {
    let scratch = Scratch::new();
    let image = scratch.file("image", &noise(MIB, 1));
    std::fs::File::options().write(true).open(&image).unwrap().set_len(4 * MIB as u64).unwrap();
    let file = ["file", image.to_str().unwrap()];
    need!("a_map_shows_the_extents_of_an_export", &[Need::Program("nbdkit")]);
    let server = Server::start(&scratch, "s", &file);
    let expected = [
        json!({"schema": 1, "event": "extent", "offset": 0, "length": MIB, "kind": "data"}),
        json!({"schema": 1, "event": "extent", "offset": MIB, "length": 3 * MIB, "kind": "hole"}),
    ];
    let outcome = scratch.json(&["map", &server.uri("")]);
    assert_eq!((outcome.code, &outcome.lines[..]), (Some(0), &expected[..]), "the only export is the default one");
    // A server without block status has data throughout.
    let args = [&["--filter=noextents"], &file[..]].concat();
    let silent = Server::start(&scratch, "silent", &args);
    let outcome = scratch.json(&["map", &silent.uri("")]);
    let expected = json!({"schema": 1, "event": "extent", "offset": 0, "length": 4 * MIB, "kind": "data"});
    assert_eq!(outcome.lines, [expected]);
}

#[test]
fn a_server_is_mapped_to_its_exports() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("images")).unwrap();
    scratch.file("images/one", &noise(MIB, 1));
    scratch.file("images/two", &noise(MIB / 2, 2));
    let directory = format!("dir={}", scratch.path("images").display());
    let args = ["--readonly", "file", &directory];
    need!("a_server_is_mapped_to_its_exports", &[Need::Program("nbdkit")]);
    let server = Server::start(&scratch, "s", &args);
    let mut outcome = scratch.json(&["map", &server.uri("")]);
    outcome.lines.sort_by_key(|line| line["export"].to_string());
    let line = |export: &str, size| {
        json!({
            "schema": 1, "event": "export", "export": export, "size": size, "read_only": true, "description": null
        })
    };
    assert_eq!(outcome.lines, [line("one", MIB), line("two", MIB / 2)], "{outcome:?}");
    let human = scratch.blockhaul(&["map", &server.uri("")]).output().unwrap();
    let text = String::from_utf8(human.stdout).unwrap();
    assert!(text.contains("EXPORT") && text.contains("1048576 read-only  one"), "{text}");
    assert_eq!(scratch.json(&["map", &server.uri("one")]).lines[0]["kind"], "data");
    scratch.json(&["map", &server.uri("three")]).assert_failed(1, "ENotFound");
}

#[test]
fn a_plan_with_exports_connects_and_touches_nothing() {
    let test = "a_plan_with_exports_connects_and_touches_nothing";
    let scratch = Scratch::new();
    let image = scratch.file("image", &noise(MIB, 1));
    let file = ["file", image.to_str().unwrap()];
    need!(test, &[Need::Program("nbdkit")]);
    let full = Server::start(&scratch, "full", &file);
    let blank = Server::start(&scratch, "blank", &["memory", "1M"]);
    let read_only = Server::start(&scratch, "ro", &[&["--readonly"], &file[..]].concat());
    let small = Server::start(&scratch, "small", &["memory", "4k"]);
    let before = scratch.snapshot();
    let (full, blank) = (full.uri(""), blank.uri(""));
    let refusals = |args: &[&str]| {
        let outcome = scratch.json(&[&["copy", "--dry-run"], args].concat());
        let plan = outcome.lines.last().expect("a plan").clone();
        assert_eq!(plan["event"], "plan", "{outcome:?}");
        let codes = plan["refusals"].as_array().unwrap().iter().map(|refusal| refusal["code"].clone());
        (outcome.code, codes.collect::<Vec<_>>(), plan)
    };
    let (code, none, plan) = refusals(&[&full, &blank]);
    assert_eq!((code, none), (Some(0), Vec::new()));
    assert_eq!((&plan["source_bytes"], &plan["data_bytes"]), (&json!(MIB), &json!(MIB)));
    assert_eq!((plan["source"].as_str(), plan["destination"].as_str()), (Some(&*full), Some(&*blank)));
    for (destination, refusal) in [
        (full.clone(), "ESameVolume"),
        (read_only.uri(""), "EReadOnly"),
        (small.uri(""), "ESizeMismatch"),
        (String::from("nbd://127.0.0.1:1/x"), "EUnreachable"),
    ] {
        let (code, found, plan) = refusals(&[&full, &destination]);
        assert_eq!((code, found), (Some(1), vec![Value::from(refusal)]), "{plan}");
    }
    assert_eq!(refusals(&["image", &full]).1, ["EExists"]);
    assert_eq!(refusals(&["image", &full, "--overwrite"]).1, Vec::<Value>::new());
    assert_eq!(scratch.snapshot(), before, "a plan does not create the state directory");
}
