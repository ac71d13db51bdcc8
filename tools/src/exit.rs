//! Maps results to the exit codes that scripts rely on.

use blockhaul_engine::error::{Code, Error};
use blockhaul_engine::progress::{Report, Status};
use std::process::ExitCode;

/// Exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: the command succeeded.
    Done,
    /// 1: an error.
    Failed,
    /// 2: the request is malformed.
    Usage,
    /// 3: the volumes differ.
    Differ,
    /// 75 (`EX_TEMPFAIL`): interrupted or cancelled; the same command with `--resume` resumes.
    Interrupted,
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        if error.code == Code::BadRequest { Self::Usage } else { Self::Failed }
    }
}

impl From<&Report> for Exit {
    fn from(report: &Report) -> Self {
        match report.status {
            Status::Succeeded => Self::Done,
            Status::Failed => report.error.as_ref().map_or(Self::Failed, Self::from),
            Status::Interrupted | Status::Cancelled => Self::Interrupted,
            Status::Differs => Self::Differ,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Differ => 3,
            Exit::Interrupted => 75,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::refusal_report;

    #[test]
    fn a_report_decides_the_exit_code() {
        let ending = |status| Exit::from(&Report { status, error: None, ..refusal_report(Error::bad_request("x")) });
        assert_eq!(
            Status::ALL.iter().copied().map(ending).collect::<Vec<_>>(),
            [Exit::Done, Exit::Failed, Exit::Interrupted, Exit::Interrupted, Exit::Differ]
        );
        assert_eq!(Exit::from(&refusal_report(Error::bad_request("x"))), Exit::Usage);
    }
}
