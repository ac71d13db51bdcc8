//! Resolves the flags of `blockhaul submit` to a request.

use super::args::{
    RawBatchTask, RawCenter, RawCopyTask, RawNoopTask, RawRunTask, RawTask, RawTimes, RawVerifyTask, RawWork,
};
use super::signing::Signing;
use blockhaul_control::model::{TaskId, parse_dependency};
use blockhaul_control::rpc::wire;
use blockhaul_control::timestamp::Timestamp;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// Most bytes of input of a hook; the center checks that as well.
const INPUT_BYTES_MAX: u64 = 4 << 10;

/// A request, the center to send it to, and whether to wait for its end, or only to have it checked.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: wire::SubmitRequest,
    pub(super) hooks: CopyHooks,
    pub(super) center: RawCenter,
    pub(super) wait: bool,
    pub(super) check: bool,
    pub(super) signing: Option<Signing>,
}

/// Hooks that run before and after a copy.
#[derive(Debug, Default)]
pub(super) struct CopyHooks {
    pub(super) before: Option<String>,
    pub(super) finally: Option<String>,
}

impl CopyHooks {
    pub(super) fn is_empty(&self) -> bool {
        self.before.is_none() && self.finally.is_none()
    }
}

/// Flags of a task that is no group.
#[derive(Debug)]
pub(super) enum SingleTask {
    Copy(Box<RawCopyTask>),
    Verify(RawVerifyTask),
    Run(Box<RawRunTask>),
    Noop(RawNoopTask),
}

impl SingleTask {
    /// Returns the task; or the batch, if it is one.
    pub(super) fn of(work: RawWork) -> std::result::Result<Self, Box<RawBatchTask>> {
        match work {
            RawWork::Batch(raw) => Err(Box::new(raw)),
            RawWork::Copy(raw) => Ok(Self::Copy(raw)),
            RawWork::Verify(raw) => Ok(Self::Verify(raw)),
            RawWork::Run(raw) => Ok(Self::Run(raw)),
            RawWork::Noop(raw) => Ok(Self::Noop(raw)),
        }
    }

    /// Returns the flags that all kinds share.
    pub(super) fn task(&self) -> &RawTask {
        match self {
            Self::Copy(raw) => &raw.task,
            Self::Verify(raw) => &raw.task,
            Self::Run(raw) => &raw.task,
            Self::Noop(raw) => &raw.task,
        }
    }
}

/// Resolves the flags. The center fills in what is missing and refuses what is invalid.
///
/// # Errors
/// `EBadRequest` for a volume name or an input that is not UTF-8, and what reading a file says; nothing is sent.
pub(super) fn resolve(work: SingleTask) -> Result<Submission> {
    let mut hooks = CopyHooks::default();
    let (work, task, center) = match work {
        SingleTask::Copy(raw) => {
            let RawCopyTask { before, finally, .. } = &*raw;
            hooks = CopyHooks { before: before.clone(), finally: finally.clone() };
            copy(*raw)?
        }
        SingleTask::Verify(raw) => verify(raw)?,
        SingleTask::Run(raw) => run(*raw)?,
        SingleTask::Noop(RawNoopTask { duration, task, center }) => {
            let milliseconds = milliseconds(duration);
            (wire::spec::Work::Noop(wire::NoopWork { milliseconds, node: task.node.clone() }), task, center)
        }
    };
    let RawTask { id, node: _, priority, max_attempts, after, times, placement, window, wait, signing, check } = task;
    let signing = Signing::resolve(&signing)?;
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
        placement: placement.wire(),
        windows: window,
        ..wire::SubmitRequest::default()
    };
    Ok(Submission { request, hooks, center, wait, check, signing })
}

/// Returns a duration in milliseconds.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the times of a request.
pub(super) fn wire_times(raw: &RawTimes) -> wire::Times {
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
        before: _,
        finally: _,
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

fn run(raw: RawRunTask) -> Result<(wire::spec::Work, RawTask, RawCenter)> {
    let RawRunTask { hook, task, arg, input, timeout, at_most_once, center } = raw;
    let work = wire::RunWork {
        hook,
        node: task.node.clone(),
        arguments: arg,
        input: input.as_deref().map(read_input).transpose()?.unwrap_or_default(),
        timeout_ms: timeout.map(milliseconds),
        at_most_once,
    };
    Ok((wire::spec::Work::Run(work), task, center))
}

/// Reads the input of a hook, and never much more than it may have.
fn read_input(file: &Path) -> Result<String> {
    let failed = |error: &io::Error| {
        Error::io(Side::Caller, Operation::Read, error, format!("read the input of the hook, {}", file.shown()))
    };
    let mut input = Vec::new();
    let read = File::open(file).and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut input));
    if read.map_err(|error| failed(&error))? as u64 > INPUT_BYTES_MAX {
        let message = format!("{}: the input of a hook has at most {INPUT_BYTES_MAX} bytes", file.shown());
        return Err(Error::bad_request(message).advise("put it into a file of the node, and name that file by --arg"));
    }
    String::from_utf8(input)
        .map_err(|_| Error::bad_request(format!("{}: the input of a hook must be UTF-8 text", file.shown())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use blockhaul_engine::error::Code;
    use clap::Parser;
    use std::os::unix::ffi::OsStringExt;

    fn single<T: Into<OsString> + Clone>(words: impl IntoIterator<Item = T>) -> SingleTask {
        match Cli::try_parse_from(words).unwrap().command {
            Command::Submit(raw) => SingleTask::of(raw.work).unwrap(),
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
    fn a_hook_gets_its_arguments_and_the_content_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("input");
        let name = input.to_str().unwrap();
        let args = ["run", "freeze-vm", "--arg", "VM=42", "--arg", "MODE=a b", "--input", name, "--timeout", "90s"];
        std::fs::write(&input, "one\ntwo\n").unwrap();
        let Some(wire::spec::Work::Run(work)) = submission(&args).request.spec.unwrap().work else {
            panic!("a hook was asked for")
        };
        assert_eq!((work.arguments, work.input), (vec!["VM=42".into(), "MODE=a b".into()], "one\ntwo\n".into()));
        assert_eq!((work.timeout_ms, work.at_most_once, work.node), (Some(90_000), false, None));
        let refused = |content: &[u8]| {
            std::fs::write(&input, content).unwrap();
            resolve(single([&["blockhaul", "submit"], &args[..]].concat())).unwrap_err().code
        };
        assert_eq!(refused(b"\xff"), Code::BadRequest);
        assert_eq!(refused(&[b'x'; 4_097]), Code::BadRequest);
        std::fs::remove_file(&input).unwrap();
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
