//! Validates a client's request for a task, as far as that is possible without touching a volume.

use super::wire;
use crate::model::dependency::{check_dependencies, parse_dependency};
use crate::model::{
    GroupName, NodeId, PlacementRules, SignedOrder, Submission, TaskChanges, TaskId, TaskSpec, TaskTimes, Windows,
    check_max_attempts, check_priority,
};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::flow::graph::Condition;

/// Default of the failures without progress after which a task fails.
const MAX_ATTEMPTS_DEFAULT: u32 = 5;

impl Submission {
    /// Checks a request. `here` is the node that plain paths are on where there is only one.
    ///
    /// # Errors
    /// `EBadRequest` for names and numbers out of their ranges; `EPermission` for a malformed signature; and as
    /// `destination::check`.
    pub fn check(request: wire::SubmitRequest, here: Option<&NodeId>) -> Result<Self> {
        let submission = Self::parse(request, here)?;
        submission.spec.kind().validate()?;
        Ok(submission)
    }

    /// Checks everything of a request but its work, which may be a template.
    ///
    /// # Errors
    /// `EBadRequest` for names and numbers out of their ranges.
    pub(super) fn parse(request: wire::SubmitRequest, here: Option<&NodeId>) -> Result<Self> {
        let wire::SubmitRequest {
            id,
            priority,
            max_attempts,
            spec,
            after,
            group,
            times,
            retry_of,
            placement,
            windows,
            signed_order,
            order_signature,
        } = request;
        let priority = priority_of(priority)?;
        let max_attempts = if max_attempts == 0 { MAX_ATTEMPTS_DEFAULT } else { max_attempts };
        check_max_attempts(max_attempts)?;
        let id = if id.is_empty() { TaskId::fresh() } else { TaskId::new(id)? };
        let retry_of = (!retry_of.is_empty()).then(|| TaskId::new(retry_of)).transpose()?;
        check_try(&id, retry_of.as_ref(), group.is_some())?;
        let group = group.map(|group| group_name(&id, group)).transpose()?;
        let spec = parse_spec(spec, here)?;
        let is_group = spec.kind().group().is_some();
        if is_group && !after.is_empty() {
            return Err(Error::bad_request("a group waits for no other task: let its members wait for each other"));
        }
        Ok(Self {
            id,
            priority,
            max_attempts,
            spec,
            after: dependencies(after)?,
            group,
            times: times.map(task_times).transpose()?.unwrap_or_default(),
            windows: checked_windows(windows, is_group)?,
            placement: placement_rules(placement.unwrap_or_default(), is_group)?,
            retry_of,
            notifies: None,
            order: SignedOrder::from_wire(signed_order, &order_signature)?,
        })
    }
}

/// Checks a request to change settings of a task.
impl TryFrom<&wire::SetRequest> for TaskChanges {
    type Error = Error;

    fn try_from(request: &wire::SetRequest) -> Result<Self> {
        let wire::SetRequest { id: _, limit, priority, max_attempts, start_at_ms, deadline_ms } = request;
        let changes = Self {
            limit: limit.map(|limit| limit.value),
            priority: priority.map(priority_of).transpose()?,
            max_attempts: *max_attempts,
            start_at_ms: start_at_ms.map(|start| start.value),
            deadline_ms: deadline_ms.map(|deadline| deadline.value),
        };
        changes.check().map(|()| changes)
    }
}

fn priority_of(priority: u32) -> Result<u8> {
    let priority = u8::try_from(priority).unwrap_or(u8::MAX);
    check_priority(priority).map(|()| priority)
}

/// Checks that a name with the number of a try is that of the next try, or of a member of one.
fn check_try(id: &TaskId, retry_of: Option<&TaskId>, is_member: bool) -> Result<()> {
    match retry_of {
        Some(first) if first.next_try()? == *id => Ok(()),
        Some(first) => Err(Error::bad_request(format!("{id} cannot be the next try of {first}"))),
        None if id.is_retry() && !is_member => {
            Err(Error::bad_request(format!("the ID {id} is that of a retry: use 'blockhaul retry'")))
        }
        None => Ok(()),
    }
}

fn task_times(times: wire::Times) -> Result<TaskTimes> {
    let wire::Times { start_at_ms, delay_ms, deadline_ms } = times;
    let times = TaskTimes { start_at_ms, delay_ms, deadline_ms };
    times.check().map(|()| times)
}

fn placement_rules(placement: wire::Placement, is_group: bool) -> Result<PlacementRules> {
    let wire::Placement { require, prefer, apart_from } = placement;
    let rules = PlacementRules {
        require: require.into_iter().collect(),
        prefer: prefer.into_iter().collect(),
        apart_from: (!apart_from.is_empty()).then_some(apart_from),
    };
    if is_group && !rules.is_unset() {
        return Err(Error::bad_request("a group has no node: its members say where they may run"));
    }
    rules.check().map(|()| rules)
}

fn checked_windows(windows: Vec<String>, is_group: bool) -> Result<Vec<String>> {
    if is_group && !windows.is_empty() {
        return Err(Error::bad_request("a group has no windows: its members have"));
    }
    Windows::parse(&windows).map(|_| windows)
}

