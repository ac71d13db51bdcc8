//! Tests the invariants of the state machine under random events.

use super::*;
use crate::coord::NODE_BYTES_MAX;
use crate::model::TaskSpec;
use crate::model::{CopyTask, Incarnation, NodeId, NoopTask, Record, RunTask, Submission, TaskId, Transition};
use blockhaul_engine::extent::{ByteRange, RangeSet};
use proptest::prelude::*;

fn copy(fence: FenceMethod) -> TaskSpec {
    TaskSpec::Copy(CopyTask { fence, ..CopyTask::example("nbd://h/a", "nbd://h/b") })
}

fn task(spec: TaskSpec) -> TaskRecord {
    TaskRecord::new(Submission::new(TaskId::new("t").unwrap(), 0, 3, spec), 0)
}

fn holder(life: &str) -> Holder {
    Holder { node: NodeId::new("n1").unwrap(), incarnation: Incarnation(life.to_owned()) }
}

fn assigned(life: &str) -> TaskEvent {
    TaskEvent::Assigned { to: holder(life), claims: vec![String::from("nbd://h/b")] }
}

fn error(retryable: bool) -> Failure {
    let code = if retryable { Code::Busy } else { Code::Io };
    Failure::from(&Error::new(code, Side::Destination, Operation::Write, "it did not work"))
}

fn done() -> TaskEvent {
    TaskEvent::Succeeded { checkpoint: Checkpoint::default(), report: None }
}

fn after(start: &TaskRecord, events: impl IntoIterator<Item = TaskEvent>) -> TaskRecord {
    events.into_iter().fold(start.clone(), |record, event| apply(&record, event, 1).unwrap())
}

const BEGAN: TaskEvent = TaskEvent::Started { epoch: Epoch(7) };

#[test]
fn the_plain_way_ends_in_success() {
    let start = task(copy(FenceMethod::Lease));
    let running = after(&start, [assigned("a"), BEGAN]);
    assert_eq!((running.state, running.epoch, running.admitted), (TaskState::Running, Some(Epoch(7)), true));
    assert_eq!(claim_change(&start, &running), ClaimChange::Set);
    let ended = after(&running, [TaskEvent::Written(Checkpoint::default()), done()]);
    assert_eq!((ended.state, ended.holder.clone(), ended.attempts[0].quiet), (TaskState::Succeeded, None, true));
    assert_eq!(claim_change(&running, &ended), ClaimChange::Remove);
    assert!(apply(&ended, TaskEvent::CancelRequested, 2).is_err());
}

#[test]
fn a_given_back_task_goes_by_its_wish_and_is_charged_only_for_a_lost_lease() {
    let back = |code| TaskEvent::GivenBack { code, checkpoint: Checkpoint::default() };
    for (desired_state, state) in [
        (TaskEvent::ChangesRequested(TaskChanges::limit(None)), TaskState::Pending),
        (TaskEvent::PauseRequested, TaskState::Paused),
        (TaskEvent::CancelRequested, TaskState::Cancelled),
    ] {
        let record =
            after(&task(copy(FenceMethod::Lease)), [assigned("a"), BEGAN, desired_state, back(Code::RunnerInterrupt)]);
        assert_eq!((record.state, record.failures, record.is_quiet()), (state, 0, true));
    }
    let mut record = task(copy(FenceMethod::Lease));
    for _ in 0..3 {
        record = after(&record, [assigned("a"), BEGAN, back(Code::LeaseLost)]);
    }
    assert_eq!((record.state, record.failures), (TaskState::Failed, 3));
}

