//! Writes the log of the process to stderr, with a filter that can be changed while it runs.

use blockhaul_control::standard_streams::{LogWriter, log_fields};
use blockhaul_engine::error::{Error, Result};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Changes the filter of the log.
pub(crate) struct Logging(Box<dyn Fn(EnvFilter) -> Result<()>>);

impl Logging {
    /// Starts logging with the filter of `--log`, else `$RUST_LOG`, else `info`.
    pub(crate) fn start(wanted: Option<&str>) -> Result<Self> {
        let colours = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_ansi(colours).with_writer(LogWriter::default);
        let log = log.fmt_fields(log_fields()).with_env_filter(filter(wanted)?).with_filter_reloading();
        let reloading = log.reload_handle();
        log.init();
        let change = move |filter| {
            let changed = reloading.reload(filter);
            changed.map_err(|error| Error::bad_request(format!("--log cannot be changed: {error}")))
        };
        Ok(Self(Box::new(change)))
    }

    /// Changes the filter.
    pub(crate) fn change(&self, wanted: Option<&str>) -> Result<()> {
        (self.0)(filter(wanted)?)
    }
}

fn filter(wanted: Option<&str>) -> Result<EnvFilter> {
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let Some(text) = wanted else { return Ok(builder.from_env_lossy()) };
    builder.parse(text).map_err(|error| Error::bad_request(format!("--log '{text}': invalid filter: {error}")))
}
