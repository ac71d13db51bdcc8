//! Reads the two runs of a comparison and finds the differences between them as a whole.

use crate::results::{Host, Results, SCHEMA, Warning};
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the results file in the directory of a run.
const FILE: &str = "results.json";

/// Results that cannot be used.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// The file cannot be read.
    Read(PathBuf, io::Error),
    /// The file is not a results file.
    Parse(PathBuf, serde_json::Error),
    /// The file has another schema.
    Schema(PathBuf, u32),
}

impl Display for LoadError {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => {
                write!(out, "read {}: {error}; pass a {FILE} or the directory of a run", path.display())
            }
            Self::Parse(path, error) => {
                write!(out, "{}is not a results file: {error}; pass the {FILE} of a run", path.display())
            }
            Self::Schema(path, schema) => write!(
                out,
                "{} has schema {schema}, but this program reads {SCHEMA}; use the copy-bench that wrote it",
                path.display()
            ),
        }
    }
}

impl std::error::Error for LoadError {}

/// Reads results from a file, or from the results file of a directory.
pub(super) fn read(path: &Path) -> Result<Results, LoadError> {
    let path = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
    let text = fs::read(&path).map_err(|error| LoadError::Read(path.clone(), error))?;
    // The schema is checked first: another schema is not damage.
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| LoadError::Parse(path.clone(), error))?;
    let schema = value.get("schema").and_then(serde_json::Value::as_u64).and_then(|schema| u32::try_from(schema).ok());
    if let Some(schema) = schema.filter(|schema| *schema != SCHEMA) {
        return Err(LoadError::Schema(path, schema));
    }
    serde_json::from_value(value).map_err(|error| LoadError::Parse(path, error))
}

/// Returns why runs on these hosts cannot be compared, if so.
pub(super) fn incomparable_hosts(old: &Host, new: &Host) -> Option<String> {
    let facts = [
        ("the processor", old.cpu == new.cpu && old.cpus == new.cpus),
        ("the file system", old.filesystem == new.filesystem),
        ("the device", old.device == new.device),
    ];
    let other = facts.into_iter().find(|(_, same)| !same);
    other.map(|(what, _)| format!("{what} differs between the runs; run both on one machine"))
}

/// Returns the warnings about a comparison of these runs.
pub(super) fn warnings(old: &Results, new: &Results) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warning = |kind: &str, what: String, advice: &str| {
        warnings.push(Warning { kind: kind.to_owned(), what, advice: advice.to_owned() });
    };
    for (run, name) in [(old, "old"), (new, "new")] {
        if !run.run.complete {
            warning("incomplete", format!("the {name} run was interrupted"), "repeat the run");
        }
        if run.build.profile != "release" {
            warning("debug-build", format!("the {name} run measured a {} build", run.build.profile), "use --release");
        }
    }
    if old.host.kernel != new.host.kernel {
        let what = format!("the kernel was {} and is {}", old.host.kernel, new.host.kernel);
        warning("other-kernel", what, "repeat the old run on the new kernel");
    }
    for program in &new.programs {
        let (before, after) = (version(old, &program.name), program.version.as_deref());
        if before != after {
            let shown = |version: Option<&str>| version.unwrap_or("missing").to_owned();
            let what = format!("{} was '{}' and is '{}'", program.name, shown(before), shown(after));
            warning("other-rival", what, "its numbers are not used to detect a changed machine");
        }
    }
    warnings
}

/// Returns the version of a target's program; the program of `qemu-img x4` is `qemu-img`.
pub(super) fn version<'a>(results: &'a Results, target: &str) -> Option<&'a str> {
    let named = |name: &str| {
        let rest = target.strip_prefix(name);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    results.programs.iter().filter(|program| named(&program.name)).find_map(|program| program.version.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results;

    #[test]
    fn a_file_and_its_folder_are_the_same_run() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let text = serde_json::to_string(&sample_results::results(1)).expect("it can be written");
        fs::write(folder.path().join(FILE), text).expect("it can be written");
        let scenarios = |path: &Path| read(path).expect("it can be read").scenarios.len();
        assert_eq!(scenarios(folder.path()), scenarios(&folder.path().join(FILE)));
    }

    #[test]
    fn a_file_that_is_no_run_is_refused_with_advice() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let refusal = |text: &str| {
            let path = folder.path().join("odd.json");
            fs::write(&path, text).expect("it can be written");
            read(&path).expect_err("it is no run").to_string()
        };
        assert!(refusal("{").contains("not a results file"));
        assert!(refusal("{\"schema\": 1}").contains("not a results file"));
        assert!(refusal("{\"schema\": 99}").contains("schema 99"));
        let missing = read(&folder.path().join("missing")).expect_err("it is not there").to_string();
        assert!(missing.contains("missing") && missing.contains("os error 2"), "{missing}");
    }

    #[test]
    fn runs_that_differ_as_a_whole_have_warnings() {
        let (old, mut new) = (sample_results::results(1), sample_results::results(2));
        new.run.complete = false;
        new.build.profile = "debug".into();
        new.host.kernel = "Linux 7.0".into();
        let kinds: Vec<String> = warnings(&old, &new).into_iter().map(|warning| warning.kind).collect();
        assert_eq!(kinds, ["incomplete", "debug-build", "other-kernel"]);
    }

    #[test]
    fn a_target_is_known_by_the_program_in_its_name() {
        let run = sample_results::results(1);
        assert_eq!(version(&run, "qemu-img x4"), Some("qemu-img version 10.0.2"));
        assert_eq!(version(&run, "nbdcopy"), Some("nbdcopy 1.22.1"));
        assert_eq!(version(&run, "nbdcopying"), None);
        assert_eq!(version(&run, "ddrescue"), None);
    }
}
