//! Decides what a run takes over from an earlier run of the same batch file.
//!
//! | earlier run | the file since | this run |
//! | --- | --- | --- |
//! | none | - | begins |
//! | interrupted | unchanged | goes on: what has ended stays ended, copies resume from their checkpoints |
//! | interrupted, or ended without success | changed | is refused |
//! | ended, all succeeded | unchanged | does nothing |
//! | ended, all succeeded | changed | begins |
//! | ended without success | unchanged | runs again what did not succeed |
//!
//! `--restart` begins in any case, and `--cancel` ends an interrupted run. After another boot of the host an interrupted run
//! goes on as if it had ended: what its hooks did to this host is undone. What runs again after the end of a batch
//! includes clean-up, as it has run already, and the hooks that the members depend on. What depends on a hook that runs
//! again starts over: its source was free to change in between.

use super::request::{BatchRequest, MemberJob, RunMode};
use super::state::{BatchEnd, BatchState, EarlierRun, EndState, Kept, MemberEnd, StateFolder, boot_id, now_ms};
use crate::output::print_stderr;
use blockhaul_control::batch::Work;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::journal::JournalReader;
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::ResumePolicy;
use std::collections::BTreeMap;

/// How a run begins.
#[derive(Debug)]
pub(super) enum Start {
    Run(BatchStart),
    /// Not at all: every member has succeeded.
    HasEnded(BatchEnd, BTreeMap<String, MemberEnd>),
}

/// Beginning of a run.
#[derive(Debug)]
pub(super) struct BatchStart {
    pub(super) state: BatchState,
    /// Ends of the members that have ended already.
    pub(super) ended: Vec<Option<MemberEnd>>,
    /// Whether all members but clean-up are to be cancelled.
    pub(super) is_cancelled: bool,
}

/// Decides how to begin, and records that.
///
/// # Errors
/// `ECheckpointMismatch` if the file has changed; `ECheckpointCorrupt`; `EBadRequest` if there is nothing to cancel;
/// `ENotFound` if what an earlier run has copied is gone; what the system says.
pub(super) fn start(request: &BatchRequest, folder: StateFolder) -> Result<Start> {
    if request.mode == RunMode::Restart {
        let discarded = checkpoints(request, &vec![true; request.jobs.len()]);
        return begin(request, folder, Kept { discarded, ..Kept::default() }, ResumePolicy::Restart);
    }
    let earlier = folder.earlier_run()?;
    if request.mode == RunMode::Cancel && earlier.as_ref().is_none_or(|earlier| earlier.end.is_some()) {
        return Err(Error::bad_request("there is no interrupted run of this batch to cancel"));
    }
    let Some(earlier) = earlier else { return begin(request, folder, Kept::default(), ResumePolicy::Refuse) };
    let has_succeeded = earlier.end.is_some_and(|end| end.state == EndState::Succeeded);
    if earlier.digest != request.batch.digest {
        return match has_succeeded {
            true => begin(request, folder, Kept::default(), ResumePolicy::Refuse),
            false => Err(changed(request)),
        };
    }
    let Some(end) = earlier.end else { return resume(request, folder, earlier) };
    check_complete(request, &earlier)?;
    if has_succeeded {
        check_present(request, &earlier.members)?;
        return Ok(Start::HasEnded(end, earlier.members));
    }
    let kept = kept(request, earlier);
    check_present(request, &kept.members)?;
    begin(request, folder, kept, ResumePolicy::Resume)
}

fn begin(request: &BatchRequest, folder: StateFolder, kept: Kept, policy: ResumePolicy) -> Result<Start> {
    let state = folder.begin(&request.batch.digest, &request.file, &kept, policy)?;
    Ok(Start::Run(BatchStart { state, ended: ends(request, &kept.members), is_cancelled: false }))
}

/// Goes on with an interrupted run. A copy whose end was not recorded has succeeded if its receipt says so.
fn resume(request: &BatchRequest, folder: StateFolder, earlier: EarlierRun) -> Result<Start> {
    let mut members = earlier.members.clone();
    let open = |id: &&str| !earlier.members.contains_key(*id);
    let finished: Vec<_> = ids(request).filter(open).filter(|id| folder.has_finished(id)).collect();
    let succeeded = |id: &&str| {
        let end = MemberEnd { state: EndState::Succeeded, bytes: 0, code: None, error: None, ended_ms: now_ms() };
        ((*id).to_owned(), end)
    };
    let finished: Vec<_> = finished.iter().map(succeeded).collect();
    members.extend(finished.iter().cloned());
    check_present(request, &members)?;
    let is_cancelled = earlier.is_cancelled;
    let hooks = hooks_of_open_members(request, &members);
    let state = if earlier.boot_id == boot_id() || !hooks.contains(&true) {
        let mut state = folder.resume(&earlier)?;
        state.members_ended(&finished)?;
        state
    } else {
        print_stderr(
            "the host was booted since the batch was interrupted: hooks run again, and their copies start over",
        );
        ids(request).zip(&hooks).filter(|(_, runs)| **runs).for_each(|(id, _)| _ = members.remove(id));
        let mut discarded = earlier.discarded;
        discarded.extend(checkpoints(request, &request.batch.descendants(&hooks)));
        let kept = Kept { members: members.clone(), foreign: earlier.foreign, discarded };
        folder.begin(&request.batch.digest, &request.file, &kept, ResumePolicy::Resume)?
    };
    Ok(Start::Run(BatchStart { state, ended: ends(request, &members), is_cancelled }))
}