#[test]
fn what_can_be_tried_again_is_tried_as_often_as_allowed() {
    let failed = |retryable| TaskEvent::Failed {
        error: error(retryable),
        retry_at_ms: 99,
        checkpoint: Checkpoint::default(),
        report: Some(serde_json::json!({})),
    };
    let once = after(&task(copy(FenceMethod::Local)), [assigned("a"), BEGAN, failed(true)]);
    assert_eq!((once.state, once.failures, once.not_before_ms), (TaskState::Pending, 1, 99));
    let thrice = after(&once, [assigned("a"), failed(true), assigned("a"), BEGAN, failed(true)]);
    assert_eq!((thrice.state, thrice.failures, thrice.claims), (TaskState::Failed, 3, Vec::<String>::new()));
    let at_once = after(&task(copy(FenceMethod::Local)), [assigned("a"), failed(false)]);
    assert_eq!((at_once.state, at_once.failures), (TaskState::Failed, 1));
}

fn on(node: &str) -> TaskEvent {
    let to = Holder { node: NodeId::new(node).unwrap(), incarnation: Incarnation(node.to_owned()) };
    TaskEvent::Assigned { to, claims: vec![String::from("nbd://h/b")] }
}

fn failed_with(code: Code) -> TaskEvent {
    let error = Failure::from(&Error::new(code, Side::Source, Operation::Open, "no way from here"));
    TaskEvent::Failed { error, retry_at_ms: 0, checkpoint: Checkpoint::default(), report: None }
}

#[test]
fn what_is_wrong_with_a_node_does_not_end_a_task_that_others_can_run() {
    let refused = after(&task(copy(FenceMethod::Lease)), [on("n1"), failed_with(Code::Permission)]);
    assert_eq!((refused.state, refused.failures), (TaskState::Pending, 1));
    assert_eq!(refused.attempts[0].node_fault, Some(NodeFault::Lasting));
    let again = after(&refused, [on("n2"), BEGAN, failed_with(Code::Unreachable)]);
    assert_eq!((again.state, again.attempts[1].node_fault), (TaskState::Pending, Some(NodeFault::Passing)));
    let error = again.error.clone().unwrap();
    let ended = after(&again, [TaskEvent::Rejected(error)]);
    assert_eq!(ended.state, TaskState::Failed);
    assert_eq!(ended.reason, "EUnreachable: failed on n1, n2, the last time with: no way from here");
    // Attempts that are used up end it, too.
    let ended = after(&again, [on("n2"), failed_with(Code::Unreachable)]);
    assert_eq!((ended.state, ended.failures), (TaskState::Failed, 3));
    assert!(ended.error.unwrap().message.starts_with("failed on n1, n2"), "{}", ended.reason);
    let alone = after(&task(copy(FenceMethod::Lease)), [on("n1"), failed_with(Code::Unreachable)]);
    let alone = after(&alone, [on("n1"), failed_with(Code::Unreachable), on("n1"), failed_with(Code::Unreachable)]);
    assert_eq!(alone.reason, "EUnreachable: only n1 has tried it: no way from here");
}

#[test]
fn a_task_of_one_node_ends_with_what_stays_wrong_there_and_tries_what_passes_again() {
    let spec =
        TaskSpec::Copy(CopyTask { node: Some(NodeId::new("n1").unwrap()), ..CopyTask::example("/a", "nbd://h/b") });
    let refused = after(&task(spec.clone()), [on("n1"), failed_with(Code::Permission)]);
    assert_eq!((refused.state, &*refused.reason), (TaskState::Failed, "EPermission: no way from here"));
    let full = Error::new(Code::NoSpace, Side::Engine, Operation::Journal, "no space for the journal");
    let full =
        TaskEvent::Failed { error: (&full).into(), retry_at_ms: 9, checkpoint: Checkpoint::default(), report: None };
    let waits = after(&task(spec), [on("n1"), BEGAN, full]);
    assert_eq!((waits.state, waits.not_before_ms, waits.failures), (TaskState::Pending, 9, 0));
}

fn so_far(durable: u64) -> Checkpoint {
    Checkpoint { progress: Progress { planned: 100, durable, ..Progress::default() }, map: DurableMap::default() }
}

