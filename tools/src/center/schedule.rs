//! Runs the commands about schedules: `schedule add`, `list`, `get`, `pause`, `resume`, `run` and `remove`.

use super::args::{
    RawBatchTask, RawCenter, RawQuery, RawSchedule, RawScheduleAdd, RawScheduleCommand, RawScheduleGet,
    RawScheduleName, RawScheduleRemove, RawScheduleRun, RawTrigger,
};
use super::batch::GroupSubmission;
use super::signing::{Signer, Signing};
use super::submit::{self, SingleTask, milliseconds};
use super::{CenterSession, LOOK_EVERY, call, show};
use crate::exit::Exit;
use crate::output::print_stderr;
use blockhaul_control::batch::Place;
use blockhaul_control::clock::{Clock, HostClock};
use blockhaul_control::rpc::schedule_view::ScheduleInfo;
use blockhaul_control::rpc::wire;
use blockhaul_control::timestamp::Timestamp;
use blockhaul_engine::error::{Error, Result};

pub(crate) fn schedule(RawSchedule { command }: RawSchedule) -> Result<Exit> {
    match command {
        RawScheduleCommand::Add(raw) => add(*raw),
        RawScheduleCommand::List(raw) => list(raw),
        RawScheduleCommand::Get(raw) => get(raw),
        RawScheduleCommand::Pause(RawScheduleName { name, center }) => {
            let mut session = CenterSession::open(center)?;
            let schedule = call!(session, pause_schedule, wire::ScheduleRequest { name })?;
            Ok(shown(&session, schedule))
        }
        RawScheduleCommand::Resume(RawScheduleName { name, center }) => {
            let mut session = CenterSession::open(center)?;
            let schedule = call!(session, resume_schedule, wire::ScheduleRequest { name })?;
            Ok(shown(&session, schedule))
        }
        RawScheduleCommand::Run(raw) => run(raw),
        RawScheduleCommand::Remove(RawScheduleRemove { name, cancel_live, center }) => {
            let mut session = CenterSession::open(center)?;
            let schedule = call!(session, remove_schedule, wire::RemoveScheduleRequest { name, cancel_live })?;
            show::schedule_name(&schedule.into(), session.json);
            Ok(Exit::Done)
        }
    }
}

/// Has a schedule make a task now. With a key, that task is signed as the schedule was.
fn run(RawScheduleRun { name, refire_from, signing, center }: RawScheduleRun) -> Result<Exit> {
    let signing = Signing::resolve(&signing)?;
    let mut session = CenterSession::open(center)?;
    let refire_from_ms = refire_from.map(|Timestamp(unix_ms)| unix_ms);
    let request = match session.signer(signing)?.filter(|_| refire_from_ms.is_none()) {
        Some(Signer { key, terms }) => {
            let schedule = call!(session, get_schedule, wire::ScheduleRequest { name })?;
            key.sign_run(&schedule, &terms)?
        }
        None => wire::RunScheduleRequest { name, refire_from_ms, ..wire::RunScheduleRequest::default() },
    };
    let schedule = call!(session, run_schedule, request)?;
    Ok(shown(&session, schedule))
}

fn shown(session: &CenterSession, schedule: wire::Schedule) -> Exit {
    show::schedule(&schedule.into(), session.json);
    Exit::Done
}

fn add(raw: RawScheduleAdd) -> Result<Exit> {
    let (mut request, center, signing) = resolve(raw)?;
    let mut session = CenterSession::open(center)?;
    if let Some(Signer { key, terms }) = session.signer(signing)? {
        key.sign_schedule(&mut request, &terms)?;
    }
    let schedule = call!(session, add_schedule, request)?;
    let existed = schedule.existed;
    let schedule = ScheduleInfo::from(schedule);
    if existed {
        let ScheduleInfo { name, state, created_at, .. } = &schedule;
        print_stderr(format_args!("schedule {name} exists already: {state}, added {created_at}"));
    }
    show::schedule_name(&schedule, session.json);
    Ok(Exit::Done)
}

