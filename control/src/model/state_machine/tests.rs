//! What the head of the file says, under random events.

use super::*;
use crate::coord::NODE_BYTES_MAX;
use crate::model::{CopyTask, Incarnation, NodeId, NoopTask, Order, Record, TaskId};
use blockhaul_engine::extent::{ByteRange, RangeSet};
use proptest::prelude::*;

fn copy(fence: Fence) -> TaskSpec {
    TaskSpec::Copy(CopyTask { fence, ..CopyTask::example("nbd://h/a", "nbd://h/b") })
}

fn task(spec: TaskSpec) -> TaskRecord {
    TaskRecord::new(Order { id: TaskId::new("t").unwrap(), priority: 0, max_attempts: 3, spec }, 0)
}

fn holder(life: &str) -> Holder {
    Holder { node: NodeId::new("n1").unwrap(), incarnation: Incarnation(life.to_owned()) }
}

fn assigned(life: &str) -> Event {
    Event::Assigned { to: holder(life), claims: vec![String::from("nbd://h/b")] }
}

fn error(retryable: bool) -> Failure {
    let code = if retryable { Code::Busy } else { Code::Io };
    Failure::from(&Error::new(code, Side::Destination, Operation::Write, "it did not work"))
}

fn done() -> Event {
    Event::Succeeded { mark: Mark::default(), report: None }
}

fn after(start: &TaskRecord, events: impl IntoIterator<Item = Event>) -> TaskRecord {
    events.into_iter().fold(start.clone(), |record, event| apply(&record, event, 1).unwrap())
}

const BEGAN: Event = Event::Began { epoch: Epoch(7) };

#[test]
fn the_plain_way_ends_in_success() {
    let start = task(copy(Fence::Lease));
    let running = after(&start, [assigned("a"), BEGAN]);
    assert_eq!((running.state, running.epoch, running.admitted), (State::Running, Some(Epoch(7)), true));
    assert_eq!(claim_change(&start, &running), ClaimChange::Set);
    let ended = after(&running, [Event::Written(Mark::default()), done()]);
    assert_eq!((ended.state, ended.holder.clone(), ended.attempts[0].quiet), (State::Succeeded, None, true));
    assert_eq!(claim_change(&running, &ended), ClaimChange::Remove);
    assert!(apply(&ended, Event::CancelAsked, 2).is_err());
}

#[test]
fn a_given_back_task_goes_by_its_wish_and_is_charged_only_for_a_lost_lease() {
    let back = |code| Event::GivenBack { code, mark: Mark::default() };
    for (wish, state) in [
        (Event::LimitAsked(None), State::Pending),
        (Event::PauseAsked, State::Paused),
        (Event::CancelAsked, State::Cancelled),
    ] {
        let record = after(&task(copy(Fence::Lease)), [assigned("a"), BEGAN, wish, back(Code::RunnerInterrupt)]);
        assert_eq!((record.state, record.failures, record.is_quiet()), (state, 0, true));
    }
    let mut record = task(copy(Fence::Lease));
    for _ in 0..3 {
        record = after(&record, [assigned("a"), BEGAN, back(Code::LeaseLost)]);
    }
    assert_eq!((record.state, record.failures), (State::Failed, 3));
}

#[test]
fn what_can_be_tried_again_is_tried_as_often_as_allowed() {
    let failed = |retryable| Event::Failed {
        error: error(retryable),
        retry_at_ms: 99,
        mark: Mark::default(),
        report: Some(serde_json::json!({})),
    };
    let once = after(&task(copy(Fence::Local)), [assigned("a"), BEGAN, failed(true)]);
    assert_eq!((once.state, once.failures, once.not_before_ms), (State::Pending, 1, 99));
    let thrice = after(&once, [assigned("a"), failed(true), assigned("a"), BEGAN, failed(true)]);
    assert_eq!((thrice.state, thrice.failures, thrice.claims), (State::Failed, 3, Vec::<String>::new()));
    let at_once = after(&task(copy(Fence::Local)), [assigned("a"), failed(false)]);
    assert_eq!((at_once.state, at_once.failures), (State::Failed, 1));
}

fn on(node: &str) -> Event {
    let to = Holder { node: NodeId::new(node).unwrap(), incarnation: Incarnation(node.to_owned()) };
    Event::Assigned { to, claims: vec![String::from("nbd://h/b")] }
}

fn failed_with(code: Code) -> Event {
    let error = Failure::from(&Error::new(code, Side::Source, Operation::Open, "no way from here"));
    Event::Failed { error, retry_at_ms: 0, mark: Mark::default(), report: None }
}

