//! Runs the program in a directory of its own and reads its results.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use tempfile::TempDir;

/// A folder for volumes, and one for results. Both go away with it.
pub(crate) struct TestDir(TempDir);

impl TestDir {
    pub(crate) fn new() -> Self {
        // Next to the build, as the usual temporary directory is often memory: no direct I/O, little dir.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build directory can be written");
        fs::create_dir(dir.path().join("volumes")).expect("a new folder is empty");
        Self(dir)
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.0.path().join("volumes")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program, with tiny volumes here.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        build_ours();
        let mut command = Command::new(env!("CARGO_BIN_EXE_copy-bench"));
        command.arg("--tiny").args(words).arg("--dir").arg(self.volumes()).arg("--out").arg(self.out());
        // Under cargo it would have cargo build things, while cargo tests.
        command.env_remove("CARGO").env_remove("CARGO_MANIFEST_DIR").stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program was just built")
    }

    pub(crate) fn results(&self) -> Value {
        let text = fs::read_to_string(self.out().join("results.json")).expect("a run leaves results");
        serde_json::from_str(&text).expect("they are JSON")
    }
}

/// What a scenario's target came to.
pub(crate) fn target<'a>(results: &'a Value, scenario: &str, target: &str) -> &'a Value {
    let targets = scenario_of(results, scenario)["targets"].as_array().expect("a list");
    let found = targets.iter().find(|it| it["name"] == target);
    found.unwrap_or_else(|| panic!("no {target} in {targets:#?}"))
}

pub(crate) fn scenario_of<'a>(results: &'a Value, name: &str) -> &'a Value {
    let scenarios = results["scenarios"].as_array().expect("a list");
    scenarios.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where a program is; real ones are installed by the test command.
pub(crate) fn real(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not here: cargo xtask test installs it"))
}

/// The command and the bare loop belong beside the program; a test of this package alone does not build them.
fn build_ours() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_copy-bench")).parent().expect("it lies in a folder");
        let loops = fs::read_dir(folder.join("deps")).into_iter().flatten().flatten();
        // Without an extension it is the program; checks leave other files of that name.
        let is_loop = |path: &Path| {
            path.extension().is_none()
                && path.file_name().unwrap_or_default().to_string_lossy().starts_with("bare_loop-")
        };
        let has_loop = loops.into_iter().any(|entry| is_loop(&entry.path()));
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = |words: &[&str]| {
            let status = Command::new(&cargo).arg("build").args(words).status().expect("cargo runs, as it runs this");
            assert!(status.success(), "cargo build {} failed", words.join(" "));
        };
        if !folder.join("blockhaul").is_file() {
            build(&["--package", "blockhaul-tools", "--bin", "blockhaul"]);
        }
        if !has_loop {
            build(&["--package", "blockhaul-engine", "--bench", "bare_loop"]);
        }
    });
}