/// Resolves the flags to a request.
///
/// # Errors
/// `EBadRequest`: flags that make no sense for the tasks of a schedule; and as [`submit::resolve`].
fn resolve(raw: RawScheduleAdd) -> Result<(wire::AddScheduleRequest, RawCenter, Option<Signing>)> {
    let RawScheduleAdd { name, trigger, from, tz, catch_up, keep, replace, if_version, cancel_live, signing, work } =
        raw;
    // The flag is one of the schedule and of its task.
    let own_signing = Signing::resolve(&signing)?;
    if from.is_some() && trigger.every.is_none() {
        return Err(Error::bad_request("--from is what the instants of --every count from: add --every"));
    }
    let Scheduled { mut task, members, center, signing } = match SingleTask::of(work) {
        Ok(work) => single(work)?,
        Err(raw) => batch(*raw)?,
    };
    let signing = own_signing.or(signing);
    if signing.is_some() && !members.is_empty() {
        return Err(Error::bad_request("a schedule of a batch cannot be signed: its members are made when it fires")
            .advise("sign schedules of single tasks, or submit the batch signed each time"));
    }
    task.id = String::new();
    let request = wire::AddScheduleRequest {
        name,
        trigger: Some(wire::Trigger { when: when(trigger, from) }),
        zone: tz,
        task: Some(task),
        members,
        no_catch_up: catch_up == "none",
        keep: Some(keep),
        replace,
        if_version,
        cancel_live,
    };
    Ok((request, center, signing))
}

/// Task of a schedule, and its members if it is a group.
struct Scheduled {
    task: wire::SubmitRequest,
    members: Vec<wire::ScheduledMember>,
    center: RawCenter,
    signing: Option<Signing>,
}

/// Name that stands for that of each group of a schedule while the requests for its members are made.
const GROUP: &str = "g";

fn single(work: SingleTask) -> Result<Scheduled> {
    let task = work.task();
    check_flags(task.id.is_some(), task.wait || task.check)?;
    let submit::Submission { mut request, hooks, center, wait: _, check: _, signing } = submit::resolve(work)?;
    if hooks.is_empty() {
        return Ok(Scheduled { task: request, members: Vec::new(), center, signing });
    }
    request.id = GROUP.to_owned();
    let (task, members) = GroupSubmission::of_copy(request, &place(), hooks)?.scheduled()?;
    Ok(Scheduled { task, members, center, signing })
}

fn batch(mut raw: RawBatchTask) -> Result<Scheduled> {
    check_flags(raw.id.is_some(), raw.wait)?;
    raw.id = Some(GROUP.to_owned());
    let signing = Signing::resolve(&raw.signing)?;
    let (task, members) = GroupSubmission::resolve(&raw, &place())?.scheduled()?;
    Ok(Scheduled { task, members, center: raw.center, signing })
}

/// Returns where the tasks of a schedule run. The patterns in their names are checked as they are now.
fn place() -> Place {
    Place::Schedule(Timestamp(HostClock.unix_ms()))
}

fn check_flags(has_id: bool, waits: bool) -> Result<()> {
    if has_id || waits {
        return Err(Error::bad_request(
            "a schedule names its tasks itself, and does not wait: leave out --id, --wait and --check",
        ));
    }
    Ok(())
}

fn when(trigger: RawTrigger, from: Option<Timestamp>) -> Option<wire::trigger::When> {
    use wire::trigger::When;
    let RawTrigger { cron, every, at, on_boot, next_boot } = trigger;
    let from_ms = from.map(|Timestamp(unix_ms)| unix_ms);
    let every = every.map(|every| When::Every(wire::Interval { interval_ms: milliseconds(every), from_ms }));
    let at = at.map(|Timestamp(unix_ms)| When::AtMs(unix_ms));
    let boot = on_boot.map(When::OnBoot).or(next_boot.map(When::NextBoot));
    cron.map(When::Cron).or(every).or(at).or(boot)
}

fn list(RawQuery { center }: RawQuery) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let mut after = String::new();
    loop {
        let wire::ListSchedulesReply { schedules, next } =
            call!(session, list_schedules, wire::ListSchedulesRequest { after })?;
        schedules.into_iter().for_each(|schedule| show::schedule_line(&schedule.into(), session.json));
        if next.is_empty() {
            return Ok(Exit::Done);
        }
        after = next;
    }
}

