//! Runs `taskd`: the daemon that puts the engine behind a task center.
//!
//! This thread owns the node: it starts the node, waits, and alone ends the process. The node runs on a runtime of its
//! own. So even if something hangs there, a process that is asked to stop ends within 20 s.
#![forbid(unsafe_code)]

mod logging;

use blockhaul_control::config::RawConfig;
use blockhaul_control::node::{Node, NodeHandle, Stop};
use blockhaul_control::standard_streams::{self, Priority};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::resource_check::{RUNTIME_DESCRIPTORS, require_descriptors, require_threads};
use blockhaul_engine::shown::line;
use clap::Parser;
use logging::Logging;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

/// Threads of the runtime besides one for each core: for names, files and the store, when all of these are used at
/// once.
const BLOCKING_THREADS: usize = 4;
/// Longest time from the first signal to the end of the process: all stages of a stop, and what comes after them.
const STOP_MAX: Duration = Duration::from_millis(18_500);
const _: () = assert!(STOP_MAX.as_millis() > blockhaul_control::node::STOP_MAX.as_millis());
const _: () = assert!(STOP_MAX.as_millis() + standard_streams::AFTER_STOP_MAX.as_millis() < 20_000);
/// Longest time from the second signal: for what outlives the process if it is left undone.
const FAST_STOP_MAX: Duration = Duration::from_secs(2);

/// Event that the owner waits for.
enum Event {
    /// This signal has arrived.
    Signal(i32),
    /// The node has ended.
    Ended(Result<()>),
}

/// Reports that the node has ended, even if its thread panics.
struct NodeEndReporter(Sender<Event>, Option<Result<()>>);

impl Drop for NodeEndReporter {
    fn drop(&mut self) {
        let silent = || Err(Error::internal(Operation::Stop, "the node has ended without a result"));
        // The owner may have given up waiting.
        let _ = self.0.send(Event::Ended(self.1.take().unwrap_or_else(silent)));
    }
}

fn main() -> ExitCode {
    // First of all: what arrives from here on is kept, whatever takes how long.
    let (events, seen) = channel();
    let caught = catch_signals(events.clone());
    let code = match caught.and_then(|()| start(events, &seen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { error, is_usage }) => {
            standard_streams::to_stderr(Priority::Result, format_args!("taskd: {}", line(error)));
            ExitCode::from(if is_usage { 2 } else { 1 })
        }
    };
    standard_streams::stop();
    // Whoever should read the last lines may be gone, which is no reason to stay.
    let _ = standard_streams::stderr().settle();
    code
}

/// Failure that makes the process exit with another code than 0.
struct Failure {
    error: Error,
    /// Whether it is a usage error; nothing has been changed.
    is_usage: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, is_usage: false }
    }
}

impl Failure {
    fn of_usage(error: Error) -> Self {
        let is_usage = error.code == Code::BadRequest;
        Self { error, is_usage }
    }
}

/// Starts a thread that waits for signals and wakes the owner.
fn catch_signals(events: Sender<Event>) -> std::result::Result<(), Failure> {
    let failed = |error: std::io::Error, what| Error::io(Side::Engine, Operation::Start, &error, what);
    // A handler that does nothing, so that a write past the limit on the size of files fails instead of killing.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(|error| failed(error, "catch signals"))?;
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1]).map_err(|error| failed(error, "catch signals"))?;
    let mut forward = move || signals.forever().map(Event::Signal).all(|event| events.send(event).is_ok());
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || _ = forward());
    thread.map_err(|error| failed(error, "start the signal thread"))?;
    Ok(())
}

