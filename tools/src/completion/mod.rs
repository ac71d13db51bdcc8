//! Completes command lines: prints the scripts of the shells, and answers their questions.
//!
//! The script of `blockhaul` calls `blockhaul` itself, with [`VARIABLE`] set, for each completion. So a script never
//! grows old, and names of tasks, nodes and schedules come from the center ([`center`]). That of `taskd`, which knows flags
//! only, holds everything. Whatever fails while a line is completed is no completion: nothing is printed on stderr.

pub(crate) mod center;

use crate::args::{Cli, RawCompletions, ShellName};
use crate::exit::Exit;
use crate::output;
use blockhaul_control::config::RawConfig;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use clap::CommandFactory;
use clap_complete::aot;
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Zsh};

/// Names the shell that asks for completions; set by the script for its call alone.
const VARIABLE: &str = "BLOCKHAUL_COMPLETE";

/// Program whose lines are completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Program {
    Blockhaul,
    Taskd,
}

/// Answers a shell that asks for completions; returns whether one did.
pub(crate) fn answer() -> bool {
    let folder = std::env::current_dir().ok();
    let asked = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    // A line that cannot be completed is left as it is.
    asked.try_complete(std::env::args_os(), folder.as_deref()).unwrap_or(true)
}

/// Prints the script of a shell.
///
/// # Errors
/// The script cannot be built, which is a defect.
pub(crate) fn run(RawCompletions { shell, program }: RawCompletions) -> Result<Exit> {
    let script = match program {
        Program::Blockhaul => dynamic(shell)
            .map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "build the completion script"))?,
        Program::Taskd => fixed(shell),
    };
    output::print_stdout_text(script);
    Ok(Exit::Done)
}

/// Returns the script that calls `blockhaul`, found on the `PATH`.
fn dynamic(shell: ShellName) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let mut register = |shell: &dyn EnvCompleter| {
        shell.write_registration(VARIABLE, "blockhaul", "blockhaul", "blockhaul", &mut script)
    };
    match shell {
        ShellName::Bash => register(&Bash)?,
        ShellName::Fish => register(&Fish)?,
        ShellName::Zsh => {
            register(&Zsh)?;
            // As a file of $fpath it runs as a function when the first line is completed, and has to complete that one, too.
            script.extend_from_slice(
                b"if [[ ${funcstack[1]} == _blockhaul ]]; then\n    _clap_dynamic_completer_blockhaul \"$@\"\nfi\n",
            );
        }
    }
    Ok(script)
}

fn fixed(shell: ShellName) -> Vec<u8> {
    let mut script = Vec::new();
    let shell = match shell {
        ShellName::Bash => aot::Shell::Bash,
        ShellName::Zsh => aot::Shell::Zsh,
        ShellName::Fish => aot::Shell::Fish,
    };
    aot::generate(shell, &mut RawConfig::command(), "taskd", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_of_zsh_calls_the_function_that_it_defines() {
        let script = String::from_utf8(dynamic(ShellName::Zsh).unwrap()).unwrap();
        assert!(script.starts_with("#compdef blockhaul\n"), "{script}");
        assert!(script.contains("function _clap_dynamic_completer_blockhaul()"), "{script}");
    }

    #[test]
    fn each_script_names_its_program_and_no_path() {
        for shell in [ShellName::Bash, ShellName::Zsh, ShellName::Fish] {
            let script = String::from_utf8(dynamic(shell).unwrap()).unwrap();
            assert!(script.contains(&format!("{VARIABLE}=")) && !script.contains("/blockhaul"), "{script}");
            let script = String::from_utf8(fixed(shell)).unwrap();
            assert!(script.contains("taskd") && script.contains("allow-path"), "{script}");
        }
    }
}