#[test]
fn losses_count_only_while_nothing_gets_further() {
    let loss = |durable| {
        [
            assigned("a"),
            BEGAN,
            TaskEvent::Checkpointed(so_far(durable)),
            TaskEvent::RunnerLost,
            TaskEvent::Fenced(FenceProof::LeaseOver),
        ]
    };
    let mut record = task(copy(FenceMethod::Lease));
    for durable in 1..10 {
        record = after(&record, loss(durable));
        assert_eq!((record.state, record.failures), (TaskState::Pending, 1), "after {durable}");
    }
    // The same again, or less because the destination was made anew, is no progress.
    record = after(&record, loss(9));
    assert_eq!((record.state, record.failures), (TaskState::Pending, 2));
    record = after(&record, loss(3));
    assert_eq!((record.state, record.failures, record.durable_best), (TaskState::Failed, 3, 9));
    // What is said at the end of an attempt counts as well as what was said on its way.
    let failed =
        |durable| TaskEvent::Failed { error: error(true), retry_at_ms: 0, checkpoint: so_far(durable), report: None };
    let mut record = task(copy(FenceMethod::Lease));
    for durable in 1..10 {
        record = after(&record, [assigned("a"), BEGAN, failed(durable)]);
        assert_eq!((record.state, record.failures), (TaskState::Pending, 1), "after {durable}");
    }
    assert!(!String::from_utf8(task(copy(FenceMethod::Lease)).encode()).unwrap().contains("durable_best"));
}

#[test]
fn a_record_without_faults_of_nodes_is_what_it_was() {
    let failed = after(&task(copy(FenceMethod::Lease)), [on("n1"), failed_with(Code::Busy)]);
    let text = String::from_utf8(failed.encode()).unwrap();
    assert!(!text.contains("node_fault"), "an older taskd reads it: {text}");
    let refused = after(&task(copy(FenceMethod::Lease)), [on("n1"), failed_with(Code::Permission)]);
    assert_eq!(TaskRecord::decode(&refused.encode()).unwrap(), refused);
}

#[test]
fn success_waits_for_an_earlier_attempt_that_may_write() {
    let lost =
        [assigned("a"), BEGAN, TaskEvent::RunnerLost, TaskEvent::Fenced(FenceProof::LeaseOver), assigned("b"), BEGAN];
    let record = after(&task(copy(FenceMethod::Lease)), lost);
    assert_eq!(apply(&record, done(), 1), Err(IllegalTransition::NotQuiet));
    assert_eq!(apply(&record, TaskEvent::AttemptDrained { attempt: 1 }, 1), Err(IllegalTransition::NoAttempt(1)));
    assert_eq!(after(&record, [TaskEvent::AttemptDrained { attempt: 0 }, done()]).state, TaskState::Succeeded);
    let local = [
        assigned("a"),
        BEGAN,
        TaskEvent::RunnerLost,
        TaskEvent::Fenced(FenceProof::NodeBack),
        assigned("b"),
        BEGAN,
        done(),
    ];
    assert_eq!(after(&task(copy(FenceMethod::Local)), local).state, TaskState::Succeeded);
}

#[test]
fn only_the_proof_of_its_fence_frees_a_lost_task() {
    for fence in [FenceMethod::Local, FenceMethod::Lease, FenceMethod::Command, FenceMethod::Manual] {
        let lost = after(&task(copy(fence)), [assigned("a"), BEGAN, TaskEvent::RunnerLost]);
        assert_eq!(lost.state, TaskState::Lost);
        assert_eq!(lost.holder.is_some(), fence == FenceMethod::Local);
        for (proof, its) in [
            (FenceProof::NodeBack, fence == FenceMethod::Local),
            (FenceProof::LeaseOver, fence == FenceMethod::Lease),
            (FenceProof::Command, fence == FenceMethod::Command),
            (FenceProof::Operator, true),
            (FenceProof::Waited, false),
        ] {
            assert_eq!(apply(&lost, TaskEvent::Fenced(proof), 1).is_ok(), its, "{fence:?} {proof:?}");
        }
    }
    let wished = after(
        &task(copy(FenceMethod::Local)),
        [assigned("a"), BEGAN, TaskEvent::RunnerLost, TaskEvent::CancelRequested],
    );
    assert_eq!(after(&wished, [TaskEvent::Fenced(FenceProof::Waited)]).state, TaskState::Cancelled);
    assert_eq!(after(&wished, [TaskEvent::RunnerReturned]).state, TaskState::Cancelling);
}

