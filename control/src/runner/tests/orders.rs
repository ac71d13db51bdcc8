//! Tests that a runner does only what is signed, whatever the store says: all records here are written by hand.

use super::*;
use crate::model::SignedOrder;
use crate::order::{EndedOrders, OrderKeys, OrderVerifier, SigningKey, Terms};
use crate::peers::CenterId;
use crate::wire;
use blockhaul_engine::error::Code;

/// Wall clock of the harness at its start, in milliseconds since 1970.
const START_MS: u64 = 1_700_000_000_000;

/// A runner that checks orders, and the keys that it knows.
struct Signed {
    harness: Harness,
    keys: OrderKeys,
    _state: tempfile::TempDir,
}

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

impl Signed {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let keys = OrderKeys::of(&[key().public()]);
        let center = CenterId::default();
        center.set(String::from("c")).unwrap();
        let verifier = OrderVerifier::new(keys.clone(), center, None);
        let ended = EndedOrders::open(state.path(), START_MS).unwrap();
        let orders = RunnerOrders::new(verifier, node(), String::from("boot"), ended);
        let harness = Harness::start_with(Store::default(), Arc::default(), "life", Some(orders));
        while !harness.handle.is_registered() {
            sleep(Duration::from_millis(5)).await;
        }
        Self { harness, keys, _state: state }
    }

    /// Grants a stored task, and has the runner take it.
    async fn assign(&self, task: &str) {
        let assignment = self.harness.grant(task, "life");
        assert_eq!(self.harness.handle.assign(assignment).await, Ok(AssignResponse::Accepted));
    }

    /// Has the runner take a record, which it must refuse with nothing touched; returns why.
    async fn refusal(&self, record: TaskRecord) -> String {
        let task = record.id.to_string();
        self.harness.store_record(record);
        self.assign(&task).await;
        let record = self.harness.until(&task, TaskState::Failed).await;
        let error = record.error.clone().unwrap();
        assert_eq!(error.code, Code::Permission, "{error}");
        assert!(record.failures <= 1 && !record.admitted, "{record:?}");
        assert!(!self.harness.executor.all.lock().unwrap().contains_key(&record.id), "it was begun");
        error.message
    }
}

fn terms(center: &str, now_ms: u64) -> Terms {
    Terms { center: center.to_owned(), now_ms, validity: Duration::from_secs(3600) }
}

fn order(key: &SigningKey, task: &str, spec: &TaskSpec, terms: &Terms) -> SignedOrder {
    let spec = Some(wire::Spec::from(spec));
    let mut request = wire::SubmitRequest { id: task.to_owned(), spec, ..wire::SubmitRequest::default() };
    key.sign_task(&mut request, terms).unwrap();
    SignedOrder::from_wire(request.signed_order, &request.order_signature).unwrap().unwrap()
}

fn record(task: &str, spec: TaskSpec, order: Option<SignedOrder>) -> TaskRecord {
    TaskRecord::new(Submission { order, ..Submission::new(id(task), 5, 3, spec) }, 5)
}

fn copy() -> TaskSpec {
    copy_of(FenceMethod::Local)
}

/// A record whose order is that of the same task and work.
fn good(task: &str) -> TaskRecord {
    record(task, copy(), Some(order(&key(), task, &copy(), &terms("c", START_MS))))
}

