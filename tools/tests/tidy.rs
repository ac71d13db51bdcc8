//! Checks the rules of the repository. Each message says what to do; the limits are only ever lowered.

#![forbid(unsafe_code)]

use blockhaul_engine::error::Code;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of the longest file. Above this, split by stage of the flow.
const FILE_LINES_MAX: usize = 700;
/// Lines of the longest function. Above this, let one function decide and others compute.
const FUNCTION_LINES_MAX: usize = 90;
/// Columns of a line of Rust; `rustfmt` leaves longer strings alone.
const COLUMNS_MAX: usize = 140;

/// The files that may hold `unsafe`, each with `// SAFETY:` at every use.
const UNSAFE_FILES: [&str; 6] = [
    "engine/src/buffer.rs",
    "engine/src/ring/uring.rs",
    "engine/src/volume/kernel_calls.rs",
    "hooks/src/launch.rs",
    // The bare loop of the benchmarks makes system calls of its own; counting allocations needs an allocator.
    "engine/benches/bare_loop.rs",
    "engine/tests/allocations.rs",
];

/// The error codes that scripts and the task center know. A new one is added here and in the README.
const ERROR_CODES: &str = "ERunnerInterrupt ECancelled ELeaseLost ETimeout EIo ENoSpace EReadOnly ESizeMismatch \
    ESameVolume EBusy EExists ENotFound EPermission ESourceChanged EVerifyMismatch ECheckpointCorrupt \
    ECheckpointMismatch EUnreachable EProtocol EUnsupported EBadRequest EFenced ENotLeader EOverloaded EDependency \
    EHook EInternal";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tools live one level below the root")
}

/// A file of the repository, by its path from the root.
struct Source {
    name: String,
    text: String,
}

/// Returns every file of the repository with one of these extensions, without build results and hidden files.
fn sources(extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut directories = vec![root().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the repository can be read") {
            let path = entry.expect("the repository can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&&*name) {
                directories.push(path);
            } else if path.extension().is_some_and(|ending| extensions.iter().any(|wanted| ending == *wanted)) {
                found.push(source(path));
            }
        }
    }
    assert!(!found.is_empty(), "no files under {}", root().display());
    found
}

fn source(path: PathBuf) -> Source {
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    Source { name: path.strip_prefix(root()).expect("it was found below").display().to_string(), text }
}

/// Fails with one line per breach.
fn assert_none(breaches: &[String]) {
    assert!(breaches.is_empty(), "{} breaches:\n  {}", breaches.len(), breaches.join("\n  "));
}

#[test]
fn every_file_starts_with_a_module_comment() {
    let silent = sources(&["rs"]).into_iter().filter(|file| !file.text.starts_with("//!"));
    assert_none(
        &silent.map(|file| format!("{}: start it with `//!`: what the module does", file.name)).collect::<Vec<_>>(),
    );
}

#[test]
fn files_are_not_too_long() {
    let breaches = sources(&["rs"]).into_iter().filter_map(|file| {
        let lines = file.text.lines().count();
        (lines > FILE_LINES_MAX)
            .then(|| format!("{}: {lines} lines, at most {FILE_LINES_MAX}: split it by stage of the flow", file.name))
    });
    assert_none(&breaches.collect::<Vec<_>>());
}

#[test]
fn lines_are_not_too_long() {
    let mut breaches = Vec::new();
    for file in sources(&["rs"]) {
        let long = file.text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
        breaches.extend(long.map(|(at, _)| format!("{}:{}: over {COLUMNS_MAX} columns: break it", file.name, at + 1)));
    }
    assert_none(&breaches);
}

/// Relies on `rustfmt`: a function ends at the first line that closes a brace at the indentation of its `fn`.
#[test]
fn functions_are_not_too_long() {
    let mut breaches = Vec::new();
    for file in sources(&["rs"]) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| opens_function(line)) {
            let indentation = &line[..line.len() - line.trim_start().len()];
            let closing = format!("{indentation}}}");
            let length = lines[at..].iter().position(|line| *line == closing).map_or(0, |length| length + 1);
            if length > FUNCTION_LINES_MAX {
                let place = format!("{}:{}", file.name, at + 1);
                breaches.push(format!("{place}: {length} lines, at most {FUNCTION_LINES_MAX}: move what computes out"));
            }
        }
    }
    assert_none(&breaches);
}

fn opens_function(line: &str) -> bool {
    let args = line.trim_start();
    let declared = args.split_once("fn ").is_some_and(|(before, _)| {
        before.split_whitespace().all(|word| word.starts_with("pub") || ["const", "async", "unsafe"].contains(&word))
    });
    // One-line functions and declarations without a body end on the same line.
    declared && !args.ends_with('}') && !args.ends_with(';')
}

#[test]
fn no_marks_of_unfinished_work_are_left() {
    // Assembled here, so that this file does not break its own rule.
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    assert_none(&occurrences(&sources(&["rs"]), &marks, "finish it, or write down what is missing in docs/"));
}

#[test]
fn no_path_of_a_developers_machine_is_left() {
    let marks = [
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/tmp", "/h/"),
    ];
    let files = sources(&["rs", "md", "toml", "proto"]);
    assert_none(&occurrences(&files, &marks, "use a path that means something on every machine"));
}

