//! Submits the members of a batch file as a group: the group, its members, each after those that it waits for, and the
//! seal that lets them start.
//!
//! Every message can be repeated: the same command again goes on where an earlier one has stopped, and nothing has
//! started before.

use super::args::RawBatchTask;
use super::signing::Signer;
use super::submit::{CopyHooks, wire_times};
use crate::batch::read_batch_file;
use blockhaul_control::batch::{self, Batch, HookRun, Member, OnFailure, Place, Work};
use blockhaul_control::model::{TaskId, TaskSpec, TaskVolume};
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::digest::digest;
use blockhaul_control::rpc::error::RpcError;
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::flow::graph::Condition;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use tokio::task::JoinSet;

/// Submissions of members under way at once.
const SUBMISSIONS_MAX: usize = 64;
/// Longest part of the file's name in the default id of a group, in characters.
const NAME_CHARS_MAX: usize = 20;
/// Digits of the digest in the default id of a group.
const DIGEST_DIGITS: usize = 12;

/// A group to submit.
#[derive(Debug)]
pub(super) struct GroupSubmission {
    group: wire::SubmitRequest,
    /// The members, in groups that depend only on earlier ones.
    levels: Vec<Vec<wire::SubmitRequest>>,
}

impl GroupSubmission {
    /// Reads and checks the batch file, whose members run in a center or in a schedule of one.
    ///
    /// # Errors
    /// What is wrong with the file, or an id of a member that would be too long; nothing is sent.
    pub(super) fn resolve(raw: &RawBatchTask, place: &Place) -> Result<Self> {
        let batch = batch::parse(&read_batch_file(&raw.file)?, place, &TaskVolume::key)?;
        let id = match &raw.id {
            Some(id) => TaskId::new(id.clone())?,
            None => default_id(&raw.file, &batch.digest)?,
        };
        let clean_up = batch.clean_up();
        let mut requests = Vec::with_capacity(batch.members.len());
        for (member, clean_up) in batch.members.iter().zip(clean_up) {
            requests.push(request(raw, &id, &batch, member, clean_up)?);
        }
        let Batch { digest, parallel, on_failure, hold, members } = &batch;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let work = wire::GroupWork {
            digest: digest.clone(),
            members: count(members.len()),
            parallel: parallel.map(count),
            continues: *on_failure == OnFailure::Continue,
            hold: *hold,
        };
        let group = wire::SubmitRequest {
            id: id.to_string(),
            priority: raw.priority,
            max_attempts: raw.max_attempts.unwrap_or_default(),
            spec: Some(wire::Spec { work: Some(wire::spec::Work::Group(work)) }),
            times: Some(wire_times(&raw.times)),
            ..wire::SubmitRequest::default()
        };
        Ok(Self::new(group, requests))
    }

    /// Creates the submission of a copy between two hooks, as a group that has the id of the request: one hook before the
    /// copy, for which the place of the copy is held, and one after its end, whatever that is. They run on the copy's node.
    ///
    /// # Errors
    /// What is wrong with the names of the volumes, or an id of a member that would be too long.
    pub(super) fn of_copy(copy: wire::SubmitRequest, place: &Place, hooks: CopyHooks) -> Result<Self> {
        let CopyHooks { before, finally } = hooks;
        let group = TaskId::new(copy.id.as_str())?;
        let spec = TaskSpec::try_from(copy.spec.clone())?;
        let spec = if let Place::Schedule(at) = place { spec.at(*at)? } else { spec };
        let node = spec.node()?;
        let hold = before.is_some();
        let member = |name: &str, spec: Option<wire::Spec>, on: Option<(&str, Condition)>| {
            let after = on.map(|(name, condition)| {
                let condition = condition.as_str().to_owned();
                Ok::<_, Error>(vec![wire::Dependency { task: member_id(&group, name)?.to_string(), condition }])
            });
            let clean_up = on.is_some_and(|(_, condition)| condition == Condition::End);
            Ok::<_, Error>(wire::SubmitRequest {
                id: member_id(&group, name)?.to_string(),
                spec,
                after: after.unwrap_or_else(|| Ok(copy.after.clone()))?,
                group: Some(wire::Membership { group: group.to_string(), clean_up }),
                times: None,
                ..copy.clone()
            })
        };
        let run = |hook: String| {
            let work = wire::RunWork { hook, node: node.clone().map(String::from), ..wire::RunWork::default() };
            Some(wire::Spec { work: Some(wire::spec::Work::Run(work)) })
        };
        let after_before = before.as_ref().map(|_| ("before", Condition::Success));
        let mut members = Vec::new();
        if let Some(before) = before {
            members.push(member("before", run(before), None)?);
        }
        members.push(member("copy", copy.spec.clone(), after_before)?);
        if let Some(finally) = finally {
            members.push(member("finally", run(finally), Some(("copy", Condition::End)))?);
        }
        let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let digest = digest(&members);
        let work = wire::GroupWork { digest, members: count, parallel: None, continues: false, hold };
        let spec = Some(wire::Spec { work: Some(wire::spec::Work::Group(work)) });
        Ok(Self::new(
            wire::SubmitRequest { spec, after: Vec::new(), placement: None, windows: Vec::new(), ..copy },
            members,
        ))
    }