fn get(RawScheduleGet { name, wait, center }: RawScheduleGet) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    loop {
        let schedule = ScheduleInfo::from(call!(session, get_schedule, wire::ScheduleRequest { name: name.clone() })?);
        if !wait || schedule.is_over() {
            show::schedule(&schedule, session.json);
            return Ok(Exit::Done);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn resolved(arguments: &[&str]) -> Result<wire::AddScheduleRequest> {
        let words = [&["blockhaul", "schedule", "add", "nightly"], arguments].concat();
        match Cli::try_parse_from(words).map_err(|error| Error::bad_request(error.to_string()))?.command {
            Command::Schedule(raw) => match raw.command {
                RawScheduleCommand::Add(raw) => resolve(*raw).map(|(request, ..)| request),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_the_request() {
        use wire::trigger::When;
        let request = resolved(&[
            "--every",
            "90m",
            "--from",
            "2026-01-31T22:00:00Z",
            "--tz",
            "Europe/Berlin",
            "--catch-up",
            "none",
            "--keep",
            "3",
            "copy",
            "/a-%Y",
            "/b-%Y",
            "--node",
            "n1",
            "--verify",
        ])
        .unwrap();
        let every = wire::Interval { interval_ms: 5_400_000, from_ms: Some(1_769_896_800_000) };
        assert_eq!(request.trigger.unwrap().when, Some(When::Every(every)));
        assert_eq!((request.zone.as_str(), request.no_catch_up, request.keep), ("Europe/Berlin", true, Some(3)));
        let task = request.task.unwrap();
        assert!(
            task.id.is_empty() && matches!(task.spec.unwrap().work, Some(wire::spec::Work::Copy(copy)) if copy.verify)
        );
        let boot = resolved(&["--on-boot", "n1", "run", "warm-up"]).unwrap();
        assert_eq!(boot.trigger.unwrap().when, Some(When::OnBoot(String::from("n1"))));
    }

    #[test]
    fn the_members_of_a_batch_have_the_names_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("batch.toml");
        let text = "
            [[run]]
            id = 'thaw'
            hook = 'thaw'
            after = ['root:end']
            [[copy]]
            id = 'root'
            from = 'file://n1/root-%Y'
            to = 'nbd://h/root-%Y%m%d'
            source-stable = true
        ";
        std::fs::write(&file, text).unwrap();
        let request = resolved(&["--every", "1h", "batch", file.to_str().unwrap(), "--deadline", "30m"]).unwrap();
        let task = request.task.unwrap();
        let Some(wire::spec::Work::Group(group)) = task.spec.unwrap().work else { panic!("it is a batch") };
        assert_eq!((task.id.as_str(), group.members), ("", 2));
        assert_eq!(task.times.unwrap().deadline_ms, Some(1_800_000));
        let members: Vec<(&str, bool)> =
            request.members.iter().map(|member| (name_of(member), member.clean_up)).collect();
        assert_eq!(members, [("root", false), ("thaw", true)]);
        assert_eq!(request.members[1].task.as_ref().unwrap().after[0].task, "root");
        assert!(request.members.iter().all(|member| member.task.as_ref().unwrap().group.is_none()));
        let hooks = ["--before", "freeze", "--finally", "thaw"];
        let hooks = [&["--every", "1h", "copy", "file://n/a", "nbd://h/%Y", "--source-stable"][..], &hooks].concat();
        let between = resolved(&hooks).unwrap();
        assert_eq!(between.members.iter().map(name_of).collect::<Vec<_>>(), ["before", "copy", "finally"]);
        let Some(wire::spec::Work::Run(freeze)) = between.members[0].task.clone().unwrap().spec.unwrap().work else {
            panic!("it is a hook")
        };
        assert_eq!(freeze.node.as_deref(), Some("n"), "it runs where the copy does");
        let again = resolved(&hooks).unwrap();
        assert_eq!(again, between, "the same command is the same request");
    }

    fn name_of(member: &wire::ScheduledMember) -> &str {
        member.task.as_ref().map_or("", |task| &task.id)
    }

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        for bad in [
            &["noop"][..],
            &["--cron", "0 2 * * *", "--every", "1h", "noop"],
            &["--cron", "0 2 * * *", "--from", "2026-01-31T22:00:00Z", "noop"],
            &["--every", "1h", "noop", "--id", "mine"],
            &["--every", "1h", "noop", "--wait"],
            &["--every", "1h", "copy", "/a", "/b", "--node", "n", "--before", "freeze", "--after", "t"],
            &["--every", "1h", "batch", "/nowhere/batch.toml"],
        ] {
            assert!(resolved(bad).is_err(), "{bad:?}");
        }
    }
}
