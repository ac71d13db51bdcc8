//! Resolves the flags of `blockhaul submit` to a request.

use super::args::{RawCenter, RawCopyTask, RawNoopTask, RawTask, RawTimes, RawVerifyTask};
use blockhaul_control::model::{TaskId, parse_dependency};
use blockhaul_control::rpc::wire;
use blockhaul_control::timestamp::Timestamp;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::shown::Shown;
use std::ffi::OsString;
use std::time::Duration;

/// A request, the center to send it to, and whether to wait for its end.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: wire::SubmitRequest,
    pub(super) center: RawCenter,
    pub(super) wait: bool,
}

/// Flags of a task that is no group.
#[derive(Debug)]
pub(super) enum SingleTask {
    Copy(Box<RawCopyTask>),
    Verify(RawVerifyTask),
    Noop(RawNoopTask),
}

/// Resolves the flags. The center fills in what is missing and refuses what is invalid.
///
/// # Errors
/// `EBadRequest` for a volume name that is not UTF-8; nothing is sent.
pub(super) fn resolve(work: SingleTask) -> Result<Submission> {
    let (work, task, center) = match work {
        SingleTask::Copy(raw) => copy(*raw)?,
        SingleTask::Verify(raw) => verify(raw)?,
        SingleTask::Noop(RawNoopTask { duration, task, center }) => {
            let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            (wire::spec::Work::Noop(wire::NoopWork { milliseconds, node: task.node.clone() }), task, center)
        }
    };
    let RawTask { id, node: _, priority, max_attempts, after, times, wait } = task;
    let dependency = |text: &String| {
        let (task, condition) = parse_dependency(text)?;
        Ok(wire::Dependency { task: task.to_owned(), condition: condition.as_str().to_owned() })
    };
    let request = wire::SubmitRequest {
        id: id.unwrap_or_else(|| TaskId::fresh().to_string()),
        priority,
        max_attempts: max_attempts.unwrap_or_default(),
        spec: Some(wire::Spec { work: Some(work) }),
        after: after.iter().map(dependency).collect::<Result<_>>()?,
        group: None,
        times: Some(wire_times(&times)),
        retry_of: String::new(),
    };
    Ok(Submission { request, center, wait })
}

/// Returns the times of a request.
pub(super) fn wire_times(raw: &RawTimes) -> wire::Times {
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    wire::Times {
        start_at_ms: raw.start_at.map(|Timestamp(unix_ms)| unix_ms),
        delay_ms: raw.delay.map(milliseconds),
        deadline_ms: raw.deadline.map(milliseconds),
    }
}

/// Returns the name of a volume as text.
fn text(name: OsString) -> Result<String> {
    name.into_string().map_err(|name| {
        let message = format!("{}: volume names of tasks must be UTF-8", name.shown());
        Error::bad_request(message).advise("use a symbolic link with another name, or run `blockhaul copy` on its node")
    })
}

fn copy(raw: RawCopyTask) -> Result<(wire::spec::Work, RawTask, RawCenter)> {
    let RawCopyTask {
        source,
        destination,
        task,
        limit,
        verify,
        overwrite,
        sparse,
        reflink,
        digest,
        fence,
        source_stable,
        dest_id,
        center,
    } = raw;
    let work = wire::CopyWork {
        source: text(source)?,
        destination: text(destination)?,
        node: task.node.clone(),
        limit,
        verify,
        overwrite,
        sparse: sparse.unwrap_or_default(),
        reflink: reflink.unwrap_or_default(),
        digest: digest.unwrap_or_default(),
        fence: fence.unwrap_or_default(),
        source_stable,
        dest_id,
    };
    Ok((wire::spec::Work::Copy(work), task, center))
}

fn verify(raw: RawVerifyTask) -> Result<(wire::spec::Work, RawTask, RawCenter)> {
    let RawVerifyTask { volumes, receipt, task, limit, center } = raw;
    let mut volumes = volumes.into_iter().map(text).collect::<Result<Vec<_>>>()?;
    let volume = volumes.pop().unwrap_or_default();
    let (reference, receipt) = (volumes.pop(), receipt.map(text).transpose()?);
    let work = wire::VerifyWork { reference, receipt, volume, node: task.node.clone(), limit };
    Ok((wire::spec::Work::Verify(work), task, center))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::center::args::{RawSubmit, RawWork};
    use blockhaul_engine::error::Code;
    use clap::Parser;
    use std::os::unix::ffi::OsStringExt;

    fn single<T: Into<OsString> + Clone>(words: impl IntoIterator<Item = T>) -> SingleTask {
        match Cli::try_parse_from(words).unwrap().command {
            Command::Submit(raw) => match *raw {
                RawSubmit { work: RawWork::Copy(raw) } => SingleTask::Copy(raw),
                RawSubmit { work: RawWork::Verify(raw) } => SingleTask::Verify(raw),
                RawSubmit { work: RawWork::Noop(raw) } => SingleTask::Noop(raw),
                other @ RawSubmit { .. } => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn submission(arguments: &[&str]) -> Submission {
        resolve(single([&["blockhaul", "submit"], arguments].concat())).unwrap()
    }

    #[test]
    fn a_random_id_makes_a_retried_submission_one_task() {
        let made = || submission(&["noop", "5s"]).request.id;
        assert_ne!(made(), made());
        assert_eq!(submission(&["noop", "--id", "x"]).request.id, "x");
    }

    #[test]
    fn a_name_that_is_not_utf8_is_refused_before_any_call() {
        let words = ["blockhaul", "submit", "copy", "/a", "--node", "n"].map(OsString::from);
        let words = words.into_iter().chain([OsString::from_vec(b"/bad\xff".to_vec())]);
        let error = resolve(single(words)).unwrap_err();
        assert!(error.code == Code::BadRequest && error.message.starts_with(r"/bad\xff: "), "{error}");
    }

    #[test]
    fn flags_become_the_request_and_the_rest_is_the_centers() {
        let Submission { request, wait, .. } =
            submission(&["copy", "/a", "nbd://h/b", "--node", "n", "--wait", "--verify"]);
        let Some(wire::spec::Work::Copy(copy)) = request.spec.unwrap().work else { panic!("a copy was asked for") };
        assert!(wait && copy.verify && !copy.overwrite);
        assert_eq!((copy.node.as_deref(), copy.fence.as_str(), request.max_attempts), (Some("n"), "", 0));
    }

    #[test]
    fn two_volumes_or_a_receipt_and_one_are_compared() {
        let verify = |arguments: &[&str]| match submission(arguments).request.spec.unwrap().work {
            Some(wire::spec::Work::Verify(work)) => work,
            other => panic!("a comparison was asked for, not {other:?}"),
        };
        let two = verify(&["verify", "file://n/a", "nbd://h/b"]);
        assert_eq!((two.reference.as_deref(), two.volume.as_str()), (Some("file://n/a"), "nbd://h/b"));
        let one = verify(&["verify", "--receipt", "/r", "/b", "--node", "n"]);
        let given = (one.reference.as_deref(), one.receipt.as_deref(), one.volume.as_str(), one.node.as_deref());
        assert_eq!(given, (None, Some("/r"), "/b", Some("n")));
    }
}
