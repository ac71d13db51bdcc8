//! Checks requests for schedules, and converts schedules to messages.

use super::error::RpcError;
use super::wire;
use crate::dispatcher::{NewSchedule, ScheduleCommand, ScheduleView};
use crate::model::{CatchUp, KEEP_DEFAULT, MemberTemplate, NodeId, ScheduleName, Submission, Template, Trigger};
use blockhaul_engine::error::{Error, Result};
use prost::Message;

/// Most ended tasks that a schedule keeps.
const KEEP_MAX: u32 = 1000;

/// Checks a request to add a schedule. `here` is the node that plain paths are on where there is only one.
///
/// # Errors
/// `EBadRequest`: names and numbers out of their ranges, no trigger, or a task that cannot be a template.
pub(super) fn addition(
    request: wire::AddScheduleRequest,
    here: Option<&NodeId>,
) -> Result<(ScheduleName, ScheduleCommand)> {
    let digest = digest(&request);
    let wire::AddScheduleRequest {
        name,
        trigger,
        zone,
        task,
        no_catch_up,
        keep,
        replace,
        if_version,
        cancel_live,
        members,
    } = request;
    let name = ScheduleName::new(name)?;
    let task = task.ok_or_else(|| Error::bad_request("a schedule needs a task"))?;
    if !task.id.is_empty() {
        return Err(Error::bad_request("a schedule names its tasks itself: leave out --id"));
    }
    let keep = keep.unwrap_or(KEEP_DEFAULT);
    if keep > KEEP_MAX {
        return Err(Error::bad_request(format!("a schedule keeps at most {KEEP_MAX} ended tasks")));
    }
    let new = NewSchedule {
        name: name.clone(),
        request: digest,
        trigger: trigger.try_into()?,
        zone: if zone.is_empty() { String::from("UTC") } else { zone },
        template: Template::new(Submission::parse(task, here)?)?,
        members: members.into_iter().map(|member| member_of(member, here)).collect::<Result<_>>()?,
        catch_up: if no_catch_up { CatchUp::None } else { CatchUp::Once },
        keep,
        replace: replace || if_version.is_some(),
        if_version,
        cancel_live,
    };
    Ok((name, ScheduleCommand::Add(Box::new(new))))
}

fn member_of(member: wire::ScheduledMember, here: Option<&NodeId>) -> Result<MemberTemplate> {
    let wire::ScheduledMember { task, clean_up } = member;
    let task = task.ok_or_else(|| Error::bad_request("a member of a batch needs a task"))?;
    if task.id.is_empty() {
        return Err(Error::bad_request("a member of a schedule's batch needs an id"));
    }
    MemberTemplate::new(Submission::parse(task, here)?, clean_up)
}

/// Returns the BLAKE3 of what is asked for, whatever it replaces and whoever has signed it, in hexadecimal digits.
fn digest(request: &wire::AddScheduleRequest) -> String {
    let mut asked =
        wire::AddScheduleRequest { replace: false, if_version: None, cancel_live: false, ..request.clone() };
    // The same command signs anew each time.
    if let Some(task) = &mut asked.task {
        (task.signed_order, task.order_signature) = (Vec::new(), Vec::new());
    }
    blake3::hash(&asked.encode_to_vec()).to_hex().to_string()
}

impl TryFrom<Option<wire::Trigger>> for Trigger {
    type Error = Error;

    fn try_from(trigger: Option<wire::Trigger>) -> Result<Self> {
        use wire::trigger::When;
        match trigger.and_then(|trigger| trigger.when) {
            Some(When::Cron(expression)) => Ok(Trigger::Cron(expression)),
            Some(When::Every(wire::Interval { interval_ms, from_ms })) => Ok(Trigger::Every { interval_ms, from_ms }),
            Some(When::AtMs(at_ms)) => Ok(Trigger::At(at_ms)),
            Some(When::OnBoot(node)) => NodeId::new(node).map(Trigger::OnBoot),
            Some(When::NextBoot(node)) => NodeId::new(node).map(Trigger::NextBoot),
            None => {
                Err(Error::bad_request("a schedule needs a trigger: --cron, --every, --at, --on-boot or --next-boot"))
            }
        }
    }
}

/// Checks the name of a schedule.
///
/// # Errors
/// `EBadRequest`.
pub(super) fn name(text: String) -> Result<ScheduleName, RpcError> {
    ScheduleName::new(text).map_err(RpcError::from)
}