#[test]
fn only_copies_wait_and_are_limited() {
    let noop = task(TaskSpec::Noop(NoopTask::new(1, None)));
    for event in [
        TaskEvent::PauseRequested,
        TaskEvent::ResumeRequested,
        TaskEvent::ChangesRequested(TaskChanges::limit(Some(1))),
    ] {
        assert!(matches!(apply(&noop, event, 1), Err(IllegalTransition::Unsupported(_))));
    }
    assert_eq!(after(&noop, [assigned("a"), BEGAN, TaskEvent::RunnerLost]).state, TaskState::Pending);
}

fn run(at_most_once: bool) -> TaskSpec {
    TaskSpec::Run(RunTask { at_most_once, ..RunTask::example("freeze") })
}

#[test]
fn what_runs_at_most_once_fails_where_another_task_would_wait_for_its_next_attempt() {
    let again =
        TaskEvent::Failed { error: error(true), retry_at_ms: 9, checkpoint: Checkpoint::default(), report: None };
    let given_back = TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() };
    let lost = [TaskEvent::RunnerLost, TaskEvent::Fenced(FenceProof::LeaseOver)];
    for (events, code) in
        [(vec![again], Code::Busy), (vec![given_back], Code::RunnerInterrupt), (lost.into(), Code::LeaseLost)]
    {
        let [often, once] = [false, true].map(|at_most_once| {
            let begun = after(&task(run(at_most_once)), [assigned("a"), BEGAN]);
            after(&begun, events.clone())
        });
        assert_eq!((often.state, once.state), (TaskState::Pending, TaskState::Failed), "{events:?}");
        let error = once.error.unwrap();
        assert!(error.code == code && !error.retryable && error.message.contains("at most once"), "{error}");
        assert!(once.reason.contains("at most once"), "{}", once.reason);
    }
    let refused = TaskEvent::Revoked { code: Code::Overloaded, why: String::from("full") };
    assert_eq!(after(&task(run(true)), [assigned("a"), refused]).state, TaskState::Pending, "it has not begun");
    let cancelled = after(&task(run(true)), [assigned("a"), BEGAN, TaskEvent::RunnerLost, TaskEvent::CancelRequested]);
    assert_eq!(after(&cancelled, [TaskEvent::Fenced(FenceProof::LeaseOver)]).state, TaskState::Cancelled);
}

#[test]
fn what_an_ended_attempt_waits_for_is_a_reason_until_its_outcome() {
    let begun = after(&task(run(false)), [assigned("a"), BEGAN]);
    let blocked = after(&begun, [TaskEvent::Blocked { why: String::from("process 7 survives") }]);
    assert_eq!((blocked.state, blocked.reason.as_str()), (TaskState::Running, "process 7 survives"));
    assert_eq!(after(&blocked, [done()]).reason, "");
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    proptest::collection::vec((0..1_u64 << 40, 1..1_u64 << 20), 0..200).prop_map(|ranges| {
        let mut set = RangeSet::new();
        ranges.iter().for_each(|(start, len)| set.insert(ByteRange::new(*start, start + len)));
        Checkpoint { progress: Progress::default(), map: DurableMap::of(&set) }
    })
}