    /// Creates the submission of a group and of its members.
    pub(super) fn new(group: wire::SubmitRequest, members: Vec<wire::SubmitRequest>) -> Self {
        Self { group, levels: levels(members) }
    }

    /// Signs the group and each of its members.
    ///
    /// # Errors
    /// `EBadRequest` if one is too long to be signed; nothing is sent.
    pub(super) fn sign(&mut self, signer: &Signer) -> Result<()> {
        signer.sign(&mut self.group)?;
        self.levels.iter_mut().flatten().try_for_each(|member| signer.sign(member))
    }

    /// Returns the group and its members, each after those that it waits for, as a schedule submits them: the names of the
    /// members are those in the batch.
    ///
    /// # Errors
    /// `EBadRequest`: a member waits for a task that is no member.
    pub(super) fn scheduled(self) -> Result<(wire::SubmitRequest, Vec<wire::ScheduledMember>)> {
        let Self { group, levels } = self;
        let prefix = format!("{}.", group.id);
        let name = |id: &str| {
            let refused =
                || Error::bad_request(format!("the tasks of a schedule wait for no other tasks, as {id} is one"));
            id.strip_prefix(&prefix).map(str::to_owned).ok_or_else(refused)
        };
        let member = |task: wire::SubmitRequest| {
            let clean_up = task.group.as_ref().is_some_and(|group| group.clean_up);
            let after = task.after.iter().map(|dependency| {
                Ok(wire::Dependency { task: name(&dependency.task)?, condition: dependency.condition.clone() })
            });
            let after = after.collect::<Result<_>>()?;
            let task = wire::SubmitRequest { id: name(&task.id)?, after, group: None, ..task };
            Ok(wire::ScheduledMember { task: Some(task), clean_up })
        };
        let members = levels.into_iter().flatten().map(member).collect::<Result<_>>()?;
        Ok((group, members))
    }

    /// Submits the group, or the rest of it. Returns the group, as it is when it is sealed.
    ///
    /// # Errors
    /// The first failure. The same submission again goes on.
    pub(super) async fn send(self, client: &mut CenterClient) -> Result<wire::Task, RpcError> {
        let Self { group, levels } = self;
        let id = group.id.clone();
        let stored = client.submit(group).await?;
        if stored.members.as_ref().is_some_and(|members| members.sealed) {
            return Ok(stored);
        }
        for level in levels {
            submit_all(client, level).await?;
        }
        client.seal(wire::TaskName { id }).await
    }
}

