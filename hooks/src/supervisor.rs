//! Supervises one hook on one thread: starts it, reads its output, ends it and what it has started, and reports.
//!
//! The thread waits for the end of the first process, for output, for the caller's wish to stop, and for the next time
//! at which something is due. In every turn it takes first what has ended, and acts then. It never waits for the output:
//! a process elsewhere that keeps the pipe open delays nothing.
//!
//! The kernel kills the first process when the thread that started it ends. So the thread that supervises a hook is the
//! one that starts it, and lives as long as the hook does.

use crate::first_process::FirstProcess;
use crate::handle::HookEvent;
use crate::hook::Hook;
use crate::launch::Launch;
use crate::life::{Cause, Event, Life};
use crate::limits::{ENDING_LOOK_MAX, ENDING_LOOK_MIN, READ_BYTES, READS_PER_TURN, RUNNING_LOOK};
use crate::mark::HookMark;
use crate::order::HookOrder;
use crate::outcome::{HookOutcome, HookReport, outcome};
use crate::output::{FirstOutput, HookOutput};
use crate::process::{ProcessStat, kill_group_of};
use crate::process_tree::{ProcessTree, kill};
use crate::start_failure::{StartStage, start_failure};
use crate::state_folder::{HookStateFolder, Run};
use crate::stop_request::StopRequest;
use crate::subreaper::Presence;
use blockhaul_engine::error::Result;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All that a run needs.
pub(crate) struct Supervision {
    pub(crate) hook: Hook,
    pub(crate) order: HookOrder,
    pub(crate) state: HookStateFolder,
    pub(crate) stop: Arc<StopRequest>,
    pub(crate) first_output: Arc<FirstOutput>,
}

impl Supervision {
    /// Runs the hook to its end; reports that, and then that nothing of it is left.
    pub(crate) fn run(self, on_event: &mut dyn FnMut(HookEvent)) {
        let ended =
            |outcome| HookEvent::Ended(HookReport { outcome, output: HookOutput::default(), survivors: Vec::new() });
        if self.stop.take().is_some() {
            on_event(ended(HookOutcome::Stopped));
        } else {
            match self.start() {
                Ok(running) => running.supervise(on_event),
                Err(error) => on_event(ended(HookOutcome::Failed(error))),
            }
        }
        on_event(HookEvent::Gone);
    }

    fn start(self) -> Result<Supervisor> {
        let run = self.state.begin(&self.hook, &self.order)?;
        let presence = Presence::starting();
        let failed = |stage, error: &io::Error| start_failure(&self.hook, stage, error);
        let (child, output) = self.spawn(&run).map_err(|error| {
            let stage = if run.is_recorded() { StartStage::Executing } else { StartStage::Preparing };
            failed(stage, &error)
        })?;
        let first = FirstProcess::new(child, presence)
            .map_err(|error| failed(StartStage::Preparing, &error).maybe_applied())?;
        let request = self.order.request();
        let mark = HookMark::new(&request.task, &request.node, request.attempt, request.epoch);
        let now = Instant::now();
        Ok(Supervisor {
            tree: ProcessTree::new(first.key(), mark),
            first,
            life: Life::Running { deadline: now + request.timeout, grace: request.timeout_grace },
            output: HookOutput::default(),
            pipe: Some(output),
            next_look: now + RUNNING_LOOK,
            look_wait: ENDING_LOOK_MIN,
            living: Vec::new(),
            has_failed: false,
            was_empty: false,
            supervision: self,
            run,
        })
    }

    /// Starts the first process; returns it with the reading end of its output.
    fn spawn(&self, run: &Run) -> io::Result<(Child, OwnedFd)> {
        let (output, written) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let launch = Launch {
            hook: self.hook.descriptor(),
            name: self.hook.name().as_str(),
            environment: self.order.environment(),
            working_folder: run.working_folder(),
            input: self.input()?,
            output: written,
            record: run.record(),
        };
        Ok((launch.start()?, output))
    }