#[test]
fn what_is_wrong_with_a_node_does_not_end_a_task_that_others_can_run() {
    let refused = after(&task(copy(Fence::Lease)), [on("n1"), failed_with(Code::Permission)]);
    assert_eq!((refused.state, refused.failures), (State::Pending, 1));
    assert_eq!(refused.attempts[0].node_fault, Some(NodeFault::Lasting));
    let again = after(&refused, [on("n2"), BEGAN, failed_with(Code::Unreachable)]);
    assert_eq!((again.state, again.attempts[1].node_fault), (State::Pending, Some(NodeFault::Passing)));
    let error = again.error.clone().unwrap();
    let ended = after(&again, [Event::Rejected(error)]);
    assert_eq!(ended.state, State::Failed);
    assert_eq!(ended.reason, "EUnreachable: n1, n2 have failed it, the last one with: no way from here");
    // Attempts that are used up end it, too.
    let ended = after(&again, [on("n2"), failed_with(Code::Unreachable)]);
    assert_eq!((ended.state, ended.failures), (State::Failed, 3));
    assert!(ended.error.unwrap().message.starts_with("n1, n2 have failed it"), "{}", ended.reason);
    let alone = after(&task(copy(Fence::Lease)), [on("n1"), failed_with(Code::Unreachable)]);
    let alone = after(&alone, [on("n1"), failed_with(Code::Unreachable), on("n1"), failed_with(Code::Unreachable)]);
    assert_eq!(alone.reason, "EUnreachable: only n1 has tried it: no way from here");
}

#[test]
fn a_task_of_one_node_ends_with_what_stays_wrong_there_and_tries_what_passes_again() {
    let spec =
        TaskSpec::Copy(CopyTask { node: Some(NodeId::new("n1").unwrap()), ..CopyTask::example("/a", "nbd://h/b") });
    let refused = after(&task(spec.clone()), [on("n1"), failed_with(Code::Permission)]);
    assert_eq!((refused.state, &*refused.reason), (State::Failed, "EPermission: no way from here"));
    let full = Error::new(Code::NoSpace, Side::Engine, Operation::Journal, "no space for the journal");
    let full = Event::Failed { error: (&full).into(), retry_at_ms: 9, mark: Mark::default(), report: None };
    let waits = after(&task(spec), [on("n1"), BEGAN, full]);
    assert_eq!((waits.state, waits.not_before_ms, waits.failures), (State::Pending, 9, 0));
}

fn so_far(durable: u64) -> Mark {
    Mark { progress: Progress { planned: 100, durable, ..Progress::default() }, map: DurableMap::default() }
}

#[test]
fn losses_count_only_while_nothing_gets_further() {
    let loss = |durable| {
        [assigned("a"), BEGAN, Event::Checkpointed(so_far(durable)), Event::Vanished, Event::Fenced(Proof::LeaseOver)]
    };
    let mut record = task(copy(Fence::Lease));
    for durable in 1..10 {
        record = after(&record, loss(durable));
        assert_eq!((record.state, record.failures), (State::Pending, 1), "after {durable}");
    }
    // The same again, or less because the destination was made anew, is no progress.
    record = after(&record, loss(9));
    assert_eq!((record.state, record.failures), (State::Pending, 2));
    record = after(&record, loss(3));
    assert_eq!((record.state, record.failures, record.durable_best), (State::Failed, 3, 9));
    // What is said at the end of an attempt counts as well as what was said on its way.
    let failed = |durable| Event::Failed { error: error(true), retry_at_ms: 0, mark: so_far(durable), report: None };
    let mut record = task(copy(Fence::Lease));
    for durable in 1..10 {
        record = after(&record, [assigned("a"), BEGAN, failed(durable)]);
        assert_eq!((record.state, record.failures), (State::Pending, 1), "after {durable}");
    }
    assert!(!String::from_utf8(task(copy(Fence::Lease)).encode()).unwrap().contains("durable_best"));
}

#[test]
fn a_record_without_faults_of_nodes_is_what_it_was() {
    let failed = after(&task(copy(Fence::Lease)), [on("n1"), failed_with(Code::Busy)]);
    let text = String::from_utf8(failed.encode()).unwrap();
    assert!(!text.contains("node_fault"), "an older taskd reads it: {text}");
    let refused = after(&task(copy(Fence::Lease)), [on("n1"), failed_with(Code::Permission)]);
    assert_eq!(TaskRecord::decode(&refused.encode()).unwrap(), refused);
}

#[test]
fn success_waits_for_an_earlier_attempt_that_may_write() {
    let lost = [assigned("a"), BEGAN, Event::Vanished, Event::Fenced(Proof::LeaseOver), assigned("b"), BEGAN];
    let record = after(&task(copy(Fence::Lease)), lost);
    assert_eq!(apply(&record, done(), 1), Err(Illegal::NotQuiet));
    assert_eq!(apply(&record, Event::Quieted { attempt: 1 }, 1), Err(Illegal::NoAttempt(1)));
    assert_eq!(after(&record, [Event::Quieted { attempt: 0 }, done()]).state, State::Succeeded);
    let local = [assigned("a"), BEGAN, Event::Vanished, Event::Fenced(Proof::NodeBack), assigned("b"), BEGAN, done()];
    assert_eq!(after(&task(copy(Fence::Local)), local).state, State::Succeeded);
}

