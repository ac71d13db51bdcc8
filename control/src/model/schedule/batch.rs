//! Describes the members of a batch that a schedule submits, with patterns in the names of their volumes.
//!
//! They do not fit into the record of the schedule. So they are stored beside it, in as few nodes as possible, and read when
//! a group of them is to be stored. What always holds: each member waits for earlier ones only, so that there is no circle,
//! and the names of the tasks are those of their group, a dot, and the member's name in the batch.

use super::time_pattern::resolve_volume;
use crate::coord::NODE_BYTES_MAX;
use crate::model::dependency::{check_dependencies, parse_dependency};
use crate::model::{GroupName, PlacementRules, Submission, TaskId, TaskSpec, TaskTimes};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::flow::graph::Condition;
use jiff::Zoned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most members of a batch that a schedule submits.
pub(crate) const SCHEDULE_MEMBERS_MAX: usize = 200;
/// Largest length of all of them together as they are stored, in bytes: they are stored in one multi.
pub(crate) const MEMBERS_BYTES_MAX: usize = 192 << 10;

/// Member of a batch that a schedule submits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberTemplate {
    /// Its name in the batch.
    pub id: TaskId,
    /// Work, with patterns in the names of its volumes.
    pub spec: TaskSpec,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// Failures without progress after which it fails.
    pub max_attempts: u32,
    /// Earlier members that it waits for, and how each has to end: `freeze:success`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Whether it runs although its group is stopping.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clean_up: bool,
    /// Where it may run.
    #[serde(default, skip_serializing_if = "PlacementRules::is_unset")]
    pub placement: PlacementRules,
    /// Windows inside of which it may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<String>,
}

impl MemberTemplate {
    /// Takes what a client has submitted as a member.
    ///
    /// # Errors
    /// `EBadRequest`: it has times of its own, is a group, or tries another task again.
    pub(crate) fn new(submission: Submission, clean_up: bool) -> Result<Self> {
        let Submission { id, priority, max_attempts, spec, after, group, times, placement, windows, retry_of, .. } =
            submission;
        if group.is_some() || retry_of.is_some() || spec.kind().group().is_some() || times != TaskTimes::default() {
            let message =
                format!("member {id}: a member of a schedule's batch has no times, group or members of its own");
            return Err(Error::bad_request(message));
        }
        let after = after.iter().map(|(on, condition)| format!("{on}:{}", condition.as_str())).collect();
        Ok(Self { id, spec, priority, max_attempts, after, clean_up, placement, windows })
    }

    /// Returns the name of its task in a group.
    ///
    /// # Errors
    /// `EBadRequest`: it would be too long.
    pub(crate) fn task_id(&self, group: &TaskId) -> Result<TaskId> {
        member_id(group, self.id.as_str())
    }

    /// Returns the names of the tasks that it waits for in a group.
    pub(crate) fn predecessors(&self, group: &TaskId) -> impl Iterator<Item = TaskId> {
        let names = self.after.iter().filter_map(|text| parse_dependency(text).ok());
        names.filter_map(|(on, _)| member_id(group, on).ok())
    }

    /// Returns the member of a group, whose names are those of an instant.
    ///
    /// # Errors
    /// `EBadRequest`: its names make no valid task at this instant.
    pub(crate) fn task(&self, group: &TaskId, at: &Zoned) -> Result<Submission> {
        let made = || {
            let mut spec = self.spec.clone();
            spec.kind_mut().rename_volumes(&|name| resolve_volume(name, at))?;
            spec.kind().validate()?;
            let after = self.after.iter().map(|text| {
                let (on, condition) = parse_dependency(text)?;
                Ok((member_id(group, on)?, condition))
            });
            let after: Vec<(TaskId, Condition)> = after.collect::<Result<_>>()?;
            check_dependencies(&after.iter().map(|(on, _)| on.as_str()).collect::<Vec<_>>())?;
            let id = self.task_id(group)?;
            Ok(Submission {
                after,
                group: Some(GroupName { id: group.clone(), clean_up: self.clean_up }),
                placement: self.placement.clone(),
                windows: self.windows.clone(),
                ..Submission::new(id, self.priority, self.max_attempts, spec)
            })
        };
        made().map_err(|error: Error| Error { message: format!("member {}: {}", self.id, error.message), ..error })
    }
}

fn member_id(group: &TaskId, member: &str) -> Result<TaskId> {
    let id = format!("{group}.{member}");
    TaskId::new(id.clone()).map_err(|_| {
        Error::bad_request(format!("its task would be {id}, and an ID has at most 64 characters"))
            .advise("give the schedule a shorter name, or the member a shorter id")
    })
}

/// Checks what must hold of the members together.
///
/// # Errors
/// `EBadRequest`: too many of them, two of one name, or one that waits for something else than an earlier one.
pub(crate) fn check_members(members: &[MemberTemplate]) -> Result<()> {
    if members.len() > SCHEDULE_MEMBERS_MAX {
        let count = members.len();
        let message = format!("the batch has {count} members: a schedule submits at most {SCHEDULE_MEMBERS_MAX}");
        return Err(Error::bad_request(message));
    }
    let mut earlier = BTreeSet::new();
    for member in members {
        for text in &member.after {
            let (on, _) = parse_dependency(text)?;
            if !earlier.contains(on) {
                let message = format!("member {} waits for {on}, which is no earlier member", member.id);
                return Err(Error::bad_request(message));
            }
        }
        if !earlier.insert(member.id.as_str()) {
            return Err(Error::bad_request(format!("two members have the id {}", member.id)));
        }
    }
    Ok(())
}

