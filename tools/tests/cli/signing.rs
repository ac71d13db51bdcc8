//! Tests the commands that sign: single tasks, batches, copies between hooks, retries and schedules.

use crate::asking::TestCenter;
use blockhaul_testkit::order_keys::{private_key, public_key};
use blockhaul_testkit::scratch::Scratch;
use serde_json::Value;

/// A center that runs only what is signed, and files with both private keys.
struct Signed {
    scratch: Scratch,
    center: TestCenter,
    keys: [String; 2],
}

impl Signed {
    fn new() -> Self {
        let scratch = Scratch::new();
        let folder = scratch.path("keys");
        std::fs::create_dir(&folder).unwrap();
        let keys = [0, 1].map(|number| {
            std::fs::write(folder.join(format!("{number}.pub")), public_key(number)).unwrap();
            let key = scratch.path(format!("{number}.key"));
            std::fs::write(&key, private_key(number)).unwrap();
            key.to_str().unwrap().to_owned()
        });
        let center = TestCenter::start(&scratch, &["--order-keys", folder.to_str().unwrap()]);
        Self { scratch, center, keys }
    }

    fn ask(&self, args: &[&str]) -> (Option<i32>, Vec<Value>, String) {
        let args = [args, &["--json", "--center", &self.center.address]].concat();
        let output = self.scratch.blockhaul(&args).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let lines = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), lines, String::from_utf8(output.stderr).unwrap())
    }

    fn succeeds(&self, args: &[&str]) -> Vec<Value> {
        let (code, lines, stderr) = self.ask(args);
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        lines
    }

    fn refuses(&self, args: &[&str], word: &str) {
        let (code, _, stderr) = self.ask(args);
        assert!(code == Some(1) && stderr.contains("EPermission") && stderr.contains(word), "{args:?}: {stderr}");
    }
}

#[test]
fn tasks_batches_and_retries_are_signed() {
    let signed = Signed::new();
    let key = signed.keys[0].as_str();
    signed.refuses(&["submit", "noop", "--id", "a"], "--sign");
    signed.succeeds(&["submit", "noop", "--id", "a", "--sign", key, "--wait"]);
    signed.succeeds(&["submit", "noop", "--id", "b", "--after", "a:end", "--sign", key, "--not-after", "7d", "--wait"]);
    for (flags, code) in [(&["--not-after", "8d"][..], 2), (&["--not-after", "0s"], 2)] {
        let args = [&["submit", "noop", "--sign", key], flags].concat();
        assert_eq!(signed.ask(&args).0, Some(code), "{flags:?}");
    }
    // There is no such volume: the copy fails, and its retry is signed by the same key alone.
    let copy = ["submit", "copy", "/volumes/none", "/volumes/b", "--id", "c", "--max-attempts", "1"];
    assert_eq!(signed.ask(&[&copy[..], &["--sign", key, "--wait"]].concat()).0, Some(1));
    signed.refuses(&["retry", "c"], "--sign");
    signed.refuses(&["retry", "c", "--sign", &signed.keys[1]], "submit it anew");
    let retried = signed.succeeds(&["retry", "c", "--sign", key]);
    assert_eq!(retried.last().unwrap()["id"], "c~2");

    let file = signed.scratch.path("batch.toml");
    let volumes = signed.scratch.path("volumes");
    std::fs::write(volumes.join("x"), vec![5; 4096]).unwrap();
    let path = |name: &str| volumes.join(name).display().to_string();
    let (x, y, z) = (path("x"), path("y"), path("z"));
    std::fs::write(
        &file,
        format!(
            "[[copy]]\nid = 'one'\nfrom = 'file://n1{x}'\nto = 'file://n1{y}'\n[[copy]]\nid = 'two'\nfrom = 'file://n1{y}'\n\
             to = 'file://n1{z}'\nafter = ['one']\n"
        ),
    )
    .unwrap();
    let batch = ["submit", "batch", file.to_str().unwrap(), "--id", "g"];
    signed.refuses(&batch, "--sign");
    signed.succeeds(&[&batch[..], &["--sign", key, "--wait"]].concat());
    assert_eq!(std::fs::read(volumes.join("z")).unwrap(), vec![5; 4096]);
}

#[test]
fn schedules_are_signed_with_their_triggers() {
    let signed = Signed::new();
    let key = signed.keys[0].as_str();
    let add = ["schedule", "add", "s", "--every", "1000d", "--from", "2020-01-01T00:00:00Z", "noop"];
    signed.refuses(&add, "--sign");
    let floating = ["schedule", "add", "f", "--every", "1h", "noop", "--sign", key];
    assert_eq!(signed.ask(&floating).0, Some(2), "its instants depend on when it is stored");
    signed.succeeds(&[&add[..], &["--sign", key]].concat());
    signed.refuses(&["schedule", "run", "s"], "--sign");
    signed.refuses(&["schedule", "run", "s", "--sign", &signed.keys[1]], "submit it anew");
    let schedule = signed.succeeds(&["schedule", "run", "s", "--sign", key]);
    let task = schedule.last().unwrap()["last_task"].as_str().unwrap().to_owned();
    signed.succeeds(&["watch", &task]);

    signed.succeeds(&[
        "schedule",
        "add",
        "ticks",
        "--every",
        "1s",
        "--from",
        "2020-01-01T00:00:00Z",
        "--sign",
        key,
        "noop",
    ]);
    let fired = loop {
        let seen = signed.succeeds(&["schedule", "get", "ticks"]);
        if let Some(task) = seen.last().unwrap()["last_task"].as_str() {
            break task.to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    signed.succeeds(&["watch", &fired]);
    signed.succeeds(&["schedule", "remove", "ticks"]);
}
