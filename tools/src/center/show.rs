//! Shows replies of a center, as text or as JSON.

use crate::output;
use blockhaul_control::rpc::schedule_view::ScheduleInfo;
use blockhaul_control::rpc::task_view::{AttemptView, DependencyView, TaskView};
use blockhaul_control::rpc::wire;
use blockhaul_control::timestamp::Timestamp;
use blockhaul_engine::units::format_size;
use serde::Serialize;
use std::collections::BTreeMap;

/// Prints one event, or text.
fn print<T: Serialize>(json: bool, event: &'static str, object: &T, lines: impl FnOnce() -> Vec<String>) {
    if json {
        output::json_event(event, object);
    } else {
        lines().iter().for_each(output::print_stdout);
    }
}

/// Prints all fields of a task.
pub(super) fn task(task: &TaskView, json: bool) {
    print(json, "task", task, || task_lines(task));
}

/// Prints the ID of a submitted task, for scripts.
pub(super) fn submitted(task: &TaskView, json: bool) {
    print(json, "task", task, || vec![task.id.clone()]);
}

/// Prints the ID of a removed task, for scripts.
pub(super) fn removed(task: &TaskView, json: bool) {
    print(json, "task", task, || vec![task.id.clone()]);
}

/// Prints a line of a list.
pub(super) fn task_line(task: &TaskView, json: bool) {
    print(json, "task", task, || vec![summary(task)]);
}

/// Prints a change of a followed task; as text only if the line differs from the last one.
pub(super) fn task_change(task: &TaskView, before: Option<&TaskView>, json: bool) {
    let text = summary(task);
    if json || before.is_none_or(|before| summary(before) != text) {
        print(json, "task", task, || vec![text]);
    }
}

fn task_lines(task: &TaskView) -> Vec<String> {
    let TaskView {
        id,
        kind,
        state,
        desired_state,
        reason,
        priority,
        fence,
        hook,
        source,
        destination,
        node,
        attempt: _,
        epoch,
        progress: _,
        limit,
        error,
        report,
        created_at,
        updated_at,
        after,
        starts_at,
        deadline_at,
        retry_of,
        schedule,
        notifies,
        require,
        prefer,
        apart_from,
        windows,
        group,
        members,
        attempts,
        over: _,
    } = task;
    let field = |name: &str, value: &dyn std::fmt::Display| format!("{name:<12} {value}");
    let option = |name: &str, value: &Option<String>| value.as_ref().map(|value| field(name, value));
    let mut lines =
        vec![field("task", id), field("kind", kind), field("state", state), field("desired", desired_state)];
    lines.extend((!reason.is_empty()).then(|| field("reason", reason)));
    lines.extend(option("retry of", retry_of));
    lines.extend(option("schedule", schedule));
    lines.extend(option("tells of", notifies));
    lines.extend(option("group", group));
    lines.extend(members.iter().flatten().map(|(state, count)| field("members", &format!("{count} {state}"))));
    lines.extend(option("hook", hook));
    lines.extend(option("source", source));
    lines.extend(option("destination", destination));
    lines.extend(option("node", node));
    lines.extend(require.iter().map(|(key, value)| field("requires", &format!("{key}={value}"))));
    lines.extend(prefer.iter().map(|(key, value)| field("prefers", &format!("{key}={value}"))));
    lines.extend(option("apart from", apart_from));
    lines.extend(windows.iter().map(|window| field("window", window)));
    let condition = |dependency: &DependencyView| format!("{}:{}", dependency.task, dependency.condition);
    lines.extend(after.iter().map(|dependency| field("after", &condition(dependency))));
    lines.extend(epoch.map(|epoch| field("epoch", &epoch)));
    lines.extend((source.is_some() || members.is_some()).then(|| field("progress", &progress_text(task))));
    lines.extend(limit.map(|limit| field("limit", &format!("{}/s", format_size(limit)))));
    lines.extend(option("fence", fence));
    lines.push(field("priority", priority));
    let output = report.as_ref().and_then(|report| report["output_tail"].as_str()).filter(|output| !output.is_empty());
    lines.extend(output.map(|output| field("output", &output)));
    lines.extend(error.as_ref().map(|error| field("error", &format!("{}: {}", error.code, error.message))));
    lines.extend(starts_at.iter().map(|time| field("starts at", time)));
    lines.extend(deadline_at.iter().map(|time| field("deadline", time)));
    lines.push(field("created", created_at));
    lines.push(field("updated", updated_at));
    lines.extend(attempts.iter().map(|attempt| field("attempt", &attempt_text(attempt))));
    lines
}