    fn input(&self) -> io::Result<Stdio> {
        let input = &self.order.request().input;
        if input.is_empty() {
            return Ok(Stdio::null());
        }
        let (read, written) = pipe2(OFlag::O_CLOEXEC)?;
        // It fits into an empty pipe, so nobody has to read meanwhile.
        fcntl(&written, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if write(&written, input)? == input.len() { Ok(read.into()) } else { Err(Errno::EAGAIN.into()) }
    }
}

/// A hook that runs, or of which something is left.
struct Supervisor {
    supervision: Supervision,
    first: FirstProcess,
    tree: ProcessTree,
    life: Life,
    output: HookOutput,
    /// The output; `None` once all writers have closed it.
    pipe: Option<OwnedFd>,
    /// When the tree is looked at next.
    next_look: Instant,
    /// Wait between two looks while the hook is being ended.
    look_wait: Duration,
    /// What lived at the last look.
    living: Vec<ProcessStat>,
    /// Whether the last look failed.
    has_failed: bool,
    /// Whether the last look found nothing.
    was_empty: bool,
    /// Dropped last: it removes what a later process would find the hook by.
    run: Run,
}

impl Supervisor {
    fn supervise(mut self, on_event: &mut dyn FnMut(HookEvent)) {
        let mut has_reported = false;
        loop {
            self.wait();
            self.read_output();
            self.apply_events();
            let cause = match self.life {
                Life::Running { .. } | Life::Terminating { .. } | Life::Killing { .. } => continue,
                Life::Surviving { cause } | Life::Gone { cause } => cause,
            };
            if matches!(self.life, Life::Gone { .. }) {
                self.first.reap();
            }
            if !has_reported {
                on_event(HookEvent::Ended(self.report(cause)));
                has_reported = true;
                self.pipe = None;
            }
            if matches!(self.life, Life::Gone { .. }) {
                // The hook may run again from here on, so its files must be gone before that is told.
                drop(self.run);
                return;
            }
        }
    }

    /// Waits until something may have happened.
    fn wait(&mut self) {
        let due = self.life.wakes_at().map_or(self.next_look, |at| at.min(self.next_look));
        let wait = due.saturating_duration_since(Instant::now());
        // Rounded up: a wait that ends just before its time would be repeated without a pause.
        let wait_ms = i32::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
        let mut watched = vec![PollFd::new(self.supervision.stop.as_fd(), PollFlags::POLLIN)];
        watched.extend(self.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        if !self.first.has_ended() {
            watched.push(PollFd::new(self.first.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut watched, PollTimeout::try_from(wait_ms).unwrap_or(PollTimeout::MAX));
    }

    /// Reads what is there of the output.
    fn read_output(&mut self) {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            let Some(pipe) = &self.pipe else { return };
            match read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    self.output.add(&buffer[..length]);
                    self.supervision.first_output.update(&self.output);
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes what has happened, the end of the first process first, and does what follows.
    fn apply_events(&mut self) {
        if self.first.end().is_some() {
            self.apply(Event::Exited { now: Instant::now() });
        }
        if let Some(kill_at) = self.supervision.stop.take() {
            self.apply(Event::Stopped { kill_at });
        }
        self.apply(Event::TimePassed { now: Instant::now() });
        if Instant::now() >= self.next_look {
            self.look();
        }
    }

    fn apply(&mut self, event: Event) {
        let before = std::mem::discriminant(&self.life);
        self.life = self.life.after(event);
        if before != std::mem::discriminant(&self.life) {
            (self.next_look, self.look_wait) = (Instant::now(), ENDING_LOOK_MIN);
        }
    }

    /// Looks at the tree, and signals what is left of it.
    fn look(&mut self) {
        let looked = self.tree.look();
        let is_known = looked.is_ok();
        match looked {
            Ok(living) => self.living = living,
            Err(error) if !self.has_failed => {
                let hook = self.supervision.hook.name();
                tracing::warn!(%hook, %error, "look at a hook's processes failed: it is repeated");
            }
            Err(_) => {}
        }
        self.has_failed = !is_known;
        let wait = match self.life {
            Life::Running { .. } | Life::Gone { .. } => RUNNING_LOOK,
            Life::Terminating { .. } => {
                self.tree.terminate(&self.living);
                self.next_look_wait()
            }
            Life::Killing { .. } => {
                self.kill();
                self.next_look_wait()
            }
            Life::Surviving { .. } => {
                self.kill();
                RUNNING_LOOK
            }
        };
        self.next_look = Instant::now() + wait;
        let is_ending = !matches!(self.life, Life::Running { .. });
        let is_empty = is_ending && is_known && self.living.is_empty() && self.first.end().is_some();
        match (is_empty, std::mem::replace(&mut self.was_empty, is_empty)) {
            (false, _) => {}
            // What was forked while the list was read may be missing in it, and what ended may have become our child since.
            (true, false) => self.next_look = Instant::now(),
            (true, true) => {
                self.read_output();
                self.apply(Event::TreeGone);
            }
        }
    }

    fn kill(&self) {
        kill(&self.living);
        // Also if the last look failed.
        if let Some(first) = ProcessStat::read(self.first.key().pid) {
            kill_group_of(&first);
        }
    }

    fn next_look_wait(&mut self) -> Duration {
        let wait = self.look_wait;
        self.look_wait = (wait * 2).min(ENDING_LOOK_MAX);
        wait
    }

    fn report(&mut self, cause: Cause) -> HookReport {
        let output = std::mem::take(&mut self.output);
        let Supervision { hook, order, .. } = &self.supervision;
        let outcome = outcome(hook.name(), cause, self.first.end(), order.request().timeout, &output);
        let is_surviving = matches!(self.life, Life::Surviving { .. });
        let living = self.living.iter().filter(|_| is_surviving);
        HookReport { outcome, output, survivors: living.map(|process| process.key.pid).collect() }
    }
}