fn start(events: Sender<Event>, seen: &Receiver<Event>) -> std::result::Result<(), Failure> {
    let raw = RawConfig::parse().with_file().map_err(Failure::of_usage)?;
    let node = NodeHandle::default();
    let logging = Logging::start(raw.log.as_deref(), node.attempt_logs()).map_err(Failure::of_usage)?;
    require_descriptors(RUNTIME_DESCRIPTORS, "start a runtime")?;
    require_threads(available_parallelism().map_or(1, NonZero::get) + BLOCKING_THREADS, "start a runtime")?;
    let runtime = Builder::new_multi_thread().enable_all().thread_name("taskd").build();
    let runtime = runtime.map_err(|error| Error::io(Side::Engine, Operation::Start, &error, "start a runtime"))?;
    let handle = node.clone();
    let (resolved, config) = channel();
    runtime.spawn(async move {
        let mut reporter = NodeEndReporter(events, None);
        // Names are looked up here, which may take longer than a signal may wait.
        let looked_up = tokio::task::spawn_blocking(move || raw.resolve(|name| std::env::var_os(name))).await;
        let config = looked_up.unwrap_or_else(|error| Err(Error::internal(Operation::Parse, error.to_string())));
        let _ = resolved.send(config.is_ok());
        reporter.1 = Some(match config {
            Ok(config) => Node::with_handle(config, handle).run_to_end().await,
            Err(error) => Err(error),
        });
    });
    let result = own(seen, &node, &logging);
    // It ends with the process: dropping it could wait for what hangs.
    std::mem::forget(runtime);
    let is_resolved = config.try_recv().unwrap_or(true);
    result.map_err(|error| if is_resolved { error.into() } else { Failure::of_usage(error) })
}

/// Waits for the node's end: bounded after the first request to stop, briefly after the second.
fn own(events: &Receiver<Event>, node: &NodeHandle, logging: &Logging) -> Result<()> {
    let mut deadline: Option<Instant> = None;
    let mut signals: Vec<&str> = Vec::new();
    loop {
        let left =
            deadline.map_or(Duration::from_secs(3600), |deadline| deadline.saturating_duration_since(Instant::now()));
        match events.recv_timeout(left) {
            Ok(Event::Ended(result)) => {
                match &result {
                    Err(error) => node.end_run("failed", error.to_string()),
                    Ok(()) if signals.len() > 1 => node.end_run("stopped-at-once", signals.join(", ")),
                    Ok(()) => node.end_run("stopped", signals.join(", ")),
                }
                return result;
            }
            Ok(Event::Signal(SIGHUP)) => reload(node, logging),
            Ok(Event::Signal(SIGQUIT | SIGUSR1)) => {
                tracing::warn!(state = %node.state(), "state, as asked by a signal")
            }
            Ok(Event::Signal(signal)) if deadline.is_none() => {
                signals.push(name_of(signal));
                deadline = Some(Instant::now() + STOP_MAX);
                node.stopper().stop(Stop::Drained);
            }
            Ok(Event::Signal(signal)) => {
                signals.push(name_of(signal));
                tracing::warn!(
                    "stopping at once after a second signal: tasks that were not returned are reassigned when the session expires"
                );
                deadline = deadline.min(Some(Instant::now() + FAST_STOP_MAX));
                node.stopper().stop(Stop::Fast);
            }
            Err(RecvTimeoutError::Timeout) if deadline.is_some() => {
                tracing::error!("not stopped in time: exiting");
                node.end_run("stop-timed-out", signals.join(", "));
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::internal(Operation::Stop, "the node has ended without a result"));
            }
        }
    }
}

/// Returns the name of a signal that asks for a stop.
fn name_of(signal: i32) -> &'static str {
    if signal == SIGINT { "SIGINT" } else { "SIGTERM" }
}

/// Reads the file of `--config`, the certificates, the roles and the order keys again. Invalid settings change nothing.
fn reload(node: &NodeHandle, logging: &Logging) {
    node.read_certificates();
    node.read_roles();
    node.read_order_keys();
    let read = || -> Result<()> {
        let raw = RawConfig::try_parse().map_err(|error| Error::bad_request(error.to_string()))?.with_file()?;
        let limits = raw.limits()?;
        logging.change(raw.log.as_deref())?;
        if !node.limit(limits) {
            tracing::warn!("still starting: limits unchanged");
        }
        Ok(())
    };
    match read() {
        Ok(()) => tracing::info!("limits and log level reloaded"),
        Err(error) => tracing::error!(%error, "cannot reload: nothing changed"),
    }
}