fn occurrences(files: &[Source], marks: &[&str], remedy: &str) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (at, line) in file.text.lines().enumerate() {
            let marks = marks.iter().filter(|mark| line.contains(**mark));
            found.extend(marks.map(|mark| format!("{}:{}: '{mark}': {remedy}", file.name, at + 1)));
        }
    }
    found
}

#[test]
fn unsafe_code_is_in_the_listed_files_and_has_safety_comments() {
    let keyword = concat!("un", "safe");
    let mut breaches = Vec::new();
    for file in sources(&["rs"]).iter().filter(|file| !UNSAFE_FILES.contains(&file.name.as_str())) {
        for (at, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let used = ["{", "fn ", "impl ", "extern "].iter().any(|next| code.contains(&format!("{keyword} {next}")));
            if used {
                let place = format!("{}:{}", file.name, at + 1);
                breaches.push(format!("{place}: {keyword} code belongs in {}", UNSAFE_FILES.join(", ")));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn paths_are_shown_escaped() {
    // These conversions of a path can print control characters, and can make two names equal.
    let laws = [concat!(".displ", "ay()"), concat!(".to_string_", "lossy()")];
    let is_judged = |name: &str| {
        let shown =
            ["engine/src/", "hooks/src/", "control/src/", "tools/src/"].iter().any(|folder| name.starts_with(folder));
        shown && !name.split(['/', '_', '.']).any(|part| ["tests", "support"].contains(&part))
    };
    let mut breaches = Vec::new();
    for file in sources(&["rs"]).into_iter().filter(|file| is_judged(&file.name)) {
        let code = file.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().enumerate().filter(|(_, line)| laws.iter().any(|law| line.contains(law)));
        breaches.extend(lines.map(|(at, _)| format!("{}:{}: show it with `Shown::shown`", file.name, at + 1)));
    }
    assert_none(&breaches);
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    let law = concat!("#![forbid(un", "safe_code)]");
    let roots = [
        "bench/src/main.rs",
        "control/src/lib.rs",
        "testkit/src/lib.rs",
        "tools/src/main.rs",
        "tools/xtask/src/main.rs",
    ];
    let lax = roots.iter().filter(|name| !source(root().join(name)).text.contains(law));
    assert_none(&lax.map(|name| format!("{name}: add {law}")).collect::<Vec<_>>());
}

#[test]
fn every_package_inherits_the_settings_of_the_workspace() {
    let mut breaches = Vec::new();
    for package in metadata()["packages"].as_array().expect("cargo lists packages") {
        if package["source"] != Value::Null {
            continue;
        }
        let manifest = source(PathBuf::from(package["manifest_path"].as_str().expect("it is a path")));
        for (law, remedy) in [
            ("[lints]\nworkspace = true", "inherit the lints"),
            ("edition.workspace = true", "inherit the edition"),
            ("license.workspace = true", "inherit the licence"),
        ] {
            if !manifest.text.contains(law) {
                breaches.push(format!("{}: {remedy}: {}", manifest.name, law.replace('\n', " ")));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn dependencies_point_one_way() {
    let allowed = |package: &str| match package {
        "blockhaul-engine" | "blockhaul-testkit" | "xtask" => &[][..],
        "blockhaul-hooks" | "blockhaul-bench" => &["blockhaul-engine"],
        "blockhaul-control" => &["blockhaul-engine", "blockhaul-hooks"],
        "blockhaul-tools" => &["blockhaul-engine", "blockhaul-hooks", "blockhaul-control"],
        other => panic!("say in tidy.rs what {other} may depend on"),
    };
    let metadata = metadata();
    let mut breaches = Vec::new();
    for package in metadata["packages"].as_array().expect("cargo lists packages") {
        let name = package["name"].as_str().expect("it is a name");
        if package["source"] != Value::Null {
            continue;
        }
        for dependency in package["dependencies"].as_array().expect("cargo lists dependencies") {
            let needed = dependency["name"].as_str().expect("it is a name");
            let is_for_tests = needed == "blockhaul-testkit" && dependency["kind"] == "dev";
            if dependency["path"].is_string() && !is_for_tests && !allowed(name).contains(&needed) {
                breaches.push(format!("{name} depends on {needed}: the missing third is usually a type"));
            }
        }
    }
    assert_none(&breaches);
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]);
    let output = command.current_dir(root()).output().expect("cargo runs, as it runs this test");
    assert!(output.status.success(), "commit Cargo.lock: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

#[test]
fn the_error_codes_are_the_published_ones() {
    let mut published: Vec<&str> = ERROR_CODES.split_whitespace().collect();
    let mut built: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    published.sort_unstable();
    built.sort_unstable();
    assert_eq!(built, published, "a code is a promise to scripts: add it to both, never rename it");
    let readme = source(root().join("README.md")).text;
    let missing = published.iter().filter(|code| !readme.contains(&format!("`{code}`")));
    assert_none(&missing.map(|code| format!("README.md does not name {code}")).collect::<Vec<_>>());
}

#[test]
fn the_licence_texts_are_there() {
    for (name, opening) in [("LICENSE-APACHE", "Apache License"), ("LICENSE-MIT", "MIT License")] {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("read {name}: {error}"));
        assert!(text.trim_start().starts_with(opening), "{name} holds another text");
    }
}