/// Prints settings of a center.
pub(super) fn settings(settings: &BTreeMap<String, String>, version: u32, json: bool) {
    #[derive(Serialize)]
    struct Shown<'a> {
        settings: &'a BTreeMap<String, String>,
        version: u32,
    }
    print(json, "settings", &Shown { settings, version }, || {
        settings.iter().map(|(name, value)| format!("{name}={value}")).collect()
    });
}

/// Prints all fields of a schedule.
pub(super) fn schedule(schedule: &ScheduleInfo, json: bool) {
    print(json, "schedule", schedule, || schedule_lines(schedule));
}

/// Prints a line of a list of schedules.
pub(super) fn schedule_line(schedule: &ScheduleInfo, json: bool) {
    let ScheduleInfo { name, state, trigger, next_at, reason, .. } = schedule;
    let next = next_at.first().map_or_else(String::new, |next| format!(" next {next}"));
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    print(json, "schedule", schedule, || vec![format!("{name} {state} {trigger}{next}{reason}")]);
}

/// Prints the name of a schedule that was added or removed, for scripts.
pub(super) fn schedule_name(schedule: &ScheduleInfo, json: bool) {
    print(json, "schedule", schedule, || vec![schedule.name.clone()]);
}

fn schedule_lines(schedule: &ScheduleInfo) -> Vec<String> {
    let ScheduleInfo {
        name,
        state,
        reason,
        trigger,
        zone,
        catch_up,
        keep,
        version,
        created_at,
        last_fired_at,
        last_task,
        is_live,
        next_at,
        fired,
        skipped,
        kind,
        members,
        hook,
        source,
        destination,
        node,
    } = schedule;
    let field = |name: &str, value: &dyn std::fmt::Display| format!("{name:<12} {value}");
    let option = |name: &str, value: &Option<String>| value.as_ref().map(|value| field(name, value));
    let mut lines = vec![field("schedule", name), field("state", state)];
    lines.extend((!reason.is_empty()).then(|| field("reason", reason)));
    lines.extend([field("trigger", trigger), field("time zone", zone), field("kind", kind)]);
    lines.extend(members.iter().map(|members| field("members", members)));
    lines.extend(option("hook", hook));
    lines.extend(option("source", source));
    lines.extend(option("destination", destination));
    lines.extend(option("node", node));
    let live = if *is_live { " (live)" } else { "" };
    lines.extend(last_task.as_ref().map(|task| field("last task", &format!("{task}{live}"))));
    lines.extend(last_fired_at.iter().map(|time| field("last fired", time)));
    lines.extend(next_at.iter().map(|time| field("next", time)));
    lines.push(field("catch up", catch_up));
    lines.push(field("fired", fired));
    lines.push(field("skipped", skipped));
    lines.push(field("keeps", &format!("{keep} ended tasks")));
    lines.push(field("version", version));
    lines.push(field("created", created_at));
    lines
}

fn attempt_text(attempt: &AttemptView) -> String {
    let AttemptView { runner, epoch, started_at, ended_at, outcome } = attempt;
    let grant = epoch.map(|epoch| format!(" epoch {epoch}")).unwrap_or_default();
    let end = match (ended_at, outcome) {
        (Some(ended_at), Some(outcome)) => format!(" to {ended_at}: {outcome}"),
        (Some(ended_at), None) => format!(" to {ended_at}"),
        (None, _) => String::from(", running"),
    };
    format!("on {runner}{grant} from {started_at}{end}")
}

