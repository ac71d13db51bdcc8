//! Generates files of packages from the declarations of the command lines: manual pages, and the configuration file of
//! `taskd`. `cargo xtask man` and `cargo xtask package` call it.

mod config;
mod manual;

use crate::args::RawGenerate;
use crate::exit::Exit;
use crate::output;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;

/// Writes the files, or prints the one file.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn run(raw: RawGenerate) -> Result<Exit> {
    match raw {
        RawGenerate::Man { folder } => manual::write_pages(&folder).map_err(|error| {
            Error::io(Side::Caller, Operation::Write, &error, format!("write manual pages to {}", folder.shown()))
        })?,
        RawGenerate::Config => output::print_stdout_text(config::text().into_bytes()),
    }
    Ok(Exit::Done)
}
