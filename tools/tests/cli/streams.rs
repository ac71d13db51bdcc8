//! Tests that the output of the program never lands in a volume or journal of the request: such a request is refused,
//! and not even the refusal is printed there.

use blockhaul_testkit::scratch::{MIB, Scratch, noise};
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Output, Stdio};

/// Runs the program with one of its streams at the start of `file`, which is not truncated and may be open for reading
/// only.
fn printing_to(scratch: &Scratch, args: &[&str], descriptor: u8, file: &Path, writable: bool) -> Output {
    let held = File::options().read(true).write(writable).open(file).expect("it is there");
    let mut command = scratch.process(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match descriptor {
        1 => command.stdout(held),
        _ => command.stderr(held),
    };
    command.spawn().and_then(std::process::Child::wait_with_output).expect("the program was built")
}

#[test]
fn output_into_a_volume_or_a_journal_is_refused() {
    let scratch = Scratch::new();
    for name in ["s.img", "o.img", "journal"] {
        scratch.file(name, &noise(MIB, 3));
    }
    symlink(scratch.path("o.img"), scratch.path("link")).unwrap();
    std::fs::hard_link(scratch.path("o.img"), scratch.path("hard")).unwrap();
    let before = scratch.snapshot();
    let requests: [(&[&str], &str); 14] = [
        (&["copy", "s.img", "o.img", "--overwrite"], "o.img"),
        (&["copy", "s.img", "o.img", "--overwrite"], "s.img"),
        (&["copy", "s.img", "link", "--overwrite"], "o.img"),
        (&["copy", "s.img", "hard", "--overwrite"], "o.img"),
        (&["copy", "s.img", "o.img", "--overwrite", "--dry-run"], "o.img"),
        (&["copy", "s.img", "new", "--receipt", "journal"], "journal"),
        (&["copy", "s.img", "new", "--checkpoint", "journal", "--resume"], "journal"),
        (&["copy", "s.img", "o.img", "--protect", "0ms"], "s.img"),
        (&["verify", "s.img", "o.img"], "s.img"),
        (&["verify", "s.img", "o.img"], "o.img"),
        (&["verify", "--receipt", "journal", "o.img"], "journal"),
        (&["map", "s.img"], "s.img"),
        (&["inspect", "journal"], "journal"),
        (&["doctor", "s.img"], "s.img"),
    ];
    for (args, file) in requests {
        for (descriptor, stream) in [(1, "standard output"), (2, "standard error")] {
            for json in [&[][..], &["--json"]] {
                let args = [args, json].concat();
                let output = printing_to(&scratch, &args, descriptor, &scratch.path(file), true);
                assert_eq!(output.status.code(), Some(2), "{args:?} with {stream} in {file}: {output:?}");
                let printed = if descriptor == 1 { &output.stderr } else { &output.stdout };
                let printed = String::from_utf8_lossy(printed);
                assert!(printed.contains(&format!("{stream} leads to ")), "{args:?}: {printed}");
                assert!(scratch.snapshot() == before, "{args:?} with {stream} in {file} changed something");
            }
        }
    }
}

#[test]
fn a_standard_stream_as_destination_is_refused() {
    let scratch = Scratch::new();
    scratch.file("s.img", &noise(MIB, 3));
    scratch.file("o.img", b"");
    let before = scratch.snapshot();
    for destination in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        for json in [&[][..], &["--json"]] {
            let args = [&["copy", "s.img", destination], json].concat();
            let output = printing_to(&scratch, &args, 1, &scratch.path("o.img"), true);
            assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
            assert!(scratch.snapshot() == before, "{args:?} changed something");
        }
    }
}

#[test]
fn streams_to_other_files_are_accepted() {
    let scratch = Scratch::new();
    let bytes = noise(MIB, 3);
    scratch.file("s.img", &bytes);
    scratch.file("log", b"");
    for (descriptor, file, writable) in
        [(1, "log", true), (2, "log", true), (1, "/dev/null", true), (1, "s.img", false)]
    {
        let args = ["copy", "s.img", "o.img", "--overwrite", "--json"];
        let output = printing_to(&scratch, &args, descriptor, &scratch.path(file), writable);
        assert_eq!(output.status.code(), Some(0), "{descriptor}>{file}: {output:?}");
        assert!(scratch.read("o.img") == bytes && scratch.read("s.img") == bytes, "{descriptor}>{file}");
    }
}