fn event() -> impl Strategy<Value = TaskEvent> {
    let report = || Some(serde_json::json!({ "text": "x".repeat(5000) }));
    prop_oneof![
        4 => "[ab]".prop_map(|life| assigned(&life)),
        1 => Just(TaskEvent::Revoked { code: Code::Overloaded, why: "w".repeat(500) }),
        1 => Just(TaskEvent::Rejected(error(false))),
        2 => Just(TaskEvent::RunnerLost),
        1 => Just(TaskEvent::RunnerReturned),
        4 => prop_oneof![
            Just(FenceProof::NodeBack), Just(FenceProof::LeaseOver), Just(FenceProof::Command),
            Just(FenceProof::Operator), Just(FenceProof::Waited)
        ].prop_map(TaskEvent::Fenced),
        2 => (0..20_usize).prop_map(|attempt| TaskEvent::AttemptDrained { attempt }),
        1 => Just(TaskEvent::CancelRequested),
        1 => Just(TaskEvent::PauseRequested),
        2 => Just(TaskEvent::ResumeRequested),
        1 => proptest::option::of(1..9_u64).prop_map(|limit| TaskEvent::ChangesRequested(TaskChanges::limit(limit))),
        4 => (0..99_i64).prop_map(|epoch| TaskEvent::Started { epoch: Epoch(epoch) }),
        2 => checkpoint().prop_map(TaskEvent::Checkpointed),
        1 => checkpoint().prop_map(TaskEvent::Written),
        1 => Just(TaskEvent::Blocked { why: "b".repeat(500) }),
        1 => checkpoint().prop_map(move |checkpoint| TaskEvent::Succeeded { checkpoint, report: report() }),
        1 => (any::<bool>(), checkpoint()).prop_map(move |(retryable, checkpoint)| TaskEvent::Failed {
            error: error(retryable), retry_at_ms: 0, checkpoint, report: report(),
        }),
        1 => checkpoint().prop_map(|checkpoint| TaskEvent::GivenBack { code: Code::LeaseLost, checkpoint }),
    ]
}

