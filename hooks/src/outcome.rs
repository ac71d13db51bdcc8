//! Says how a run of a hook ended.
//!
//! | end | outcome |
//! | --- | --- |
//! | exit code 0 | [`Succeeded`](HookOutcome::Succeeded) |
//! | exit code 75 (`EX_TEMPFAIL`) | [`Retry`](HookOutcome::Retry) |
//! | another exit code, a signal | [`Failed`](HookOutcome::Failed) with `EHook` |
//! | could not be started | [`Failed`](HookOutcome::Failed) with the code of what went wrong |
//! | timeout over | [`TimedOut`](HookOutcome::TimedOut) with `ETimeout` |
//! | stopped by the caller | [`Stopped`](HookOutcome::Stopped), whatever the exit code |

use crate::life::Cause;
use crate::name::HookName;
use crate::output::HookOutput;
use blockhaul_engine::error::{Code, Error, Operation, Side};
use nix::sys::signal::Signal;
use std::fmt;
use std::time::Duration;

/// The exit code by which a hook asks to be run again: `EX_TEMPFAIL` of sysexits.h.
const EXIT_CODE_RETRY: i32 = 75;

/// How a run of a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookOutcome {
    /// The hook has done its work.
    Succeeded,
    /// The hook asks to be run again.
    Retry,
    /// The hook failed, or could not be started. The effect of the error is `NotApplied` if nothing was executed.
    Failed(Error),
    /// The hook took too long and was ended.
    TimedOut(Error),
    /// The caller ended the hook, or did so before it was started.
    Stopped,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookReport {
    /// How it ended.
    pub outcome: HookOutcome,
    /// What it has written.
    pub output: HookOutput,
    /// Numbers of processes that SIGKILL did not end so far: they wait for a device. Usually none. While there are
    /// some, the hook must not be run again, and [`HookEvent::Gone`](crate::HookEvent::Gone) is not reported.
    pub survivors: Vec<i32>,
}

/// How the first process of a hook ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessEnd {
    Exited(i32),
    Killed(i32),
    /// Another part of this program has taken the answer: it waits for any child, or ignores SIGCHLD.
    Unknown,
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "ended with exit code {code}"),
            Self::Killed(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
            Self::Unknown => f.write_str("ended, and how was lost: this program must not ignore SIGCHLD"),
        }
    }
}

/// Returns the outcome of a run that ended for `cause`. `end` is `None` while its first process survives.
pub(crate) fn outcome(
    name: &HookName,
    cause: Cause,
    end: Option<ProcessEnd>,
    timeout: Duration,
    output: &HookOutput,
) -> HookOutcome {
    let failed = |code, what: String| {
        let said = match output.shown_tail() {
            said if said.is_empty() => String::from("it wrote nothing"),
            said => format!("it wrote last: {said}"),
        };
        Error::new(code, Side::Engine, Operation::Start, format!("hook {name} {what}; {said}")).maybe_applied()
    };
    match (cause, end) {
        (Cause::Stopped, _) => HookOutcome::Stopped,
        (Cause::TimedOut, _) => {
            let what = format!("did not end within {timeout:?} and was ended: give it more time with --timeout");
            HookOutcome::TimedOut(failed(Code::Timeout, what))
        }
        (Cause::Exited, Some(ProcessEnd::Exited(0))) => HookOutcome::Succeeded,
        (Cause::Exited, Some(ProcessEnd::Exited(EXIT_CODE_RETRY))) => HookOutcome::Retry,
        (Cause::Exited, Some(end)) => HookOutcome::Failed(failed(Code::Hook, end.to_string())),
        (Cause::Exited, None) => unreachable!("a process has an end when it has exited"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(cause: Cause, end: Option<ProcessEnd>, said: &[u8]) -> HookOutcome {
        let mut output = HookOutput::default();
        output.add(said);
        outcome(&HookName::parse("freeze").unwrap(), cause, end, Duration::from_secs(90), &output)
    }

    #[test]
    fn exit_codes_decide_unless_the_hook_was_ended() {
        let exited = |code| judged(Cause::Exited, Some(ProcessEnd::Exited(code)), b"");
        assert_eq!(exited(0), HookOutcome::Succeeded);
        assert_eq!(exited(75), HookOutcome::Retry);
        assert!(matches!(exited(1), HookOutcome::Failed(_)));
        assert_eq!(judged(Cause::Stopped, Some(ProcessEnd::Exited(0)), b""), HookOutcome::Stopped);
        assert_eq!(judged(Cause::Stopped, None, b""), HookOutcome::Stopped);
        assert!(matches!(judged(Cause::TimedOut, Some(ProcessEnd::Exited(0)), b""), HookOutcome::TimedOut(_)));
    }

    #[test]
    fn failures_say_how_the_hook_ended_and_what_it_wrote() {
        for (cause, end, said, code, is_retryable, message) in [
            (
                Cause::Exited,
                ProcessEnd::Exited(3),
                &b""[..],
                Code::Hook,
                false,
                "hook freeze ended with exit code 3; it wrote nothing",
            ),
            (
                Cause::Exited,
                ProcessEnd::Killed(11),
                b"a\x1b\n",
                Code::Hook,
                false,
                r"hook freeze was ended by SIGSEGV; it wrote last: a\x1b",
            ),
            (
                Cause::Exited,
                ProcessEnd::Killed(34),
                b"",
                Code::Hook,
                false,
                "hook freeze was ended by signal 34; it wrote nothing",
            ),
            (
                Cause::TimedOut,
                ProcessEnd::Killed(9),
                b"waiting",
                Code::Timeout,
                true,
                "hook freeze did not end within 90s and was ended: give it more time with --timeout; it wrote last: waiting",
            ),
        ] {
            let (HookOutcome::Failed(error) | HookOutcome::TimedOut(error)) = judged(cause, Some(end), said) else {
                panic!("{end} is a failure");
            };
            assert_eq!((error.code, error.side, error.retryable), (code, Side::Engine, is_retryable));
            assert_eq!(error.message, message);
        }
    }
}
