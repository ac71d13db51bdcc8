//! Defines how a run of a hook ends: the state machine of its supervisor, without I/O.
//!
//! ```text
//! Running -- exited, stopped, timed out --> Terminating -- grace over --> Killing -- still not gone --> Surviving
//!                                               |                           |                             |
//!                                               '-------- tree gone --------+-------- tree gone ----------+--> Gone
//! ```
//!
//! What is left of a hook that has exited is terminated as well: two runs of one hook must never overlap, and what it
//! leaves behind may be at the same work still. The first cause holds; a later stop only shortens the grace.

use crate::limits::{KILL_WAIT, LEFT_BEHIND_GRACE};
use std::time::{Duration, Instant};

/// Why a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The first process has ended by itself.
    Exited,
    /// The caller stopped it.
    Stopped,
    /// Its time was over.
    TimedOut,
}

/// How far a run has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// The first process runs.
    Running { deadline: Instant, grace: Duration },
    /// All processes have been asked to end.
    Terminating { cause: Cause, kill_at: Instant },
    /// All processes are being killed.
    Killing { cause: Cause, report_at: Instant },
    /// A process does not end although it was killed.
    Surviving { cause: Cause },
    /// No process is left.
    Gone { cause: Cause },
}

/// What happens to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first process has ended.
    Exited { now: Instant },
    /// The caller wants it to end, and SIGKILL to be sent at this time.
    Stopped { kill_at: Instant },
    /// Time has passed.
    TimePassed { now: Instant },
    /// Neither the first process nor another one of the tree is left.
    TreeGone,
}

impl Life {
    /// Returns how far the run has got after the event.
    pub(crate) fn after(self, event: Event) -> Self {
        match (self, event) {
            (Self::Running { .. }, Event::Exited { now }) => {
                Self::Terminating { cause: Cause::Exited, kill_at: now + LEFT_BEHIND_GRACE }
            }
            (Self::Running { .. }, Event::Stopped { kill_at }) => Self::Terminating { cause: Cause::Stopped, kill_at },
            (Self::Running { deadline, grace }, Event::TimePassed { now }) if now >= deadline => {
                Self::Terminating { cause: Cause::TimedOut, kill_at: now + grace }
            }
            (Self::Running { .. }, Event::TimePassed { .. }) => self,
            (Self::Running { .. }, Event::TreeGone) => {
                unreachable!("the supervisor sees the first process end before it looks at the tree")
            }
            (Self::Terminating { cause, kill_at }, Event::Stopped { kill_at: other }) => {
                Self::Terminating { cause, kill_at: kill_at.min(other) }
            }
            (Self::Terminating { cause, kill_at }, Event::TimePassed { now }) if now >= kill_at => {
                Self::Killing { cause, report_at: now + KILL_WAIT }
            }
            (Self::Terminating { .. }, Event::TimePassed { .. }) => self,
            (Self::Killing { cause, report_at }, Event::TimePassed { now }) if now >= report_at => {
                Self::Surviving { cause }
            }
            (Self::Killing { .. }, Event::TimePassed { .. } | Event::Stopped { .. }) => self,
            (Self::Surviving { .. } | Self::Gone { .. }, Event::TimePassed { .. } | Event::Stopped { .. }) => self,
            (
                Self::Terminating { cause, .. }
                | Self::Killing { cause, .. }
                | Self::Surviving { cause }
                | Self::Gone { cause },
                Event::TreeGone,
            ) => Self::Gone { cause },
            (
                Self::Terminating { .. } | Self::Killing { .. } | Self::Surviving { .. } | Self::Gone { .. },
                Event::Exited { .. },
            ) => self,
        }
    }

    /// Returns the time at which something happens even if nobody does anything.
    pub(crate) fn wakes_at(self) -> Option<Instant> {
        match self {
            Self::Running { deadline, .. } => Some(deadline),
            Self::Terminating { kill_at, .. } => Some(kill_at),
            Self::Killing { report_at, .. } => Some(report_at),
            Self::Surviving { .. } | Self::Gone { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn running(start: Instant) -> Life {
        Life::Running { deadline: start + Duration::from_secs(60), grace: GRACE }
    }

    fn after(life: Life, events: &[Event]) -> Life {
        events.iter().fold(life, |life, event| life.after(*event))
    }

    #[test]
    fn a_hook_that_exits_leaves_nothing_behind() {
        let now = Instant::now();
        let exited = after(running(now), &[Event::Exited { now }]);
        assert_eq!(exited, Life::Terminating { cause: Cause::Exited, kill_at: now + LEFT_BEHIND_GRACE });
        assert_eq!(exited.after(Event::TreeGone), Life::Gone { cause: Cause::Exited });
        let killing = exited.after(Event::TimePassed { now: now + LEFT_BEHIND_GRACE });
        assert_eq!(killing, Life::Killing { cause: Cause::Exited, report_at: now + LEFT_BEHIND_GRACE + KILL_WAIT });
    }

    #[test]
    fn the_first_cause_holds_and_a_second_stop_shortens_the_grace() {
        let now = Instant::now();
        let late = now + Duration::from_secs(60);
        let timed_out = after(running(now), &[Event::TimePassed { now }, Event::TimePassed { now: late }]);
        assert_eq!(timed_out, Life::Terminating { cause: Cause::TimedOut, kill_at: late + GRACE });
        let sooner = late + Duration::from_secs(5);
        let stopped = timed_out.after(Event::Stopped { kill_at: sooner });
        assert_eq!(stopped, Life::Terminating { cause: Cause::TimedOut, kill_at: sooner });
        assert_eq!(after(stopped, &[Event::Stopped { kill_at: late + GRACE }, Event::Exited { now: late }]), stopped);
    }

    #[test]
    fn what_survives_is_told_and_still_waited_for() {
        let now = Instant::now();
        let kill_at = now + GRACE;
        let killing = after(running(now), &[Event::Stopped { kill_at }, Event::TimePassed { now: kill_at }]);
        assert_eq!(killing, Life::Killing { cause: Cause::Stopped, report_at: kill_at + KILL_WAIT });
        let surviving = killing.after(Event::TimePassed { now: kill_at + KILL_WAIT });
        assert_eq!(surviving, Life::Surviving { cause: Cause::Stopped });
        assert_eq!(surviving.wakes_at(), None);
        assert_eq!(surviving.after(Event::Stopped { kill_at: now }), surviving);
        assert_eq!(surviving.after(Event::TreeGone), Life::Gone { cause: Cause::Stopped });
    }

    proptest! {
        /// Whatever happens, a run never comes back to life and never changes its cause.
        #[test]
        fn a_run_only_goes_on(events in proptest::collection::vec((0u8..3, 0u64..100), 1..40)) {
            let start = Instant::now();
            let stage = |life: &Life| match life {
                Life::Running { .. } => (0, None),
                Life::Terminating { cause, .. } => (1, Some(*cause)),
                Life::Killing { cause, .. } => (2, Some(*cause)),
                Life::Surviving { cause } => (3, Some(*cause)),
                Life::Gone { cause } => (4, Some(*cause)),
            };
            let mut life = running(start);
            for (kind, seconds) in events {
                let at = start + Duration::from_secs(seconds);
                let next = life.after(match kind {
                    0 => Event::Exited { now: at },
                    1 => Event::Stopped { kill_at: at },
                    _ => Event::TimePassed { now: at },
                });
                let ((before, cause), (after, later)) = (stage(&life), stage(&next));
                prop_assert!(before <= after);
                prop_assert!(cause.is_none() || cause == later);
                life = next;
            }
        }
    }
}