/// Returns what an ended batch that runs again takes over: the members that succeeded, except for hooks that are clean-up
/// or that others need.
fn kept(request: &BatchRequest, earlier: EarlierRun) -> Kept {
    let EarlierRun { mut members, mut foreign, .. } = earlier;
    let failed_by = |codes: &[Code]| -> Vec<bool> {
        let is_one = |end: &MemberEnd| codes.iter().any(|code| end.code.as_deref() == Some(code.as_str()));
        ids(request).map(|id| members.get(id).is_some_and(|end| end.state == EndState::Failed && is_one(end))).collect()
    };
    // A checkpoint that cannot be resumed would fail its copy each time.
    let unusable = failed_by(&[Code::CheckpointMismatch, Code::SourceChanged]);
    foreign.extend(ids(request).zip(failed_by(&[Code::Exists])).filter(|(_, is)| *is).map(|(id, _)| id.to_owned()));
    members.retain(|_, end| end.state == EndState::Succeeded);
    for (member, is_clean_up) in request.batch.members.iter().zip(request.batch.clean_up()) {
        if is_clean_up && matches!(member.work, Work::Run(_)) {
            members.remove(member.id.as_str());
        }
    }
    // A machine that clean-up has thawed is frozen again.
    let needed = hooks_of_open_members(request, &members);
    ids(request).zip(&needed).filter(|(_, runs)| **runs).for_each(|(id, _)| _ = members.remove(id));
    let runs_again = |(id, member): (&str, &blockhaul_control::batch::Member)| {
        matches!(member.work, Work::Run(_)) && !members.contains_key(id)
    };
    let hooks: Vec<bool> = ids(request).zip(&request.batch.members).map(runs_again).collect();
    // Between two runs of its hooks a source was free to change.
    let below = request.batch.descendants(&hooks);
    let start_over: Vec<bool> = below.iter().zip(&unusable).map(|(below, unusable)| *below || *unusable).collect();
    let older: Vec<&str> =
        ids(request).zip(&below).filter(|(id, below)| **below && members.contains_key(*id)).map(|(id, _)| id).collect();
    if !older.is_empty() {
        print_stderr(format_args!(
            "hooks run again, and {} stays as it was copied after their earlier run; --restart --overwrite copies all anew",
            older.join(", ")
        ));
    }
    let discarded = checkpoints(request, &start_over);
    Kept { members, foreign, discarded }
}

/// Returns which hooks are needed by members that have not ended.
fn hooks_of_open_members(request: &BatchRequest, members: &BTreeMap<String, MemberEnd>) -> Vec<bool> {
    let open: Vec<bool> = ids(request).map(|id| !members.contains_key(id)).collect();
    let needed = request.batch.ancestors(&open).into_iter().zip(&request.batch.members);
    needed.map(|(is_needed, member)| is_needed && matches!(member.work, Work::Run(_))).collect()
}

/// Returns the checkpoints of members that start over, by their copies' first start.
fn checkpoints(request: &BatchRequest, start_over: &[bool]) -> BTreeMap<String, i64> {
    let started = |job: &MemberJob| Some(JournalReader::open(job.checkpoint()?).ok()?.header().started_ns);
    let members = ids(request).zip(&request.jobs).zip(start_over);
    members
        .filter(|(_, starts_over)| **starts_over)
        .map(|(member, _)| member)
        .filter_map(|(id, job)| Some((id.to_owned(), started(job)?)))
        .collect()
}

/// Checks that a batch that has ended has an end of each member.
fn check_complete(request: &BatchRequest, earlier: &EarlierRun) -> Result<()> {
    match ids(request).find(|id| !earlier.members.contains_key(*id)) {
        None => Ok(()),
        Some(id) => {
            let message = format!("the state of the batch says that it has ended, and nothing about its member {id}");
            let error = Error::new(Code::CheckpointCorrupt, Side::Caller, Operation::Journal, message);
            Err(error.advise("run all of the batch anew with --restart"))
        }
    }
}

/// Checks that the files that earlier runs have copied are still there, and not shorter than what was copied.
fn check_present(request: &BatchRequest, members: &BTreeMap<String, MemberEnd>) -> Result<()> {
    for (id, job) in ids(request).zip(&request.jobs) {
        let Some(end) = members.get(id).filter(|end| end.state == EndState::Succeeded) else { continue };
        let Some(path) = job.destination_file() else { continue };
        let is_there = path.metadata().is_ok_and(|stat| !stat.is_file() || stat.len() >= end.bytes);
        if !is_there {
            let message =
                format!("member {id} has been copied, and its destination {} is gone or shorter", path.shown());
            let error = Error::new(Code::NotFound, Side::Destination, Operation::Open, message);
            return Err(error.advise("put it back, or run all of the batch anew with --restart --overwrite"));
        }
    }
    Ok(())
}

fn ids(request: &BatchRequest) -> impl Iterator<Item = &str> {
    request.batch.members.iter().map(|member| member.id.as_str())
}

fn ends(request: &BatchRequest, members: &BTreeMap<String, MemberEnd>) -> Vec<Option<MemberEnd>> {
    ids(request).map(|id| members.get(id).cloned()).collect()
}

fn changed(request: &BatchRequest) -> Error {
    let message = format!("{} has changed since its last run, which did not succeed", request.file.shown());
    Error::new(Code::CheckpointMismatch, Side::Caller, Operation::Start, message)
        .advise("undo the change, or run all of it from the beginning with --restart")
}
