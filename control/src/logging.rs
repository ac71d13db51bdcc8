//! Writes the log of the process to stderr, with a filter that can be changed while it runs, and what attempts log to their
//! own logs, whatever that filter is.

use blockhaul_control::attempt_log::AttemptLogs;
use blockhaul_control::standard_streams::{LogWriter, log_fields};
use blockhaul_engine::error::{Error, Result};
use std::io::IsTerminal;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry, reload};

/// Changes the filter of the log.
pub(crate) struct Logging(Box<dyn Fn(EnvFilter) -> Result<()>>);

impl Logging {
    /// Starts logging with the filter of `--log`, else `$RUST_LOG`, else `info`.
    pub(crate) fn start(wanted: Option<&str>, attempt_logs: &AttemptLogs) -> Result<Self> {
        let colours = std::io::stderr().is_terminal();
        let (filter, reloading) = reload::Layer::new(filter(wanted)?);
        let log = fmt::layer().with_ansi(colours).with_writer(LogWriter::default).fmt_fields(log_fields());
        let of_attempts = attempt_logs.layer().with_filter(LevelFilter::INFO);
        registry().with(log.with_filter(filter)).with(of_attempts).init();
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