#[test]
fn only_the_proof_of_its_fence_frees_a_lost_task() {
    for fence in [Fence::Local, Fence::Lease, Fence::Command, Fence::Manual] {
        let lost = after(&task(copy(fence)), [assigned("a"), BEGAN, Event::Vanished]);
        assert_eq!(lost.state, State::Lost);
        assert_eq!(lost.holder.is_some(), fence == Fence::Local);
        for (proof, its) in [
            (Proof::NodeBack, fence == Fence::Local),
            (Proof::LeaseOver, fence == Fence::Lease),
            (Proof::Command, fence == Fence::Command),
            (Proof::Operator, true),
            (Proof::Waited, false),
        ] {
            assert_eq!(apply(&lost, Event::Fenced(proof), 1).is_ok(), its, "{fence:?} {proof:?}");
        }
    }
    let wished = after(&task(copy(Fence::Local)), [assigned("a"), BEGAN, Event::Vanished, Event::CancelAsked]);
    assert_eq!(after(&wished, [Event::Fenced(Proof::Waited)]).state, State::Cancelled);
    assert_eq!(after(&wished, [Event::Returned]).state, State::Cancelling);
}

#[test]
fn only_copies_wait_and_are_limited() {
    let noop = task(TaskSpec::Noop(NoopTask { milliseconds: 1, node: None }));
    for event in [Event::PauseAsked, Event::ResumeAsked, Event::LimitAsked(Some(1))] {
        assert!(matches!(apply(&noop, event, 1), Err(Illegal::NotACopy(_))));
    }
    assert_eq!(after(&noop, [assigned("a"), BEGAN, Event::Vanished]).state, State::Pending);
}

fn mark() -> impl Strategy<Value = Mark> {
    proptest::collection::vec((0..1_u64 << 40, 1..1_u64 << 20), 0..200).prop_map(|ranges| {
        let mut set = RangeSet::new();
        ranges.iter().for_each(|(start, len)| set.insert(ByteRange::new(*start, start + len)));
        Mark { progress: Progress::default(), map: DurableMap::of(&set) }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let report = || Some(serde_json::json!({ "text": "x".repeat(5000) }));
    prop_oneof![
        4 => "[ab]".prop_map(|life| assigned(&life)),
        1 => Just(Event::Revoked { code: Code::Overloaded, why: "w".repeat(500) }),
        1 => Just(Event::Rejected(error(false))),
        2 => Just(Event::Vanished),
        1 => Just(Event::Returned),
        4 => prop_oneof![
            Just(Proof::NodeBack), Just(Proof::LeaseOver), Just(Proof::Command), Just(Proof::Operator), Just(Proof::Waited)
        ].prop_map(Event::Fenced),
        2 => (0..20_usize).prop_map(|attempt| Event::Quieted { attempt }),
        1 => Just(Event::CancelAsked),
        1 => Just(Event::PauseAsked),
        2 => Just(Event::ResumeAsked),
        1 => proptest::option::of(1..9_u64).prop_map(Event::LimitAsked),
        4 => (0..99_i64).prop_map(|epoch| Event::Began { epoch: Epoch(epoch) }),
        2 => mark().prop_map(Event::Checkpointed),
        1 => mark().prop_map(Event::Written),
        1 => mark().prop_map(move |mark| Event::Succeeded { mark, report: report() }),
        1 => (any::<bool>(), mark()).prop_map(move |(retryable, mark)| Event::Failed {
            error: error(retryable), retry_at_ms: 0, mark, report: report(),
        }),
        1 => mark().prop_map(|mark| Event::GivenBack { code: Code::LeaseLost, mark }),
    ]
}

fn spec() -> impl Strategy<Value = TaskSpec> {
    prop_oneof![
        Just(copy(Fence::Local)),
        Just(copy(Fence::Lease)),
        Just(copy(Fence::Command)),
        Just(copy(Fence::Manual)),
        Just(TaskSpec::Noop(NoopTask { milliseconds: 1, node: None })),
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
            let is_at_work = matches!(next.state, State::Assigned | State::Running | State::Verifying | State::Cancelling);
            prop_assert!(!is_at_work || next.holder.is_some());
            prop_assert!(next.holder.is_none() || is_at_work || next.state == State::Lost && next.spec.fence() == Fence::Local);
            prop_assert!(next.holder.is_none() || !next.claims.is_empty(), "who holds a task holds its claims");
            let has_progressed = next.durable_best > record.durable_best;
            prop_assert!(next.failures >= record.failures || has_progressed, "{:?}", event);
            prop_assert!(next.durable_best >= record.durable_best);
            prop_assert!(!record.state.is_terminal() || next.state == record.state);
            prop_assert!(next.state != State::Succeeded || next.is_quiet());
            let may_write = next.spec.fence() == Fence::Lease && !next.is_quiet();
            prop_assert!(!next.state.is_terminal() || next.claims.is_empty() || may_write);
            prop_assert!(!may_write || !next.claims.is_empty(), "a destination that may be written stays claimed");
            prop_assert!(next.encode().len() <= NODE_BYTES_MAX);
            prop_assert_eq!(&TaskRecord::decode(&next.encode()).unwrap(), &next);
            record = next;
        }
    }
}