impl From<ScheduleView> for wire::Schedule {
    fn from(view: ScheduleView) -> Self {
        let ScheduleView { record, next_ms, live_task, existed } = view;
        Self {
            name: record.name.into(),
            trigger: Some(record.trigger.into()),
            zone: record.zone,
            task: Some(record.template.into()),
            state: record.state.as_str().to_owned(),
            reason: record.reason,
            version: record.version,
            created_ms: record.created_ms,
            last_fired_ms: record.last_fired_ms,
            last_task: record.last_task.map(String::from),
            is_live: live_task.is_some(),
            next_ms,
            fired: record.fired,
            skipped: record.skipped,
            keep: record.keep,
            no_catch_up: record.catch_up == CatchUp::None,
            existed,
        }
    }
}

impl From<Trigger> for wire::Trigger {
    fn from(trigger: Trigger) -> Self {
        use wire::trigger::When;
        let when = match trigger {
            Trigger::Cron(expression) => When::Cron(expression),
            Trigger::Every { interval_ms, from_ms } => When::Every(wire::Interval { interval_ms, from_ms }),
            Trigger::At(at_ms) => When::AtMs(at_ms),
            Trigger::OnBoot(node) => When::OnBoot(node.into()),
            Trigger::NextBoot(node) => When::NextBoot(node.into()),
        };
        Self { when: Some(when) }
    }
}

impl From<Template> for wire::SubmitRequest {
    fn from(template: Template) -> Self {
        let Template { spec, priority, max_attempts, times, placement, windows, order } = template;
        let (signed_order, order_signature) = order.map(|order| order.to_wire()).unwrap_or_default();
        let times = wire::Times { start_at_ms: None, delay_ms: times.delay_ms, deadline_ms: times.deadline_ms };
        Self {
            priority: priority.into(),
            max_attempts,
            spec: Some(wire::Spec::from(&spec)),
            times: Some(times),
            placement: (!placement.is_unset()).then(|| wire::Placement::from(&placement)),
            windows,
            signed_order,
            order_signature,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::Code;

    fn request() -> wire::AddScheduleRequest {
        let work = wire::spec::Work::Noop(wire::NoopWork { milliseconds: 5, node: None });
        wire::AddScheduleRequest {
            name: String::from("nightly"),
            trigger: Some(Trigger::Cron(String::from("0 2 * * *")).into()),
            task: Some(wire::SubmitRequest {
                spec: Some(wire::Spec { work: Some(work) }),
                ..wire::SubmitRequest::default()
            }),
            ..wire::AddScheduleRequest::default()
        }
    }

    fn added(request: wire::AddScheduleRequest) -> Result<NewSchedule> {
        match addition(request, None)? {
            (_, ScheduleCommand::Add(new)) => Ok(*new),
            other => panic!("a schedule was to be added, not {other:?}"),
        }
    }

    #[test]
    fn the_digest_is_of_what_is_asked_for_and_not_of_what_is_replaced() {
        let plain = added(request()).unwrap();
        assert_eq!((plain.zone.as_str(), plain.keep, plain.replace), ("UTC", KEEP_DEFAULT, false));
        let replacing = wire::AddScheduleRequest { replace: true, cancel_live: true, ..request() };
        assert_eq!(added(replacing).unwrap().request, plain.request);
        let other = wire::AddScheduleRequest { zone: String::from("Europe/Berlin"), ..request() };
        assert_ne!(added(other).unwrap().request, plain.request);
    }

    #[test]
    fn what_cannot_be_a_schedule_is_refused() {
        let task = |change: fn(&mut wire::SubmitRequest)| {
            let mut task = request().task.unwrap();
            change(&mut task);
            wire::AddScheduleRequest { task: Some(task), ..request() }
        };
        for bad in [
            wire::AddScheduleRequest { name: "x".repeat(41), ..request() },
            wire::AddScheduleRequest { trigger: None, ..request() },
            wire::AddScheduleRequest { task: None, ..request() },
            wire::AddScheduleRequest { keep: Some(KEEP_MAX + 1), ..request() },
            task(|task| task.id = String::from("mine")),
            task(|task| task.retry_of = String::from("mine")),
            task(|task| task.times = Some(wire::Times { start_at_ms: Some(5), ..wire::Times::default() })),
            task(|task| task.after = vec![wire::Dependency { task: String::from("a"), condition: String::new() }]),
        ] {
            assert_eq!(added(bad.clone()).unwrap_err().code, Code::BadRequest, "{bad:?}");
        }
    }
}
