//! `blockhaul`: copies and compares volumes, examines them and this host, and calls task centers.
//!
//! A command resolves its raw flags, calls the engine or a center, and returns how the process ends. Errors from before
//! a job exists are printed here, once.

#![forbid(unsafe_code)]

mod args;
mod batch;
mod center;
mod completion;
mod copy;
mod doctor;
mod dry_run;
mod exit;
mod generate;
mod image;
mod inspect;
mod log_args;
mod map;
mod output;
mod progress;
mod retry_command;
mod signals;
mod state_dir;
mod suggestions;
mod summary;
mod verify;

use args::{Cli, Command};
use blockhaul_control::standard_streams::{LogWriter, log_fields};
use blockhaul_engine::error::{Error, Result};
use clap::Parser;
use clap::error::ErrorKind;
use exit::Exit;
use log_args::RawLog;
use output::RefusalForm;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    if completion::answer() {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let exit = match Cli::try_parse_from(&arguments) {
        Ok(Cli { command }) => run(command, &arguments).unwrap_or_else(|error| {
            output::report_refusal(RefusalForm::of(&arguments), &error);
            Exit::from(&error)
        }),
        Err(error) => usage(&error, &arguments),
    };
    output::finish(exit).into()
}

fn run(command: Command, arguments: &[OsString]) -> Result<Exit> {
    match command {
        Command::Copy(raw) => copy::run(*raw, arguments),
        Command::Verify(raw) => verify::run(raw),
        Command::Batch(raw) => batch::run(raw),
        Command::Map(raw) => map::run(raw),
        Command::Inspect(raw) => inspect::run(raw),
        Command::Doctor(raw) => doctor::run(raw),
        Command::Submit(raw) => center::submit(*raw),
        Command::Get(raw) => center::get(raw),
        Command::Events(raw) => center::events(raw),
        Command::Watch(raw) => center::watch(raw),
        Command::Logs(raw) => center::logs(raw),
        Command::Retry(raw) => center::retry(raw),
        Command::Cancel(raw) => center::cancel(raw),
        Command::Pause(raw) => center::pause(raw),
        Command::Resume(raw) => center::resume(raw),
        Command::Remove(raw) => center::remove(raw),
        Command::Set(raw) => center::set(raw),
        Command::Move(raw) => center::move_task(raw),
        Command::List(raw) => center::list(raw),
        Command::Schedule(raw) => center::schedule(*raw),
        Command::Runners(raw) => center::runners(raw),
        Command::Include(raw) => center::include(raw),
        Command::Drain(raw) => center::drain(raw),
        Command::Fence(raw) => center::fence(raw),
        Command::Center(raw) => center::center(*raw),
        Command::Completions(raw) => completion::run(raw),
        Command::Generate(raw) => generate::run(raw),
    }
}

/// Prints help and version; reports everything else from the parser as a malformed request.
fn usage(error: &clap::Error, arguments: &[OsString]) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed pipe is fine.
        let _ = error.print();
        return Exit::Done;
    }
    let text = error.render().to_string();
    let (message, hints) = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => ("no command given", text.as_str()),
        _ => text.split_once("\n\n").unwrap_or((&text, "")),
    };
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let refusal = Error::bad_request(message.strip_prefix("error: ").unwrap_or(&message));
    output::report_refusal(RefusalForm::of(arguments), &refusal);
    let hints = match suggestions::instead_of(error, arguments) {
        // What is spelled similarly would only distract from it.
        Some(tip) => format!("  tip: {tip}\n\n{}", hints.find("Usage:").map_or("", |at| &hints[at..])),
        None => hints.to_owned(),
    };
    if !hints.trim().is_empty() {
        output::print_stderr_hint(hints.trim_end());
    }
    Exit::from(&refusal)
}

/// Starts logging to stderr with the filter of the flags, of `$RUST_LOG`, or warnings.
fn start_logging(raw: RawLog) -> Result<()> {
    if raw.quiet {
        output::be_quiet();
    }
    let filter = raw.directives();
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    let filter = match filter {
        Some(text) => builder
            .parse(&text)
            .map_err(|error| Error::bad_request(format!("invalid --log filter '{text}': {error}")))?,
        None => builder.from_env_lossy(),
    };
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(LogWriter::default);
    log.fmt_fields(log_fields()).init();
    Ok(())
}
