//! Starts a hook on a thread of its own, and lets its caller stop it.

use crate::hook::Hook;
use crate::limits::GRACE_MAX;
use crate::order::{HOOK_GRACE, HookOrder};
use crate::outcome::HookReport;
use crate::output::FirstOutput;
use crate::state_folder::HookStateFolder;
use crate::stop_request::StopRequest;
use crate::subreaper::Subreaper;
use crate::supervisor::Supervision;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What is told about a run: `Ended` once, and then `Gone` once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookEvent {
    /// The run has ended, with this result. No process of it is left but the survivors that the report names.
    Ended(HookReport),
    /// No process of the run is left, and its working folder is removed. The hook may be run again.
    Gone,
}

/// A hook that runs. Dropping it ends the hook as [`stop`](Self::stop) with the default grace does.
#[derive(Debug)]
pub struct HookHandle {
    stop: Arc<StopRequest>,
    output: Arc<FirstOutput>,
}

impl HookHandle {
    /// Starts `hook` as `order` says. `on_event` is called twice on the hook's own thread: it must not block and must not
    /// panic. To send into a channel fits both threads and async code.
    ///
    /// A hook that cannot be started has ended with that error.
    ///
    /// # Errors
    /// `EOverloaded` and others of the system, if there is no descriptor or no thread for it: nothing was done then, and
    /// `on_event` is not called.
    pub fn start(
        _: Subreaper,
        hook: Hook,
        order: HookOrder,
        state: &HookStateFolder,
        on_event: impl FnMut(HookEvent) + Send + 'static,
    ) -> Result<Self> {
        let what = format!("supervise hook {}", hook.name());
        let stop = StopRequest::new().map_err(|errno| Error::os(Side::Engine, Operation::Start, errno, &what))?;
        let stop = Arc::new(stop);
        let output = Arc::new(FirstOutput::default());
        let (of_run, of_output) = (Arc::clone(&stop), Arc::clone(&output));
        let supervision = Supervision { hook, order, state: state.clone(), stop: of_run, first_output: of_output };
        let span = tracing::Span::current();
        let mut on_event = on_event;
        // The new process is named after this thread until it executes the hook, and its record holds that name.
        let thread = thread::Builder::new().name(String::from("hook"));
        thread
            .spawn(move || span.in_scope(|| supervision.run(&mut on_event)))
            .map_err(|error| Error::io(Side::Engine, Operation::Start, &error, &what))?;
        Ok(Self { stop, output })
    }

    /// Returns what the hook has written so far, from this position on: of its first 6,000 bytes. The bytes are foreign:
    /// escape them before they are shown.
    #[must_use]
    pub fn first_output(&self, from: usize) -> Vec<u8> {
        self.output.from(from)
    }

    /// Ends the hook: sends SIGTERM to every process of it, and after `grace` (at most a day) SIGKILL to those that are left.
    /// Returns at once. Of several calls the one with the earliest end of its grace holds.
    pub fn stop(&self, grace: Duration) {
        self.stop.set(Instant::now() + grace.min(GRACE_MAX));
    }
}

impl Drop for HookHandle {
    fn drop(&mut self) {
        self.stop(HOOK_GRACE);
    }
}