fn group_name(id: &TaskId, wire::Membership { group, clean_up }: wire::Membership) -> Result<GroupName> {
    let is_named_after = id.as_str().strip_prefix(group.as_str()).is_some_and(|rest| rest.starts_with('.'));
    if !is_named_after {
        let message = format!("the ID of a member begins with that of its group and a dot: {id} does not");
        return Err(Error::bad_request(message));
    }
    Ok(GroupName { id: TaskId::new(group)?, clean_up })
}

fn dependencies(after: Vec<wire::Dependency>) -> Result<Vec<(TaskId, Condition)>> {
    let texts: Vec<&str> = after.iter().map(|dependency| dependency.task.as_str()).collect();
    check_dependencies(&texts)?;
    let one = |wire::Dependency { task, condition }: wire::Dependency| {
        let text = if condition.is_empty() { task } else { format!("{task}:{condition}") };
        let (id, condition) = parse_dependency(&text)?;
        Ok((TaskId::new(id)?, condition))
    };
    after.into_iter().map(one).collect()
}

fn parse_spec(spec: Option<wire::Spec>, here: Option<&NodeId>) -> Result<TaskSpec> {
    let mut spec = TaskSpec::try_from(spec)?;
    if let Some(here) = here {
        spec.kind_mut().imply_node(here);
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CopyTask, FenceMethod};
    use blockhaul_engine::error::Code;

    fn request(source: &str, destination: &str) -> wire::SubmitRequest {
        let copy = wire::CopyWork {
            source: source.to_owned(),
            destination: destination.to_owned(),
            ..wire::CopyWork::default()
        };
        wire::SubmitRequest {
            id: "t".to_owned(),
            spec: Some(wire::Spec { work: Some(wire::spec::Work::Copy(copy)) }),
            ..wire::SubmitRequest::default()
        }
    }

    fn copy(request: wire::SubmitRequest) -> Result<CopyTask> {
        match Submission::check(request, Some(&NodeId::new("me").unwrap()))?.spec {
            TaskSpec::Copy(copy) => Ok(copy),
            other => panic!("a copy was asked for, not {other:?}"),
        }
    }

    #[test]
    fn what_is_not_said_is_settled() {
        let local = copy(request("/a", "/b")).unwrap();
        assert_eq!((local.node.unwrap().as_str(), local.fence), ("me", FenceMethod::Local));
        assert_eq!((local.sparse.as_str(), local.reflink.as_str(), local.digest.as_str()), ("auto", "auto", "xxh3"));
        let network = Submission::check(request("nbd://h/a", "nbd://h/b"), None).unwrap();
        assert_eq!((network.max_attempts, network.source_to_look_at()), (MAX_ATTEMPTS_DEFAULT, Some("nbd://h/a")));
    }

    #[test]
    fn nonsense_is_refused_with_what_is_wrong() {
        let good = || request("file://n/a", "file://n/b");
        for (request, word) in [
            (wire::SubmitRequest { priority: 10, ..good() }, "priority"),
            (wire::SubmitRequest { max_attempts: 101, ..good() }, "attempts"),
            (wire::SubmitRequest { id: "a/b".to_owned(), ..good() }, "a/b"),
            (request("file://n1/a", "file://n2/b"), "file://n2/b"),
            (wire::SubmitRequest::default(), "kind"),
        ] {
            let error = Submission::check(request, None).unwrap_err();
            assert_eq!(error.code, Code::BadRequest, "{error}");
            assert!(error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn an_id_is_made_up_where_none_is_given() {
        let made =
            || Submission::check(wire::SubmitRequest { id: String::new(), ..request("nbd://h/a", "nbd://h/b") }, None);
        assert_ne!(made().unwrap().id, made().unwrap().id);
    }

    #[test]
    fn a_group_that_waits_for_others_is_refused() {
        let work = wire::GroupWork { digest: "0".repeat(64), members: 1, ..wire::GroupWork::default() };
        let group = |after: Vec<wire::Dependency>| wire::SubmitRequest {
            spec: Some(wire::Spec { work: Some(wire::spec::Work::Group(work.clone())) }),
            after,
            ..wire::SubmitRequest::default()
        };
        assert!(Submission::check(group(Vec::new()), None).is_ok());
        let after = wire::Dependency { task: "t".to_owned(), condition: String::new() };
        assert_eq!(Submission::check(group(vec![after]), None).unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn a_member_is_named_after_its_group() {
        let member = |id: &str| {
            let group = Some(wire::Membership { group: "g".to_owned(), clean_up: false });
            let request = wire::SubmitRequest { id: id.to_owned(), group, ..request("nbd://h/a", "file://n1/b") };
            Submission::check(request, None).err().map(|error| error.code)
        };
        assert_eq!(
            ["g.a", "g", "ga", "h.a"].map(member),
            [None, Some(Code::BadRequest), Some(Code::BadRequest), Some(Code::BadRequest)]
        );
    }
}