#[tokio::test(start_paused = true)]
async fn what_is_signed_runs_and_nothing_of_the_record_is_believed() {
    let signed = Signed::new().await;
    let forged = TaskRecord { admitted: true, map: executor::bytes(50), ..good("t") };
    signed.harness.store_record(forged);
    *signed.harness.executor.opening.lock().unwrap() = Duration::from_secs(1);
    signed.assign("t").await;
    let copy = signed.harness.copy("t").await;
    let mark = copy.work.lock().unwrap().as_ref().and_then(|work| work.mark.clone());
    assert_eq!(mark.map(|mark| mark.len()), Some(32), "the executor is told that nothing is to be believed");
    copy.is_admitted().await.unwrap();
    copy.end.send_replace(Some(End::Succeeded));
    signed.harness.until("t", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn forged_altered_expired_and_wrongly_keyed_orders_are_refused_with_nothing_touched() {
    let signed = Signed::new().await;
    let stranger = SigningKey::from_seed([8; 32]);
    let other = |task: &str| order(&key(), task, &noop(5), &terms("c", START_MS));
    let mut forged = good("forged");
    forged.order.as_mut().unwrap().signature = "0".repeat(128);
    let mut cut = good("cut");
    cut.order.as_mut().unwrap().signature.truncate(20);
    let mut altered = good("altered");
    let text = &mut altered.order.as_mut().unwrap().text;
    *text = text.replace("/in/b", "/in/c");
    let mut elsewhere = good("elsewhere");
    if let TaskSpec::Copy(copy) = &mut elsewhere.spec {
        copy.destination = String::from("/in/c");
    }
    let expired = order(&key(), "expired", &copy(), &terms("c", START_MS - 3_700_000));
    for (record, why) in [
        (record("unsigned", copy(), None), "not signed"),
        (forged, "not that of this text"),
        (cut, "malformed"),
        (altered, "not that of this text"),
        (elsewhere, "other work"),
        (record("replaced", copy(), Some(other("replaced"))), "other work"),
        (record("renamed", copy(), good("t").order), "another task than renamed"),
        (record("expired", copy(), Some(expired)), "expired"),
        (record("keyed", copy(), Some(order(&stranger, "keyed", &copy(), &terms("c", START_MS)))), "--order-keys"),
        (record("center", copy(), Some(order(&key(), "center", &copy(), &terms("d", START_MS)))), "for center d"),
    ] {
        let name = record.id.clone();
        let message = signed.refusal(record).await;
        assert!(message.contains(why), "{name}: {message}");
    }
    assert!(signed.harness.executor.all.lock().unwrap().is_empty());
    // The runner is well, and takes what is signed.
    signed.harness.store_record(good("t"));
    signed.assign("t").await;
    signed.harness.copy("t").await.is_admitted().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_order_whose_task_has_ended_here_is_not_repeated() {
    let signed = Signed::new().await;
    signed.harness.store_record(good("t"));
    signed.assign("t").await;
    let copy = signed.harness.copy("t").await;
    copy.is_admitted().await.unwrap();
    copy.end.send_replace(Some(End::Succeeded));
    signed.harness.until("t", TaskState::Succeeded).await;
    signed.harness.executor.all.lock().unwrap().clear();
    while !signed.harness.handle.held().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    let path = paths::task(&id("t"));
    let version = signed.harness.store.get(&path).unwrap().stat.version;
    signed.harness.store.write(&[Op::Delete { path, version }]);
    let message = signed.refusal(good("t")).await;
    assert!(message.contains("has ended on this node"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_removed_key_and_the_time_count_at_each_attempt() {
    let signed = Signed::new().await;
    let interrupted = async |task: &str| {
        signed.harness.store_record(good(task));
        signed.assign(task).await;
        let copy = signed.harness.copy(task).await;
        copy.is_admitted().await.unwrap();
        copy.cancel(blockhaul_engine::job::StopReason::RunnerInterrupt);
        signed.harness.until(task, TaskState::Pending).await;
        signed.harness.executor.all.lock().unwrap().clear();
    };
    let again = async |task: &str| {
        while !signed.harness.handle.held().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        signed.assign(task).await;
        let record = signed.harness.until(task, TaskState::Failed).await;
        record.error.unwrap().message
    };
    interrupted("keyed").await;
    interrupted("late").await;
    signed.keys.change(&[]);
    assert!(again("keyed").await.contains("--order-keys"));
    signed.keys.change(&[key().public()]);
    signed.harness.clock.jump(3_700_000);
    assert!(again("late").await.contains("expired"));
    assert!(signed.harness.executor.all.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_runs_at_most_once_is_not_begun_again_by_a_record_that_forgets_it() {
    let signed = Signed::new().await;
    let spec = TaskSpec::Run(RunTask { node: Some(node()), at_most_once: true, ..RunTask::example("h") });
    let fresh = || record("h", spec.clone(), Some(order(&key(), "h", &spec, &terms("c", START_MS))));
    signed.harness.store_record(fresh());
    signed.assign("h").await;
    let hook = signed.harness.copy("h").await;
    hook.is_admitted().await.unwrap();
    // Somebody takes the task from the runner, and writes its record anew.
    let path = paths::task(&id("h"));
    let version = signed.harness.store.get(&path).unwrap().stat.version;
    signed.harness.store.write(&[Op::Delete { path: path.clone(), version }]);
    signed.harness.handle.notify(Epoch(1), &id("h")).await.unwrap();
    hook.cancelled.subscribe().wait_for(Option::is_some).await.unwrap();
    while !signed.harness.handle.held().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    signed.harness.executor.all.lock().unwrap().clear();
    let message = signed.refusal(fresh()).await;
    assert!(message.contains("has ended on this node"), "{message}");
}
