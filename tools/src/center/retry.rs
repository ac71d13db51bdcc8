//! Builds the submission that tries an ended task again: the same order under the next name, `ID~2` after `ID`.
//!
//! Of a group, the members are tried again that have not succeeded, and its clean-up. What a member waited for outside of
//! these counts as met. The same command again makes the same submission.

use super::batch::{GroupSubmission, member_id};
use blockhaul_control::model::TaskId;
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::{Error, Result};
use std::collections::BTreeMap;

/// Returns the request for the next try of a task that is no group. It waits for no other task: what the first one waited for
/// has been decided.
///
/// # Errors
/// `EBadRequest` if the task is a member of a group.
pub(super) fn single(task: wire::Task) -> Result<wire::SubmitRequest> {
    Ok(wire::SubmitRequest {
        id: TaskId::new(task.id.as_str())?.next_try()?.to_string(),
        retry_of: task.id.clone(),
        ..order(task)
    })
}

/// Returns the submission for the next try of a group with these members.
///
/// # Errors
/// `EBadRequest` if all members have succeeded, or the ID of one would be too long.
pub(super) fn group(group: wire::Task, members: Vec<wire::Task>) -> Result<GroupSubmission> {
    let (first, next) = (group.id.clone(), TaskId::new(group.id.as_str())?.next_try()?);
    let is_clean_up = |member: &wire::Task| member.group.as_ref().is_some_and(|group| group.clean_up);
    if members.iter().all(|member| member.state == "SUCCEEDED") {
        return Err(Error::bad_request(format!("no member of {first} is left to try again")));
    }
    let again: Vec<wire::Task> =
        members.into_iter().filter(|member| member.state != "SUCCEEDED" || is_clean_up(member)).collect();
    let name = |id: &str| {
        let member = id.strip_prefix(&format!("{first}.")).unwrap_or(id);
        member_id(&next, member).map(String::from)
    };
    let names =
        again.iter().map(|member| Ok((member.id.clone(), name(&member.id)?))).collect::<Result<BTreeMap<_, _>>>()?;
    let count = u32::try_from(again.len()).unwrap_or(u32::MAX);
    let requests = again.into_iter().map(|member| {
        let kept = |dependency: &wire::Dependency| {
            let task = names.get(&dependency.task)?.clone();
            Some(wire::Dependency { task, condition: dependency.condition.clone() })
        };
        wire::SubmitRequest {
            id: names.get(&member.id).cloned().unwrap_or_default(),
            after: member.after.iter().filter_map(kept).collect(),
            group: Some(wire::Membership { group: next.to_string(), clean_up: is_clean_up(&member) }),
            ..order(member)
        }
    });
    let requests = requests.collect();
    let mut order = wire::SubmitRequest { id: next.to_string(), retry_of: first.clone(), ..order(group) };
    if let Some(wire::Spec { work: Some(wire::spec::Work::Group(work)) }) = &mut order.spec {
        work.members = count;
    }
    Ok(GroupSubmission::new(order, requests))
}

/// Returns what the client of a task has asked for, but its name and what it waits for.
fn order(task: wire::Task) -> wire::SubmitRequest {
    let wire::Task { spec, priority, max_attempts, placement, windows, .. } = task;
    wire::SubmitRequest { spec, priority, max_attempts, placement, windows, ..wire::SubmitRequest::default() }
}