/// Formats as `t1 RUNNING n1 1.0 GiB of 4.0 GiB, 512.0 MiB/s`.
fn summary(task: &TaskView) -> String {
    let mut parts = vec![task.id.clone(), task.state.clone()];
    parts.extend(task.node.clone());
    parts.extend((task.progress.planned > 0).then(|| progress_text(task)));
    match &task.error {
        Some(error) if ["FAILED", "SKIPPED"].contains(&task.state.as_str()) => {
            parts.push(format!("({}: {})", error.code, error.message))
        }
        _ if !task.reason.is_empty() => parts.push(format!("({})", task.reason)),
        _ => (),
    }
    parts.join(" ")
}

fn progress_text(task: &TaskView) -> String {
    let progress = &task.progress;
    // What only reads makes nothing durable.
    let done = progress.durable.max(progress.verified);
    let mut text = format!("{} of {}", format_size(done), format_size(progress.planned));
    if !task.is_over() {
        text += &format!(", {}/s", format_size(progress.rate_bytes_per_second));
    }
    text
}

/// A node as it is printed.
#[derive(Serialize)]
struct NodeView {
    node: String,
    address: Option<String>,
    registered: bool,
    stopping: bool,
    draining: bool,
    drained_until: Option<Timestamp>,
    slots: u32,
    running: u32,
    build: Option<String>,
    incarnation: Option<String>,
    labels: BTreeMap<String, String>,
    allow_paths: Vec<String>,
    allow_nbd: Vec<String>,
    clock_offset_ms: Option<i64>,
    clock_is_off: bool,
    restarts: u64,
    data_address: Option<String>,
    excluded_until: Option<Timestamp>,
    excluded_reason: Option<String>,
    unreadable: bool,
    level: u32,
    idle_since: Option<Timestamp>,
    last_task: Option<String>,
    last_task_ended_at: Option<Timestamp>,
    failures: u32,
    refused_namesakes: Vec<String>,
    starts: Option<u64>,
    last_end: Option<String>,
    last_end_detail: Option<String>,
    last_end_at: Option<Timestamp>,
}

/// Prints a node.
pub(super) fn runner(node: wire::Node, wide: bool, json: bool) {
    let view = node_view(node);
    print(json, "node", &view, || vec![node_line(&view) + &if wide { history_text(&view) } else { String::new() }]);
}

fn node_view(node: wire::Node) -> NodeView {
    let word = |text: String| (!text.is_empty()).then_some(text);
    NodeView {
        node: node.node,
        address: word(node.address),
        registered: node.registered,
        stopping: node.stopping,
        draining: node.draining,
        drained_until: node.drained_until_ms.map(Timestamp),
        slots: node.slots,
        running: node.running,
        build: word(node.build),
        incarnation: word(node.incarnation),
        labels: node.labels.into_iter().collect(),
        allow_paths: node.allow_paths,
        allow_nbd: node.allow_nbd,
        clock_offset_ms: node.clock_offset_ms,
        clock_is_off: node.clock_is_off,
        restarts: node.restarts,
        data_address: node.data_address,
        excluded_until: node.excluded_until_ms.map(Timestamp),
        excluded_reason: word(node.excluded_reason),
        unreadable: node.unreadable,
        level: node.level,
        idle_since: node.idle_since_ms.map(Timestamp),
        last_task: word(node.last_task),
        last_task_ended_at: node.last_task_ended_ms.map(Timestamp),
        failures: node.failures,
        refused_namesakes: node.refused_namesakes,
        starts: (node.registered && !node.unreadable).then(|| node.restarts.saturating_add(1)),
        last_end: word(node.last_end),
        last_end_detail: word(node.last_end_detail),
        last_end_at: node.last_end_ms.map(Timestamp),
    }
}