/// Returns the members as they are stored: in their order, in as few nodes as possible.
///
/// # Errors
/// `EBadRequest`: one of them, or all together, are too large.
pub(crate) fn encode_members(members: &[MemberTemplate]) -> Result<Vec<Vec<u8>>> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for member in members {
        let text = serde_json::to_vec(member).map_err(|error| Error::bad_request(error.to_string()))?;
        let is_full = |part: &Vec<u8>| part.len() + text.len() + 1 > NODE_BYTES_MAX;
        if text.len() + 2 > NODE_BYTES_MAX {
            let message = format!("member {} has {} bytes, at most {NODE_BYTES_MAX} fit", member.id, text.len() + 2);
            return Err(Error::bad_request(message));
        }
        if parts.last().is_none_or(is_full) {
            parts.push(vec![b'[']);
        }
        let Some(part) = parts.last_mut() else { continue };
        // The end of the list so far becomes a comma.
        if let Some(last) = part.last_mut()
            && *last == b']'
        {
            *last = b',';
        }
        part.extend(text);
        part.push(b']');
    }
    match parts.iter().map(Vec::len).sum() {
        0..=MEMBERS_BYTES_MAX => Ok(parts),
        bytes => {
            let message = format!("the members have {bytes} bytes together, at most {MEMBERS_BYTES_MAX} fit");
            Err(Error::bad_request(message))
        }
    }
}

/// Returns the members of one stored part.
///
/// # Errors
/// What is wrong with it and where.
pub(crate) fn decode_members(part: &[u8]) -> std::result::Result<Vec<MemberTemplate>, serde_json::Error> {
    serde_json::from_slice(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NoopTask;
    use blockhaul_engine::error::Code;

    fn member(id: &str, after: &[(&str, Condition)]) -> MemberTemplate {
        let submission = Submission {
            after: after.iter().map(|(on, condition)| (TaskId::new(*on).unwrap(), *condition)).collect(),
            ..Submission::new(TaskId::new(id).unwrap(), 5, 3, TaskSpec::Noop(NoopTask::new(5, None)))
        };
        MemberTemplate::new(submission, false).unwrap()
    }

    #[test]
    fn members_survive_the_store_in_as_few_nodes_as_possible() {
        let members: Vec<_> = (0..SCHEDULE_MEMBERS_MAX).map(|number| member(&format!("m{number}"), &[])).collect();
        let parts = encode_members(&members).unwrap();
        assert!(parts.iter().all(|part| part.len() <= NODE_BYTES_MAX));
        let bytes: usize = parts.iter().map(Vec::len).sum();
        assert_eq!(parts.len(), bytes.div_ceil(NODE_BYTES_MAX), "{bytes} bytes");
        let read: Vec<_> = parts.iter().flat_map(|part| decode_members(part).unwrap()).collect();
        assert_eq!(read, members);
        assert!(encode_members(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_does_not_fit_or_has_no_order_is_refused() {
        let many: Vec<_> = (0..=SCHEDULE_MEMBERS_MAX).map(|number| member(&format!("m{number}"), &[])).collect();
        let on = |on: &str| member("b", &[(on, Condition::End)]);
        for (members, word) in [
            (many, "at most 200"),
            (vec![member("a", &[]), member("a", &[])], "two members"),
            (vec![on("a"), member("a", &[])], "no earlier member"),
            (vec![on("b")], "no earlier member"),
        ] {
            let error = check_members(&members).unwrap_err();
            assert!(error.code == Code::BadRequest && error.message.contains(word), "{error}");
        }
        assert!(check_members(&[member("a", &[]), on("a")]).is_ok());
        let long = MemberTemplate { windows: vec!["w".repeat(NODE_BYTES_MAX)], ..member("a", &[]) };
        assert_eq!(encode_members(&[long]).unwrap_err().code, Code::BadRequest);
        let large = |number| MemberTemplate { windows: vec!["w".repeat(4000)], ..member(&format!("m{number}"), &[]) };
        let error = encode_members(&(0..60).map(large).collect::<Vec<_>>()).unwrap_err();
        assert!(error.message.contains(&MEMBERS_BYTES_MAX.to_string()), "{error}");
    }

    #[test]
    fn a_member_is_named_after_its_group_and_its_instant() {
        let at: Zoned = "2026-03-09T02:05:07[UTC]".parse().unwrap();
        let group = TaskId::new("nightly.20260309T020507Z").unwrap();
        let made = member("b", &[("a", Condition::End)]).task(&group, &at).unwrap();
        assert_eq!(made.id.as_str(), "nightly.20260309T020507Z.b");
        assert_eq!(made.after, [(TaskId::new("nightly.20260309T020507Z.a").unwrap(), Condition::End)]);
        let error = member(&"x".repeat(64), &[]).task(&group, &at).unwrap_err();
        assert!(error.message.contains("shorter"), "{error}");
    }
}