fn spec() -> impl Strategy<Value = TaskSpec> {
    prop_oneof![
        Just(copy(FenceMethod::Local)),
        Just(copy(FenceMethod::Lease)),
        Just(copy(FenceMethod::Command)),
        Just(copy(FenceMethod::Manual)),
        Just(TaskSpec::Noop(NoopTask::new(1, None))),
        Just(run(false)),
        Just(run(true)),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_a_record_is_sound(spec in spec(), attempts in 1..20_u32, events in proptest::collection::vec(event(), 1..60)) {
        let mut record = TaskRecord { max_attempts: attempts, ..task(spec) };
        for (now, event) in events.into_iter().enumerate() {
            let Ok(next) = next(&record, event.clone(), now as u64) else { continue };
            let at_work = next.attempts.iter().filter(|attempt| attempt.ended_ms.is_none()).count();
            prop_assert_eq!(at_work, usize::from(next.holder.is_some()), "{:?}", event);
            let is_at_work = matches!(next.state, TaskState::Assigned | TaskState::Running | TaskState::Verifying | TaskState::Cancelling);
            prop_assert!(!is_at_work || next.holder.is_some());
            let is_locked = next.state == TaskState::Lost && next.spec.kind().fence() == FenceMethod::Local;
            prop_assert!(next.holder.is_none() || is_at_work || is_locked);
            prop_assert!(next.holder.is_none() || !next.claims.is_empty(), "who holds a task holds its claims");
            let has_progressed = next.durable_best > record.durable_best;
            prop_assert!(next.failures >= record.failures || has_progressed, "{:?}", event);
            prop_assert!(next.durable_best >= record.durable_best);
            prop_assert!(!record.state.is_terminal() || next.state == record.state);
            prop_assert!(next.state != TaskState::Succeeded || next.is_quiet());
            let may_write = next.spec.kind().fence() == FenceMethod::Lease && !next.is_quiet();
            prop_assert!(!next.state.is_terminal() || next.claims.is_empty() || may_write);
            prop_assert!(!may_write || !next.claims.is_empty(), "a destination that may be written stays claimed");
            let began = next.attempts.iter().filter(|attempt| attempt.epoch.is_some()).count();
            prop_assert!(began <= 1 || next.spec != run(true), "it runs at most once");
            prop_assert!(next.encode().len() <= NODE_BYTES_MAX);
            let last = next.transitions.iter().next_back().map(|last| (last.state, last.desired_state));
            prop_assert!(last.is_none_or(|last| last == (next.state, next.desired())), "{:?}: {:?}", event, last);
            prop_assert_eq!(&TaskRecord::decode(&next.encode()).unwrap(), &next);
            record = next;
        }
    }
}

/// Returns the transitions of a record as `STATE wish BY on NODE: REASON`.
fn history(record: &TaskRecord) -> Vec<String> {
    let line = |transition: &Transition| {
        let node = transition.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let reason = if transition.reason.is_empty() { String::new() } else { format!(": {}", transition.reason) };
        let wish = if transition.desired_state.is_run() { "" } else { " wished otherwise" };
        format!("{} by {}{wish}{node}{reason}", transition.state.as_str(), transition.by.word())
    };
    record.transitions.iter().map(line).collect()
}

#[test]
fn each_change_of_the_state_or_of_the_wish_is_noted_with_who_asked() {
    let back = |code| TaskEvent::GivenBack { code, checkpoint: Checkpoint::default() };
    let paused = after(
        &task(copy(FenceMethod::Lease)),
        [assigned("a"), BEGAN, TaskEvent::Checkpointed(so_far(1)), TaskEvent::PauseRequested, back(Code::Cancelled)],
    );
    assert_eq!(
        history(&paused),
        [
            "PENDING by client",
            "ASSIGNED by dispatcher on n1",
            "RUNNING by node on n1",
            "RUNNING by client wished otherwise on n1",
            "PAUSED by node wished otherwise on n1: paused by user",
        ]
    );
    let lost = after(&paused, [TaskEvent::ResumeRequested, assigned("b"), BEGAN, TaskEvent::RunnerLost]);
    let ended = after(&lost, [TaskEvent::Fenced(FenceProof::Operator), TaskEvent::CancelRequested]);
    assert_eq!(
        history(&ended)[4..],
        [
            "RUNNING by node on n1",
            "LOST by dispatcher on n1: n1 is lost and may still write",
            "PENDING by client: n1 is lost and may still write",
            "CANCELLED by client wished otherwise: n1 is lost and may still write",
        ]
    );
}

#[test]
fn what_changes_neither_state_nor_wish_is_not_noted() {
    let running = after(&task(copy(FenceMethod::Lease)), [assigned("a"), BEGAN]);
    let changes = TaskChanges { limit: Some(Some(7)), ..TaskChanges::default() };
    let events = [TaskEvent::Checkpointed(so_far(1)), TaskEvent::ChangesRequested(changes), TaskEvent::ResumeRequested];
    assert_eq!(after(&running, events).transitions, running.transitions);
}

#[test]
fn a_group_that_nobody_completes_is_cancelled_by_the_center() {
    let spec = serde_json::json!({ "kind": "group", "digest": "ab".repeat(32), "members": 2, "on_failure": "stop" });
    let group = task(serde_json::from_value(spec).unwrap());
    let cancelled = after(&group, [TaskEvent::SealMissed]);
    assert_eq!(history(&cancelled)[1..], ["CANCELLING by dispatcher wished otherwise"]);
}

#[test]
fn a_record_of_an_earlier_version_has_no_transitions_and_gets_them_from_then_on() {
    let mut old = serde_json::to_value(after(&task(copy(FenceMethod::Lease)), [assigned("a")])).unwrap();
    old.as_object_mut().unwrap().remove("transitions").expect("a new record has it");
    let read = TaskRecord::decode(&serde_json::to_vec(&old).unwrap()).unwrap();
    assert!(read.transitions.is_empty());
    assert!(!String::from_utf8(read.encode()).unwrap().contains("transitions"));
    assert_eq!(history(&after(&read, [BEGAN])), ["RUNNING by node on n1"]);
}
