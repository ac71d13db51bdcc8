//! Tests flags: malformed ones exit with 2 before anything is changed, and `--help` lists every flag.

use blockhaul_testkit::scratch::{MIB, Scratch, noise};

/// All flags, by command.
const FLAGS: [(&str, &[&str]); 19] = [
    (
        "copy",
        &[
            "--format",
            "--block-size",
            "--depth",
            "--cores",
            "--memory",
            "--limit",
            "--protect",
            "--sparse",
            "--reflink",
            "--direct",
            "--path",
            "--checkpoint",
            "--checkpoint-every",
            "--no-checkpoint",
            "--resume",
            "--restart",
            "--state-dir",
            "--verify",
            "--digest",
            "--receipt",
            "--no-sync",
            "--overwrite",
            "--lock-wait",
            "--allow-live-source",
            "--dry-run",
            "--changed-since",
            "--retry-for",
            "--request-timeout",
            "--connections",
            "--json",
            "--progress",
            "--log",
            "--verbose",
            "--quiet",
        ],
    ),
    (
        "verify",
        &[
            "--receipt",
            "--sparse",
            "--retry-for",
            "--request-timeout",
            "--connections",
            "--json",
            "--progress",
            "--log",
            "--verbose",
            "--quiet",
            "VOLUME",
        ],
    ),
    (
        "batch",
        &[
            "FILE",
            "--block-size",
            "--depth",
            "--cores",
            "--memory",
            "--retry-for",
            "--request-timeout",
            "--connections",
            "--parallel",
            "--node",
            "--hooks-dir",
            "--state-dir",
            "--overwrite",
            "--restart",
            "--cancel",
            "--dry-run",
            "--json",
            "--progress",
            "--log",
            "--verbose",
            "--quiet",
        ],
    ),
    (
        "submit run",
        &[
            "HOOK",
            "--id",
            "--node",
            "--priority",
            "--max-attempts",
            "--after",
            "--require",
            "--prefer",
            "--apart-from",
            "--window",
            "--wait",
            "--check",
            "--arg",
            "--input",
            "--timeout",
            "--at-most-once",
            "--sign",
            "--not-after",
            "--center",
            "--json",
            "--log",
            "--verbose",
            "--quiet",
        ],
    ),
    (
        "schedule add",
        &[
            "NAME",
            "--cron",
            "--every",
            "--at",
            "--on-boot",
            "--next-boot",
            "--from",
            "--tz",
            "--catch-up",
            "--keep",
            "--replace",
            "--if-version",
            "--cancel-live",
            "--sign",
            "--not-after",
        ],
    ),
    (
        "drain",
        &[
            "NODE",
            "--now",
            "--undo",
            "--idle",
            "--for",
            "--wait",
            "--center",
            "--json",
            "--log",
            "--verbose",
            "--quiet",
        ],
    ),
    (
        "submit batch",
        &["FILE", "--id", "--priority", "--wait", "--sign", "--not-after", "--center", "--json", "--log", "--verbose"],
    ),
    ("retry", &["ID", "--wait", "--sign", "--not-after", "--center", "--json", "--log", "--verbose", "--quiet"]),
    ("runners", &["--wide", "--center", "--json", "--log", "--verbose", "--quiet"]),
    ("events", &["ID", "--center", "--json", "--log", "--verbose", "--quiet"]),
    ("watch", &["ID", "--all", "--since", "--center", "--json", "--log", "--verbose", "--quiet"]),
    ("logs", &["ID", "--attempt", "--follow", "--center", "--json", "--log", "--verbose", "--quiet"]),
    ("center set", &["--if-version", "--center", "--json", "--log", "--verbose", "--quiet"]),
    (
        "schedule run",
        &["NAME", "--refire-from", "--sign", "--not-after", "--center", "--json", "--log", "--verbose", "--quiet"],
    ),
    ("schedule remove", &["NAME", "--cancel-live", "--center", "--json", "--log", "--verbose", "--quiet"]),
    ("map", &["--json", "--log", "--verbose", "--quiet", "VOLUME"]),
    ("inspect", &["--json", "--log", "--verbose", "--quiet", "FILE"]),
    ("completions", &["bash|zsh|fish", "blockhaul|taskd"]),
    ("doctor", &["--json", "--log", "--verbose", "--quiet", "PATH"]),
];

#[test]
fn the_help_of_each_command_names_each_flag() {
    let scratch = Scratch::new();
    for (command, flags) in FLAGS {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = scratch.blockhaul(&words).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        let help = String::from_utf8(output.stdout).unwrap();
        for flag in flags {
            let named = help.split(|c: char| c.is_whitespace() || "[]<>,.=".contains(c)).any(|word| word == *flag);
            assert!(named, "{command} --help does not name {flag}:\n{help}");
        }
    }
    let help = scratch.blockhaul(&["--help"]).output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    let first = |command: &'static str| command.split(' ').next().unwrap();
    assert!(FLAGS.iter().all(|(command, _)| text.contains(first(command))), "{text}");
    assert!(scratch.blockhaul(&["--version"]).output().unwrap().stdout.starts_with(b"blockhaul "));
}