/// Submits tasks that do not depend on each other, several at a time.
async fn submit_all(client: &CenterClient, requests: Vec<wire::SubmitRequest>) -> Result<(), RpcError> {
    let mut requests = requests.into_iter();
    let mut calls = JoinSet::new();
    loop {
        while calls.len() < SUBMISSIONS_MAX
            && let Some(request) = requests.next()
        {
            let mut client = client.clone();
            calls.spawn(async move { client.submit(request).await });
        }
        match calls.join_next().await {
            None => return Ok(()),
            Some(Ok(submitted)) => drop(submitted?),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Returns an id that the same file has again, and another content has not.
fn default_id(file: &Path, digest: &str) -> Result<TaskId> {
    let name = file.file_stem().map(OsStr::as_encoded_bytes).unwrap_or_default();
    let is_plain = |byte: &&u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let name: String = name.iter().filter(is_plain).take(NAME_CHARS_MAX).map(|&byte| char::from(byte)).collect();
    TaskId::new(format!("{name}-{}", &digest[..DIGEST_DIGITS]))
}

/// Returns the id of a member in the center.
pub(super) fn member_id(group: &TaskId, member: &str) -> Result<TaskId> {
    let id = format!("{group}.{member}");
    let too_long = |_| {
        Error::bad_request(format!("{id} would be the ID of member {member}, and an ID has at most 64 characters"))
            .advise("give the group a shorter --id, or the member a shorter id")
    };
    TaskId::new(id.clone()).map_err(too_long)
}

fn request(
    raw: &RawBatchTask,
    group: &TaskId,
    batch: &Batch,
    member: &Member,
    clean_up: bool,
) -> Result<wire::SubmitRequest> {
    let id = member_id(group, member.id.as_str())?.to_string();
    let spec = match &member.work {
        Work::Task(spec) => wire::Spec::from(spec),
        Work::Run(run) => wire::Spec { work: Some(wire::spec::Work::Run(hook_work(run))) },
    };
    let mut after = Vec::with_capacity(member.after.len());
    for dependency in &member.after {
        let task = member_id(group, batch.members[dependency.on].id.as_str())?.to_string();
        after.push(wire::Dependency { task, condition: dependency.condition.as_str().to_owned() });
    }
    Ok(wire::SubmitRequest {
        id,
        priority: raw.priority,
        max_attempts: raw.max_attempts.unwrap_or_default(),
        spec: Some(spec),
        after,
        group: Some(wire::Membership { group: group.to_string(), clean_up }),
        windows: member.windows.clone(),
        placement: (!member.placement.is_unset()).then(|| wire::Placement::from(&member.placement)),
        ..wire::SubmitRequest::default()
    })
}

fn hook_work(HookRun { hook, node, arguments, input, timeout }: &HookRun) -> wire::RunWork {
    wire::RunWork {
        hook: hook.to_string(),
        node: node.clone().map(String::from),
        arguments: arguments.iter().map(ToString::to_string).collect(),
        // It was text in the file.
        input: String::from_utf8_lossy(input).into_owned(),
        timeout_ms: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        at_most_once: false,
    }
}

/// Arranges requests so that each comes in a later level than those of the others that it waits for.
fn levels(requests: Vec<wire::SubmitRequest>) -> Vec<Vec<wire::SubmitRequest>> {
    let index: HashMap<&str, usize> =
        requests.iter().enumerate().map(|(index, request)| (request.id.as_str(), index)).collect();
    let mut dependents = vec![Vec::new(); requests.len()];
    let mut open = vec![0; requests.len()];
    for (dependent, request) in requests.iter().enumerate() {
        for on in request.after.iter().filter_map(|dependency| index.get(dependency.task.as_str())) {
            dependents[*on].push(dependent);
            open[dependent] += 1;
        }
    }
    let mut level_of = vec![0; requests.len()];
    let mut ready: Vec<usize> = (0..requests.len()).filter(|&index| open[index] == 0).collect();
    while let Some(index) = ready.pop() {
        for &dependent in &dependents[index] {
            level_of[dependent] = level_of[dependent].max(level_of[index] + 1);
            open[dependent] -= 1;
            if open[dependent] == 0 {
                ready.push(dependent);
            }
        }
    }
    let mut levels = vec![Vec::new(); level_of.iter().max().map_or(0, |last| last + 1)];
    requests.into_iter().zip(level_of).for_each(|(request, level)| levels[level].push(request));
    levels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::center::args::{RawSubmit, RawWork};
    use blockhaul_engine::error::Code;
    use clap::Parser;

    fn resolve(text: &str, arguments: &[&str]) -> Result<GroupSubmission> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm 42.toml");
        std::fs::write(&file, text).unwrap();
        let words = [&["blockhaul", "submit", "batch", file.to_str().unwrap()], arguments].concat();
        let Command::Submit(raw) = Cli::try_parse_from(words).unwrap().command else { panic!("it says submit") };
        let RawSubmit { work: RawWork::Batch(raw) } = *raw else { panic!("it says batch") };
        GroupSubmission::resolve(&raw, &Place::Center)
    }

    const CHAIN: &str = "
        parallel = 2
        on-failure = 'continue'
        [[copy]]
        id = 'b'
        from = 'nbd://h/a'
        to = 'nbd://h/b'
        source-stable = true
        after = ['a:end']
        [[copy]]
        id = 'a'
        from = 'nbd://h/b'
        to = 'nbd://h/c'
        source-stable = true
    ";

    #[test]
    fn members_are_submitted_after_those_that_they_wait_for() {
        let GroupSubmission { group, levels } = resolve(CHAIN, &["--id", "g", "--priority", "7"]).unwrap();
        let Some(wire::spec::Work::Group(work)) = group.spec.unwrap().work else { panic!("it is a group") };
        assert_eq!((group.id.as_str(), work.members, work.parallel, work.continues), ("g", 2, Some(2), true));
        let ids: Vec<Vec<&str>> =
            levels.iter().map(|level| level.iter().map(|request| request.id.as_str()).collect()).collect();
        assert_eq!(ids, [["g.a"], ["g.b"]]);
        let last = &levels[1][0];
        assert_eq!((last.after[0].task.as_str(), last.after[0].condition.as_str()), ("g.a", "end"));
        let member = last.group.as_ref().unwrap();
        assert_eq!((member.group.as_str(), member.clean_up, last.priority), ("g", true, 7));
    }

    #[test]
    fn a_hook_keeps_all_that_the_file_says() {
        let text =
            "[[run]]\nid = 'r'\nhook = 'freeze-vm'\nnode = 'n1'\nargs = { VM = 'v 42' }\ninput = 'x'\ntimeout = '9s'";
        let GroupSubmission { levels, .. } = resolve(text, &[]).unwrap();
        let Some(wire::spec::Work::Run(run)) = levels[0][0].spec.clone().unwrap().work else { panic!("it is a hook") };
        let given = (run.hook.as_str(), run.node.as_deref(), run.input.as_str(), run.timeout_ms);
        assert_eq!(given, ("freeze-vm", Some("n1"), "x", Some(9000)));
        assert_eq!(run.arguments, ["VM=v 42"]);
    }

    #[test]
    fn a_copy_between_hooks_is_a_group_of_three_on_its_node() {
        let hooks = |before: Option<&str>, finally: Option<&str>| CopyHooks {
            before: before.map(str::to_owned),
            finally: finally.map(str::to_owned),
        };
        let work = wire::CopyWork {
            source: String::from("file://n1/a"),
            destination: String::from("nbd://h/b"),
            source_stable: true,
            ..wire::CopyWork::default()
        };
        let copy = wire::SubmitRequest {
            id: String::from("c"),
            spec: Some(wire::Spec { work: Some(wire::spec::Work::Copy(work)) }),
            after: vec![wire::Dependency { task: String::from("t"), condition: String::new() }],
            ..wire::SubmitRequest::default()
        };
        let GroupSubmission { group, levels } =
            GroupSubmission::of_copy(copy.clone(), &Place::Center, hooks(Some("freeze"), Some("thaw"))).unwrap();
        let Some(wire::spec::Work::Group(work)) = group.spec.unwrap().work else { panic!("it is a group") };
        assert_eq!((group.id.as_str(), work.members, work.hold, group.after.len()), ("c", 3, true, 0));
        let members: Vec<&wire::SubmitRequest> = levels.iter().flatten().collect();
        let on = |member: &wire::SubmitRequest| format!("{} {}", member.id, member.after[0].task);
        assert_eq!(
            members.iter().map(|member| on(member)).collect::<Vec<_>>(),
            ["c.before t", "c.copy c.before", "c.finally c.copy"]
        );
        let Some(wire::spec::Work::Run(thaw)) = members[2].spec.clone().unwrap().work else { panic!("it is a hook") };
        assert_eq!((thaw.hook.as_str(), thaw.node.as_deref()), ("thaw", Some("n1")));
        assert!(members[2].group.as_ref().unwrap().clean_up && !members[1].group.as_ref().unwrap().clean_up);
        let GroupSubmission { group, levels } =
            GroupSubmission::of_copy(copy, &Place::Center, hooks(None, Some("thaw"))).unwrap();
        let Some(wire::spec::Work::Group(work)) = group.spec.unwrap().work else { panic!("it is a group") };
        assert_eq!((work.members, work.hold, levels[0][0].after[0].task.as_str()), (2, false, "t"));
    }

    #[test]
    fn the_same_content_has_the_same_id_again() {
        let id = |text: &str| resolve(text, &[]).unwrap().group.id;
        assert!(id(CHAIN).starts_with("vm42-"), "{}", id(CHAIN));
        assert_eq!(id(CHAIN), id(CHAIN));
        assert_ne!(id(CHAIN), id(&CHAIN.replace("parallel = 2", "parallel = 3")));
    }

    #[test]
    fn a_member_whose_id_would_be_too_long_is_named() {
        let error = resolve(CHAIN, &["--id", &"g".repeat(63)]).unwrap_err();
        assert!(error.code == Code::BadRequest && error.message.contains("member b"), "{error}");
    }
}
