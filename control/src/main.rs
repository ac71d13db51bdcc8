//! `taskd`: the daemon that puts the engine behind a task center.
//!
//! This thread owns the server: it starts it, waits, and is the only one that ends the process. The server lives on a
//! runtime of its own, so whatever hangs there, a process that is asked to stop has ended within 20 s.
#![forbid(unsafe_code)]

use blockhaul_control::config::RawConfig;
use blockhaul_control::server::{Server, Stop, Stopper};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// From the first signal to the end of the process, at most.
const STOP_MAX: Duration = Duration::from_secs(19);

/// What the owner waits for.
enum Event {
    /// A signal has arrived.
    Signal,
    /// The server has ended.
    Ended(Result<()>),
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taskd: {error}");
            ExitCode::from(if error.code == Code::BadRequest { 2 } else { 1 })
        }
    }
}

fn start() -> Result<()> {
    let raw = RawConfig::parse().with_file()?;
    start_logging(raw.log.as_deref())?;
    let failed = |error: &std::io::Error, what| Error::io(Side::Engine, Operation::Start, error, what);
    let runtime = Builder::new_multi_thread().enable_all().thread_name("taskd").build();
    let runtime = runtime.map_err(|error| failed(&error, "start a runtime"))?;
    let (events, seen) = channel();
    {
        let _inside = runtime.enter();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let caught = signal(kind).map_err(|error| failed(&error, "catch SIGTERM and SIGINT"))?;
            runtime.spawn(forward(caught, events.clone()));
        }
    }
    let server = Server::new(raw.resolve(|name| std::env::var_os(name))?);
    let stopper = server.stopper();
    let ended = events.clone();
    runtime.spawn(async move {
        let result = server.live().await;
        // The owner may have given up waiting.
        let _ = ended.send(Event::Ended(result));
    });
    let result = own(&seen, &stopper);
    runtime.shutdown_background();
    result
}

/// Signals do nothing but wake the owner.
async fn forward(mut caught: Signal, events: Sender<Event>) {
    while caught.recv().await.is_some() && events.send(Event::Signal).is_ok() {}
}

/// Waits for the server's end; asked to stop, only for so long; asked again, not at all.
fn own(events: &Receiver<Event>, stopper: &Stopper) -> Result<()> {
    let mut deadline: Option<Instant> = None;
    loop {
        let left =
            deadline.map_or(Duration::from_secs(3600), |deadline| deadline.saturating_duration_since(Instant::now()));
        match events.recv_timeout(left) {
            Ok(Event::Ended(result)) => return result,
            Ok(Event::Signal) if deadline.is_none() => {
                deadline = Some(Instant::now() + STOP_MAX);
                stopper.stop(Stop::Drained);
            }
            Ok(Event::Signal) => {
                tracing::warn!(
                    "asked twice: ends at once; what is not given back is taken over when the session expires"
                );
                stopper.stop(Stop::Fast);
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) if deadline.is_some() => {
                tracing::error!("not stopped within {} s: ends as it is", STOP_MAX.as_secs());
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::internal(Operation::Stop, "the server has ended without a word"));
            }
        }
    }
}

/// Logs to stderr: `--log`, else `$RUST_LOG`, else what happens at all.
fn start_logging(filter: Option<&str>) -> Result<()> {
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let filter = match filter {
        Some(text) => {
            builder.parse(text).map_err(|error| Error::bad_request(format!("--log '{text}' is no filter: {error}")))?
        }
        None => builder.from_env_lossy(),
    };
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    Ok(())
}