#[test]
fn malformed_requests_end_with_2_and_touch_nothing() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    let before = scratch.snapshot();
    let malformed: [&[&str]; 33] = [
        &[],
        &["copy"],
        &["copy", "a"],
        &["copy", "a", "b", "c"],
        &["frobnicate"],
        &["copy", "a", "b", "--no-such-flag"],
        &["copy", "a", "b", "--block-size", "1MB"],
        &["copy", "a", "b", "--block-size", "3000"],
        &["copy", "a", "b", "--limit", "5MiB"],
        &["copy", "a", "b", "--protect", "10"],
        &["copy", "a", "b", "--sparse", "maybe"],
        &["copy", "a", "b", "--path", "teleport"],
        &["copy", "a", "b", "--depth", "-1"],
        &["copy", "a", "b", "--resume", "--restart"],
        &["copy", "a", "b", "--resume", "--no-checkpoint"],
        &["copy", "a", "b", "--checkpoint-every", "0"],
        &["copy", "", "b"],
        &["copy", "a", "b", "--log", "==="],
        &["copy", "a", "nbd://"],
        &["copy", "nbd://h/x?colour=red", "b"],
        &["copy", "a", "b", "--changed-since", "monday"],
        &["copy", "nbd://h/x", "b", "--connections", "0"],
        &["verify", "nbd://h/x", "b", "--request-timeout", "0s"],
        &["verify", "a"],
        &["batch"],
        &["batch", "a"],
        &["batch", "a", "--restart", "--cancel"],
        &["verify", "a", "b", "--sparse", "never"],
        &["verify", "--receipt", "r", "a", "b"],
        &["watch"],
        &["watch", "t", "--all"],
        &["watch", "t", "--since", "1:2"],
        &["watch", "--all", "--since", "yesterday"],
    ];
    for args in malformed {
        let output = scratch.blockhaul(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(stderr.starts_with("blockhaul: EBadRequest: "), "{args:?}: {stderr}");
    }
    assert_eq!(scratch.snapshot(), before);
}

#[test]
fn with_json_a_malformed_request_is_a_report_too() {
    let scratch = Scratch::new();
    for args in [&["copy", "a", "b", "--limit", "5MiB"][..], &["copy", "a"], &["verify", "a"], &["map"]] {
        let outcome = scratch.json(args);
        outcome.assert_failed(2, "EBadRequest");
        assert_eq!(outcome.lines.len(), 1, "{outcome:?}");
        assert_eq!(outcome.report()["status"], "failed");
        assert_eq!(outcome.report()["error"]["side"], "caller");
    }
}

#[test]
fn an_unsupported_scheme_is_named() {
    let outcome = Scratch::new().json(&["copy", "ssh://host/volume", "b"]);
    outcome.assert_failed(1, "EUnsupported");
    assert!(outcome.stderr.contains("ssh://"), "{outcome:?}");
}

/// Uses the largest integers, and the longest duration that is accepted.
#[test]
fn the_largest_numbers_are_accepted_or_refused() {
    let (bare, seconds, days) = ("18446744073709551615", "18446744073709551615s", "36500d");
    let times = [seconds, "18446744073709551615ms", "18446744073709551615us", "213503982334601d", days];
    let scratch = Scratch::new();
    let data = noise(MIB, 3);
    scratch.file("a", &data);
    let numbers = ["--block-size", "--depth", "--cores", "--memory", "--checkpoint-every", "--connections"];
    let durations = ["--retry-for", "--request-timeout", "--lock-wait", "--protect", "--checkpoint-every"];
    let flags = numbers.iter().map(|flag| (*flag, bare)).chain([("--limit", "18446744073709551615/s")]);
    let flags = flags.chain(durations.iter().flat_map(|flag| times.map(|time| (*flag, time))));
    for (flag, value) in flags {
        let ran = scratch.json(&["copy", "a", "b", "--overwrite", "--restart", flag, value]);
        assert!(matches!(ran.code, Some(0 | 2)), "{flag} {value}: {ran:#?}");
        assert!(ran.code == Some(2) || scratch.read("b") == data, "{flag} {value}");
        assert!(ran.code == Some(0) || value != days, "{flag} {value}: {ran:#?}");
    }
    for time in times {
        let lost = scratch.json(&["copy", "nbd://127.0.0.1:1/x", "c", "--retry-for", time, "--request-timeout", time]);
        assert!(matches!(lost.code, Some(1 | 2)), "{time}: {lost:#?}");
        let code = scratch.blockhaul(&["submit", "noop", time, "--center", ""]).output().unwrap().status.code();
        assert_eq!(code, Some(2), "{time}");
    }
    for (flag, code) in [("--priority", 2), ("--max-attempts", 2)] {
        let args = ["submit", "noop", "--center", "", flag, "4294967295"];
        assert_eq!(scratch.blockhaul(&args).output().unwrap().status.code(), Some(code), "{flag}");
    }
}
