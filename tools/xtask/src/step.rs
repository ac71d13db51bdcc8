//! Runs the steps of a command: shows their output, times them, and counts their tests.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Result of a step or command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All steps succeeded.
    Passed,
    /// A step failed.
    Failed,
}

impl Verdict {
    fn of(status: ExitStatus) -> Self {
        if status.success() { Self::Passed } else { Self::Failed }
    }
}

/// Tests passed and failed so far. A step without tests counts as one.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    failed_steps: Vec<String>,
}

/// Program that is run as a step.
#[derive(Debug)]
pub(crate) struct Step {
    /// Name of the step.
    pub(crate) title: String,
    /// The program.
    pub(crate) command: Command,
}

impl Tally {
    /// Runs a step, shows its output at once, and counts its tests.
    pub(crate) fn run(&mut self, title: &str, command: &mut Command) -> Verdict {
        println!("\n== {title}");
        let start = Instant::now();
        let ended = run_counted(command);
        self.conclude_step(title, start, ended)
    }

    /// As [`Tally::run`], with the output of the step in a file.
    pub(crate) fn run_into(&mut self, title: &str, command: &mut Command, file: File) -> Verdict {
        println!("\n== {title}");
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).stdout(file).status();
        let ended = status.map(|status| (Verdict::of(status), Tests::default()));
        self.conclude_step(title, start, ended)
    }

    /// Runs steps side by side, at most `lanes` at once, and begins them in their order. Shows the output of each when it
    /// has ended.
    pub(crate) fn run_beside(&mut self, steps: Vec<Step>, lanes: usize) {
        let (steps, tally) = (Mutex::new(VecDeque::from(steps)), Mutex::new(self));
        let next = || steps.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let lane = || {
            while let Some(Step { title, command }) = next() {
                println!("== {title}: begun");
                let start = Instant::now();
                let ended = run_quietly(command);
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                println!("\n== {title}");
                let ended = ended.map(|(verdict, tests, output)| {
                    print!("{output}");
                    (verdict, tests)
                });
                tally.conclude_step(&title, start, ended);
            }
        };
        std::thread::scope(|scope| (0..lanes).for_each(|_| _ = scope.spawn(lane)));
    }

    fn conclude_step(&mut self, title: &str, start: Instant, ended: std::io::Result<(Verdict, Tests)>) -> Verdict {
        let (verdict, tests) = ended.unwrap_or_else(|error| {
            println!("cannot run: {error}");
            (Verdict::Failed, Tests::default())
        });
        let seconds = start.elapsed().as_secs_f64();
        self.count(title, verdict, tests);
        let word = if verdict == Verdict::Passed { "ok" } else { "FAILED" };
        println!("== {title}: {word} in {seconds:.1} s");
        verdict
    }

    fn count(&mut self, title: &str, verdict: Verdict, tests: Tests) {
        self.passed += tests.passed;
        self.failed += tests.failed;
        match verdict {
            Verdict::Passed if tests == Tests::default() => self.passed += 1,
            Verdict::Passed => {}
            Verdict::Failed => {
                // A step can fail without a failed test: it did not compile, or was killed.
                self.failed += u64::from(tests.failed == 0);
                self.failed_steps.push(title.to_owned());
            }
        }
    }

    /// Prints the last line, `N passed, N failed`, and returns the result.
    pub(crate) fn conclude(&self) -> Verdict {
        println!();
        for title in &self.failed_steps {
            println!("failed: {title}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed_steps.is_empty() { Verdict::Passed } else { Verdict::Failed }
    }
}

/// Number of tests that a program reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tests {
    passed: u64,
    failed: u64,
}

impl Tests {
    /// Adds the counts of a line such as `test result: ok. 12 passed; 0 failed; 0 ignored; ...`.
    fn add_line(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            match (pair[0].parse::<u64>(), pair[1]) {
                (Ok(count), "passed") => self.passed += count,
                (Ok(count), "failed") => self.failed += count,
                _ => {}
            }
        }
    }
}

/// Shows stdout line by line and counts the tests; stderr passes through.
fn run_counted(command: &mut Command) -> std::io::Result<(Verdict, Tests)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut tests = Tests::default();
    let stdout = child.stdout.take().expect("it was asked for");
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        tests.add_line(&line);
    }
    Ok((Verdict::of(child.wait()?), tests))
}

/// Returns what the program printed, stdout and stderr in one order, with the number of its tests.
fn run_quietly(mut command: Command) -> std::io::Result<(Verdict, Tests, String)> {
    let (mut output, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // Its ends of the pipe: the output ends with the child.
    drop(command);
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut tests = Tests::default();
    text.lines().for_each(|line| tests.add_line(line));
    Ok((Verdict::of(child.wait()?), tests, text))
}

/// Returns `cargo` with these arguments, at the root of the workspace.
///
/// Removes the variables that cargo set for this program: build scripts that read them would see a change against a
/// build from a shell, and half of the dependencies would be rebuilt.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    for (name, _) in std::env::vars_os() {
        let told =
            name.to_str().is_some_and(|name| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_"));
        if told {
            command.env_remove(name);
        }
    }
    command
}

/// Returns the root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("xtask lives two levels below the root")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_tests_of_a_step_are_counted() {
        let mut tally = Tally::default();
        tally.run("tests", &mut shell("echo 'test result: ok. 12 passed; 0 failed; 1 ignored; finished in 0.1s'"));
        tally.run("check", &mut shell("echo fine"));
        assert_eq!((tally.passed, tally.failed, tally.conclude()), (13, 0, Verdict::Passed));
    }

    #[test]
    fn a_step_that_fails_counts_even_without_a_failing_test() {
        let mut tally = Tally::default();
        tally.run("tests", &mut shell("echo 'test result: FAILED. 3 passed; 2 failed; 0 ignored'; exit 101"));
        tally.run("build", &mut shell("exit 1"));
        tally.run("missing", &mut Command::new("no-such-program-anywhere"));
        assert_eq!((tally.passed, tally.failed, tally.conclude()), (3, 4, Verdict::Failed));
        assert_eq!(tally.failed_steps, ["tests", "build", "missing"]);
    }

    #[test]
    fn steps_side_by_side_are_all_run_and_counted() {
        let step = |number: usize| {
            let script =
                format!("echo 'test result: ok. {number} passed; 0 failed'; echo said >&2; exit $(({number} == 3))");
            Step { title: format!("step {number}"), command: shell(&script) }
        };
        let mut tally = Tally::default();
        tally.run_beside((1..=5).map(step).collect(), 2);
        assert_eq!((tally.passed, tally.failed), (15, 1));
        assert_eq!(tally.failed_steps, ["step 3"]);
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(std::fs::read_to_string(root().join("Cargo.toml")).unwrap().contains("[workspace]"));
    }
}
