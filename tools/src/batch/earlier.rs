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
//! `--restart` begins in any case, and `--cancel` ends an interrupted run. What runs again after the end of a batch
//! includes clean-up, as it has run already, and the hooks that the members depend on. What depends on a hook that runs
//! again starts over: its source was free to change in between.

use super::request::{BatchRequest, MemberJob, RunMode};
use super::state::{BatchEnd, BatchState, EarlierRun, EndState, MemberEnd, StateFolder, now_ms};
use blockhaul_control::batch::{Member, Work};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::journal::JournalReader;
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::ResumePolicy;
use std::collections::BTreeMap;

/// How a run begins.
#[derive(Debug)]
pub(super) enum Start {
    /// With this state, and the ends of the members that have ended.
    Run(BatchState, Vec<Option<MemberEnd>>),
    /// Not at all: every member has succeeded.
    HasEnded(BatchEnd, BTreeMap<String, MemberEnd>),
}

/// Decides how to begin, and records that.
///
/// # Errors
/// `ECheckpointMismatch` if the file has changed; `ECheckpointCorrupt`; `EBadRequest` if there is nothing to cancel;
/// what the system says.
pub(super) fn start(request: &BatchRequest, folder: StateFolder) -> Result<Start> {
    let begin = |folder: StateFolder, kept: &BTreeMap<_, _>, discarded, policy| {
        let state = folder.begin(&request.batch.digest, &request.file, kept, discarded, policy)?;
        Ok(Start::Run(state, ends(request, kept)))
    };
    let begin_anew = |folder| begin(folder, &BTreeMap::new(), BTreeMap::new(), ResumePolicy::Refuse);
    if request.mode == RunMode::Restart {
        let all = vec![true; request.jobs.len()];
        return begin(folder, &BTreeMap::new(), checkpoints(request, &all), ResumePolicy::Restart);
    }
    let earlier = folder.earlier_run()?;
    if request.mode == RunMode::Cancel && earlier.as_ref().is_none_or(|earlier| earlier.end.is_some()) {
        return Err(Error::bad_request("there is no interrupted run of this batch to cancel"));
    }
    let Some(earlier) = earlier else { return begin_anew(folder) };
    let has_succeeded = earlier.end.is_some_and(|end| end.state == EndState::Succeeded);
    if earlier.digest != request.batch.digest {
        return if has_succeeded { begin_anew(folder) } else { Err(changed(request)) };
    }
    match earlier.end {
        None => resume(request, folder, earlier),
        Some(end) if has_succeeded => Ok(Start::HasEnded(end, earlier.members)),
        Some(_) => {
            let kept = kept(request, earlier.members);
            let is_kept = |member: &Member| kept.contains_key(member.id.as_str());
            let is_hook_again = |member: &Member| matches!(member.work, Work::Run(_)) && !is_kept(member);
            let hooks: Vec<bool> = request.batch.members.iter().map(is_hook_again).collect();
            // Between two runs of its hooks a source was free to change.
            let start_over = request.batch.descendants(&hooks);
            begin(folder, &kept, checkpoints(request, &start_over), ResumePolicy::Resume)
        }
    }
}

/// Goes on with an interrupted run. A copy whose end was not recorded has succeeded if its receipt says so.
fn resume(request: &BatchRequest, folder: StateFolder, earlier: EarlierRun) -> Result<Start> {
    let mut members = earlier.members.clone();
    let open = |id: &&str| !earlier.members.contains_key(*id);
    let finished: Vec<_> = ids(request).filter(open).filter(|id| folder.has_finished(id)).collect();
    let mut state = folder.resume(&earlier)?;
    for id in finished {
        let end = MemberEnd { state: EndState::Succeeded, bytes: 0, code: None, error: None, ended_ms: now_ms() };
        state.member_ended(id, &end)?;
        members.insert(id.to_owned(), end);
    }
    Ok(Start::Run(state, ends(request, &members)))
}

/// Returns what stays ended although the batch runs again: the members that succeeded, except for clean-up and for the
/// hooks that others need.
fn kept(request: &BatchRequest, mut members: BTreeMap<String, MemberEnd>) -> BTreeMap<String, MemberEnd> {
    let is_clean_up = request.batch.clean_up();
    for (member, is_clean_up) in request.batch.members.iter().zip(is_clean_up) {
        if is_clean_up {
            members.remove(member.id.as_str());
        }
    }
    members.retain(|_, end| end.state == EndState::Succeeded);
    // A hook that others depend on runs again: a machine that clean-up has thawed is frozen again.
    let runs_again: Vec<bool> = ids(request).map(|id| !members.contains_key(id)).collect();
    for (member, is_needed) in request.batch.members.iter().zip(request.batch.ancestors(&runs_again)) {
        if is_needed && matches!(member.work, Work::Run(_)) {
            members.remove(member.id.as_str());
        }
    }
    members
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