/// Formats as `, idle since TIME, last task t1 until TIME, 3 starts, last end stopped at TIME (SIGTERM)`.
fn history_text(view: &NodeView) -> String {
    let idle = view.idle_since.map(|since| format!(", idle since {since}"));
    let last_task = view.last_task.as_ref().zip(view.last_task_ended_at);
    let last_task = last_task.map(|(task, until)| format!(", last task {task} until {until}"));
    let starts = view.starts.map(|starts| format!(", {starts} start{}", if starts == 1 { "" } else { "s" }));
    let last_end = view.last_end.as_ref().map(|how| {
        let at = view.last_end_at.map(|at| format!(" at {at}")).unwrap_or_default();
        let detail = view.last_end_detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        format!(", last end {how}{at}{detail}")
    });
    [idle, last_task, starts, last_end].into_iter().flatten().collect()
}

fn node_line(view: &NodeView) -> String {
    let state = match (view.registered, view.stopping, view.draining) {
        (false, _, _) => "gone",
        (true, _, _) if view.unreadable => "unreadable",
        (true, true, _) => "stopping",
        (true, false, true) => "draining",
        (true, false, false) if view.excluded_until.is_some() => "excluded",
        (true, false, false) => "ready",
    };
    let address = view.address.as_deref().unwrap_or("-");
    let labels: String = view.labels.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    let clock = view.clock_offset_ms.filter(|_| view.clock_is_off).map(clock_text).unwrap_or_default();
    let reason = view.excluded_reason.as_deref().unwrap_or_default();
    let excluded = view.excluded_until.map(|until| format!(", excluded until {until} ({reason})")).unwrap_or_default();
    let drained = view.drained_until.map(|until| format!(", drained until {until}")).unwrap_or_default();
    let failures = match view.failures {
        0 => String::new(),
        1 => String::from(", 1 failure in a row"),
        failures => format!(", {failures} failures in a row"),
    };
    let namesakes = match &view.refused_namesakes[..] {
        [] => String::new(),
        addresses => format!(", refused another {} at {}", view.node, addresses.join(", ")),
    };
    format!(
        "{} {state} {address} {} of {} slots{labels}{clock}{drained}{failures}{excluded}{namesakes}",
        view.node, view.running, view.slots
    )
}

/// Formats as `, clock 12.3 s ahead of its peers`.
fn clock_text(offset_ms: i64) -> String {
    let side = if offset_ms < 0 { "behind" } else { "ahead of" };
    let seconds = std::time::Duration::from_millis(offset_ms.unsigned_abs()).as_secs_f64();
    format!(", clock {seconds:.1} s {side} its peers")
}

/// Prints the result of an inclusion.
pub(super) fn included(node: &str, was_excluded: bool, json: bool) {
    #[derive(Serialize)]
    struct Included<'a> {
        node: &'a str,
        was_excluded: bool,
    }
    print(json, "included", &Included { node, was_excluded }, || {
        vec![format!("{node} {}", if was_excluded { "gets tasks again" } else { "was not excluded" })]
    });
}

/// Prints the result of a drain.
pub(super) fn drained(node: &str, draining: bool, running: u32, json: bool) {
    #[derive(Serialize)]
    struct Drained<'a> {
        node: &'a str,
        draining: bool,
        running: u32,
    }
    print(json, "drained", &Drained { node, draining, running }, || {
        let does = if draining { "takes no new tasks" } else { "takes tasks" };
        vec![format!("{node} {does}; {running} running")]
    });
}

/// Prints the result of a fence.
pub(super) fn fenced(node: &str, tasks: u32, json: bool) {
    #[derive(Serialize)]
    struct Fenced<'a> {
        node: &'a str,
        tasks: u32,
    }
    print(json, "fenced", &Fenced { node, tasks }, || {
        vec![format!("{node} is fenced; {tasks} tasks resume on other nodes")]
    });
}

/// Prints the status of a center.
pub(super) fn center(status: wire::CenterStatus, json: bool) {
    #[derive(Serialize)]
    struct CenterView {
        center: String,
        leader: String,
        leader_address: String,
        epoch: i64,
        runners: u32,
        tasks: BTreeMap<String, u64>,
        unreadable: Vec<String>,
        build: String,
        restarts: u64,
        level: u32,
    }
    let wire::CenterStatus {
        center,
        leader,
        leader_address,
        epoch,
        runners,
        tasks,
        unreadable,
        build,
        restarts,
        level,
    } = status;
    let tasks = tasks.into_iter().collect();
    let view = CenterView { center, leader, leader_address, epoch, runners, tasks, unreadable, build, restarts, level };
    print(json, "center", &view, || {
        let mut lines = vec![
            format!("center       {}", view.center),
            format!("leader       {} at {}, epoch {}", view.leader, view.leader_address, view.epoch),
            format!("build        {}", view.build),
            format!("runners      {}", view.runners),
            format!("restarts     {}", view.restarts),
        ];
        lines.extend((view.level > 0).then(|| format!("level        {}", view.level)));
        lines.extend(view.tasks.iter().map(|(state, count)| format!("{state:<12} {count}")));
        lines.extend(view.unreadable.iter().map(|path| format!("unreadable   {path}")));
        lines
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_what_is_wrong_with_it_and_its_history_if_asked() {
        let node = wire::Node {
            node: "n1".to_owned(),
            address: "h:1".to_owned(),
            slots: 4,
            registered: true,
            restarts: 2,
            failures: 2,
            refused_namesakes: vec!["g:1".to_owned()],
            idle_since_ms: Some(0),
            last_task: "t1".to_owned(),
            last_task_ended_ms: Some(0),
            last_end: "stopped".to_owned(),
            last_end_detail: "SIGTERM".to_owned(),
            last_end_ms: Some(1000),
            ..wire::Node::default()
        };
        let view = node_view(node);
        assert_eq!(node_line(&view), "n1 ready h:1 0 of 4 slots, 2 failures in a row, refused another n1 at g:1");
        let (zero, one) = (Timestamp(0), Timestamp(1000));
        let wanted =
            format!(", idle since {zero}, last task t1 until {zero}, 3 starts, last end stopped at {one} (SIGTERM)");
        assert_eq!(history_text(&view), wanted);
        let first = node_view(wire::Node { registered: true, ..wire::Node::default() });
        assert_eq!(history_text(&first), ", 1 start");
    }

    fn running() -> TaskView {
        TaskView::from(wire::Task {
            id: "t1".to_owned(),
            state: "RUNNING".to_owned(),
            node: Some("n1".to_owned()),
            progress: Some(wire::Progress {
                planned: 4 << 30,
                durable: 1 << 30,
                rate_bytes_per_second: 512 << 20,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn a_line_shows_the_node_the_progress_and_the_reason() {
        assert_eq!(summary(&running()), "t1 RUNNING n1 1.0 GiB of 4.0 GiB, 512.0 MiB/s");
        let waiting = TaskView { state: "PENDING".to_owned(), reason: "no free slot".to_owned(), ..running() };
        assert_eq!(summary(&waiting), "t1 PENDING n1 1.0 GiB of 4.0 GiB, 512.0 MiB/s (no free slot)");
        let done = TaskView { state: "SUCCEEDED".to_owned(), over: true, ..running() };
        assert_eq!(summary(&done), "t1 SUCCEEDED n1 1.0 GiB of 4.0 GiB");
        let mut compared = done;
        (compared.progress.durable, compared.progress.verified) = (0, 4 << 30);
        assert_eq!(summary(&compared), "t1 SUCCEEDED n1 4.0 GiB of 4.0 GiB");
    }

    #[test]
    fn a_wrong_clock_is_shown_with_its_node() {
        assert_eq!(clock_text(12_340), ", clock 12.3 s ahead of its peers");
        assert_eq!(clock_text(-6000), ", clock 6.0 s behind its peers");
        assert!(!clock_text(i64::MIN).is_empty());
    }

    #[test]
    fn a_full_task_lists_its_attempts() {
        let attempt = wire::Attempt { runner: "n1".to_owned(), epoch: Some(7), ..Default::default() };
        let task = wire::Task { id: "t".to_owned(), attempts: vec![attempt], ..Default::default() };
        let lines = task_lines(&TaskView::from(task));
        assert!(lines.last().unwrap().ends_with("on n1 epoch 7 from 1970-01-01T00:00:00.000Z, running"), "{lines:?}");
    }
}
