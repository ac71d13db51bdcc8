//! Tests what is taken for a signed order, and what is not.

use super::content::Order;
use super::keys::KeySet;
use super::signature::verified;
use super::*;
use crate::model::{GroupName, NodeId, ScheduleName, SignedOrder, Submission, TaskId, TaskRecord, TaskSpec, Trigger};
use crate::peers::CenterId;
use crate::wire;
use blockhaul_engine::flow::graph::Condition;
use proptest::prelude::*;

/// Midnight of a Monday.
const NOW_MS: u64 = 1_700_438_400_000;

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

fn other_key() -> SigningKey {
    SigningKey::from_seed([8; 32])
}

fn node() -> NodeId {
    NodeId::new("n1").unwrap()
}

fn id(text: &str) -> TaskId {
    TaskId::new(text).unwrap()
}

fn center(name: &str) -> CenterId {
    let center = CenterId::default();
    center.set(name.to_owned()).unwrap();
    center
}

fn terms() -> Terms {
    Terms { center: String::from("c"), now_ms: NOW_MS, validity: Duration::from_secs(3600) }
}

fn verifier(keys: &[&SigningKey]) -> OrderVerifier {
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    OrderVerifier::new(OrderKeys::of(&keys), center("c"), None)
}

fn runner(folder: &std::path::Path) -> RunnerOrders {
    let ended = EndedOrders::open(folder, NOW_MS).unwrap();
    RunnerOrders::new(verifier(&[&key()]), node(), String::from("boot"), ended)
}

/// A copy that waits for another task, in a group.
fn request() -> wire::SubmitRequest {
    let work = wire::CopyWork {
        source: String::from("file://n1/a"),
        destination: String::from("file://n1/b"),
        limit: Some(5),
        ..wire::CopyWork::default()
    };
    wire::SubmitRequest {
        id: String::from("g.t"),
        spec: Some(wire::Spec { work: Some(wire::spec::Work::Copy(work)) }),
        after: vec![wire::Dependency { task: String::from("g.a"), condition: String::from("end") }],
        group: Some(wire::Membership { group: String::from("g"), clean_up: true }),
        ..wire::SubmitRequest::default()
    }
}

fn signed(key: &SigningKey, terms: &Terms) -> Submission {
    let mut request = request();
    key.sign_task(&mut request, terms).unwrap();
    Submission::check(request, None).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code, Code::Permission, "{error}");
    error.message
}

fn altered(change: impl FnOnce(&mut Submission)) -> Submission {
    let mut submission = signed(&key(), &terms());
    change(&mut submission);
    submission
}

fn spec_of(submission: &mut Submission) -> &mut crate::model::CopyTask {
    match &mut submission.spec {
        TaskSpec::Copy(copy) => copy,
        other => panic!("it is a copy, not {other:?}"),
    }
}

#[test]
fn what_is_signed_is_taken_whatever_its_limit_is_by_now() {
    let verifier = verifier(&[&other_key(), &key()]);
    verifier.check_submission(&signed(&key(), &terms()), NOW_MS).unwrap();
    verifier.check_submission(&signed(&key(), &terms()), NOW_MS + 3_600_000).unwrap();
    let unlimited = altered(|submission| _ = submission.spec.kind_mut().set_limit(None));
    verifier.check_submission(&unlimited, NOW_MS).unwrap();
}

#[test]
fn what_is_not_signed_as_it_has_to_be_is_refused_and_says_why() {
    let verifier = verifier(&[&key()]);
    let longer = Terms { validity: VALIDITY_MAX + Duration::from_secs(600), ..terms() };
    let elsewhere = Terms { center: String::from("d"), ..terms() };
    for (submission, now_ms, why) in [
        (altered(|submission| submission.order = None), NOW_MS, "not signed"),
        (signed(&other_key(), &terms()), NOW_MS, "not in the folder of --order-keys"),
        (signed(&key(), &elsewhere), NOW_MS, "for center d, and this is c"),
        (signed(&key(), &terms()), NOW_MS + 3_600_001, "expired"),
        (signed(&key(), &longer), NOW_MS, "more than seven days"),
        (altered(|submission| submission.id = id("g.u")), NOW_MS, "another task than g.u"),
        (altered(|submission| spec_of(submission).overwrite = true), NOW_MS, "other work"),
        (altered(|submission| spec_of(submission).destination = String::from("file://n1/c")), NOW_MS, "other work"),
        (altered(|submission| submission.after.clear()), NOW_MS, "waits for other tasks"),
        (altered(|submission| submission.after[0].1 = Condition::Success), NOW_MS, "waits for other tasks"),
        (altered(|submission| submission.group = None), NOW_MS, "another place in a group"),
        (
            altered(|submission| submission.group = Some(GroupName { id: id("g"), clean_up: false })),
            NOW_MS,
            "another place in a group",
        ),
    ] {
        let message = refusal(verifier.check_submission(&submission, now_ms));
        assert!(message.contains(why), "{why}: {message}");
    }
    let stranger = OrderVerifier::new(OrderKeys::of(&[key().public()]), CenterId::default(), None);
    assert!(refusal(stranger.check_submission(&signed(&key(), &terms()), NOW_MS)).contains("not joined"));
}

#[test]
fn a_key_that_is_named_by_an_order_of_another_one_does_not_help() {
    let mut submission = signed(&other_key(), &terms());
    let order = submission.order.as_mut().unwrap();
    order.text = order.text.replace(other_key().name(), key().name());
    assert!(refusal(verifier(&[&key()]).check_submission(&submission, NOW_MS)).contains("not that of this text"));
}

#[test]
fn a_key_that_is_taken_away_counts_no_longer() {
    let keys = OrderKeys::of(&[key().public()]);
    let verifier = OrderVerifier::new(keys.clone(), center("c"), None);
    let submission = signed(&key(), &terms());
    verifier.check_submission(&submission, NOW_MS).unwrap();
    keys.change(&[]);
    assert!(refusal(verifier.check_submission(&submission, NOW_MS)).contains("--order-keys"));
}

#[test]
fn fields_that_nobody_understands_and_fields_that_are_there_twice_are_refused() {
    let text = signed(&key(), &terms()).order.unwrap().text;
    assert!(Order::parse(&text).is_ok());
    for bad in [
        text.replacen('{', "{\"later\":1,", 1),
        text.replacen('{', "{\"center\":\"d\",", 1),
        text.replace("\"clean_up\":true", "\"clean_up\":true,\"x\":1"),
        format!("{text} x"),
        format!("{text}{}", " ".repeat(crate::model::ORDER_BYTES_MAX)),
        String::new(),
        "[".repeat(2000),
    ] {
        refusal(Order::parse(&bad));
    }
    let submission = altered(|submission| {
        let order = submission.order.as_mut().unwrap();
        // Another spelling of the same order has no signature.
        order.text = order.text.replacen('{', "{ ", 1);
    });
    assert!(refusal(verifier(&[&key()]).check_submission(&submission, NOW_MS)).contains("not that of this text"));
}

#[test]
fn what_is_too_long_is_not_signed() {
    let work = wire::RunWork { hook: String::from("h"), input: "x".repeat(2000), ..wire::RunWork::default() };
    let spec = Some(wire::Spec { work: Some(wire::spec::Work::Run(work)) });
    let mut request = wire::SubmitRequest { spec, ..request() };
    let error = key().sign_task(&mut request, &terms()).unwrap_err();
    assert!(error.code == Code::BadRequest && error.message.contains("2048"), "{error}");
    assert!(Terms::check_validity(VALIDITY_MAX).is_ok() && Terms::check_validity(Duration::ZERO).is_err());
    assert!(Terms::check_validity(VALIDITY_MAX + Duration::from_millis(1)).is_err());
}

#[test]
fn a_single_node_puts_itself_into_plain_paths_and_others_do_not() {
    let work =
        wire::CopyWork { source: String::from("/a"), destination: String::from("/b"), ..wire::CopyWork::default() };
    let spec = Some(wire::Spec { work: Some(wire::spec::Work::Copy(work)) });
    let mut request = wire::SubmitRequest { spec, ..request() };
    key().sign_task(&mut request, &terms()).unwrap();
    let submission = Submission::check(request, Some(&node())).unwrap();
    let alone = OrderVerifier::new(OrderKeys::of(&[key().public()]), center("c"), Some(node()));
    alone.check_submission(&submission, NOW_MS).unwrap();
    refusal(verifier(&[&key()]).check_submission(&submission, NOW_MS));
}

#[tokio::test]
async fn a_runner_takes_the_work_from_what_was_signed_and_only_the_limit_from_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let orders = runner(folder.path());
    let mut record = record();
    record.spec.kind_mut().set_limit(Some(99));
    let VerifiedTask { record: taken, mark, not_after_ms } = orders.verify(&record, NOW_MS).unwrap();
    assert_eq!((taken.spec.kind().limit(), not_after_ms, mark.len()), (Some(99), NOW_MS + 3_600_000, 32));
    assert!(taken.spec.is_same_work(&record.spec));
    let forged = TaskRecord { admitted: true, ..record.clone() };
    assert_eq!(orders.verify(&forged, NOW_MS).unwrap().mark, mark);
    orders.remember(&record.id, not_after_ms, NOW_MS).await.unwrap();
    assert!(refusal(orders.verify(&record, NOW_MS)).contains("has ended on this node"));
    assert!(refusal(orders.verify(&record, NOW_MS + 3_600_001)).contains("expired"));
}

fn record() -> TaskRecord {
    let submission = Submission { after: Vec::new(), group: None, ..bare_submission() };
    TaskRecord::new(submission, NOW_MS)
}

/// Signed, without dependencies and group, which only a dispatcher puts into a record.
fn bare_submission() -> Submission {
    let mut request = wire::SubmitRequest { after: Vec::new(), group: None, ..request() };
    request.id = String::from("t");
    key().sign_task(&mut request, &terms()).unwrap();
    Submission::check(request, None).unwrap()
}

fn schedule(trigger: Trigger, destination: &str) -> wire::AddScheduleRequest {
    let work = wire::CopyWork {
        source: String::from("file://n1/a"),
        destination: destination.to_owned(),
        ..wire::CopyWork::default()
    };
    wire::AddScheduleRequest {
        name: String::from("nightly"),
        trigger: Some(trigger.into()),
        task: Some(wire::SubmitRequest {
            spec: Some(wire::Spec { work: Some(wire::spec::Work::Copy(work)) }),
            ..wire::SubmitRequest::default()
        }),
        ..wire::AddScheduleRequest::default()
    }
}

/// Signs a schedule; returns its order and its template.
fn signed_schedule(trigger: Trigger, destination: &str) -> (SignedOrder, TaskSpec) {
    let mut request = schedule(trigger, destination);
    key().sign_schedule(&mut request, &terms()).unwrap();
    let task = request.task.unwrap();
    let order = SignedOrder::from_wire(task.signed_order, &task.order_signature).unwrap().unwrap();
    (order, TaskSpec::try_from(task.spec).unwrap())
}

fn task_of(name: &str, destination: &str, order: &SignedOrder) -> TaskRecord {
    let mut bare = bare_submission();
    (bare.id, bare.order) = (id(name), Some(order.clone()));
    spec_of(&mut bare).destination = destination.to_owned();
    bare.spec.kind_mut().set_limit(None);
    TaskRecord::new(bare, NOW_MS)
}

#[test]
fn the_tasks_of_a_schedule_are_computed_from_what_was_signed_and_their_instant() {
    let folder = tempfile::tempdir().unwrap();
    let orders = runner(folder.path());
    let every = Trigger::Every { interval_ms: 60_000, from_ms: Some(0) };
    let (order, template) = signed_schedule(every.clone(), "file://n1/b-%H%M");
    let name = ScheduleName::new("nightly").unwrap();
    let check = |trigger: &Trigger, zone: &str, template: &TaskSpec| {
        verifier(&[&key()]).check_schedule(&name, (trigger, zone), (template, Some(&order)), NOW_MS)
    };
    check(&every, "UTC", &template).unwrap();
    refusal(check(&every, "Europe/Berlin", &template));
    refusal(check(&Trigger::At(0), "UTC", &template));
    let (_, other) = signed_schedule(every, "file://n1/c");
    refusal(check(&Trigger::Every { interval_ms: 60_000, from_ms: Some(0) }, "UTC", &other));

    let verify = |task: &str, destination: &str, later_ms: u64| {
        orders.verify(&task_of(task, destination, &order), NOW_MS + later_ms)
    };
    verify("nightly.20231120T000500Z", "file://n1/b-0005", 300_000).unwrap();
    for (task, destination, later_ms, why) in [
        ("nightly.20231120T000500Z", "file://n1/b-0006", 300_000, "other work"),
        ("nightly.20231120T000530Z", "file://n1/b-0005", 330_000, "no such instant"),
        ("nightly.20231119T235900Z", "file://n1/b-2359", 300_000, "had passed"),
        ("nightly.20231120T000800Z", "file://n1/b-0008", 300_000, "has not come"),
        ("nightly.20231120T000500Z~2", "file://n1/b-0005", 300_000, "no task of schedule"),
        ("hourly.20231120T000500Z", "file://n1/b-0005", 300_000, "no task of schedule"),
        ("nightly.2023-11-20", "file://n1/b-0005", 300_000, "no task of schedule"),
        ("nightly", "file://n1/b-0005", 300_000, "no task of schedule"),
        ("nightly.20231120T010500Z", "file://n1/b-0105", 3_900_000, "expired"),
    ] {
        let message = refusal(verify(task, destination, later_ms));
        assert!(message.contains(why), "{task}: {message}");
    }
    let submission = Submission { order: Some(order), ..bare_submission() };
    assert!(refusal(verifier(&[&key()]).check_submission(&submission, NOW_MS)).contains("for a schedule"));
}

#[test]
fn a_trigger_that_no_runner_could_check_is_refused() {
    let every = Trigger::Every { interval_ms: 60_000, from_ms: None };
    let error = key().sign_schedule(&mut schedule(every, "file://n1/b"), &terms()).unwrap_err();
    assert!(error.code == Code::BadRequest && error.message.contains("--from"), "{error}");

    let name = ScheduleName::new("nightly").unwrap();
    let check = |trigger: Trigger, destination: &str| {
        let (order, template) = signed_schedule(trigger.clone(), destination);
        verifier(&[&key()]).check_schedule(&name, (&trigger, "UTC"), (&template, Some(&order)), NOW_MS)
    };
    check(Trigger::OnBoot(node()), "file://n1/b").unwrap();
    assert!(refusal(check(Trigger::OnBoot(node()), "file://n1/b-%H")).contains("patterns"));
    assert!(refusal(check(Trigger::OnBoot(NodeId::new("n2").unwrap()), "file://n1/b")).contains("--node"));
}

#[test]
fn the_task_of_a_boot_is_that_of_this_nodes_own_boot() {
    let folder = tempfile::tempdir().unwrap();
    let orders = runner(folder.path());
    let (order, _) = signed_schedule(Trigger::OnBoot(node()), "file://n1/b");
    let name = ScheduleName::new("nightly").unwrap();
    let verify = |boot: &str| {
        let task = crate::model::schedule::boot_id(&name, boot).unwrap();
        orders.verify(&task_of(task.as_str(), "file://n1/b", &order), NOW_MS)
    };
    verify("boot").unwrap();
    assert!(refusal(verify("another")).contains("last boot"));
}

#[test]
fn a_run_of_a_schedule_is_signed_for_one_instant_that_is_now() {
    let every = Trigger::Every { interval_ms: 60_000, from_ms: Some(0) };
    let mut request = schedule(every.clone(), "file://n1/b-%H%M");
    key().sign_schedule(&mut request, &terms()).unwrap();
    let shown = wire::Schedule {
        name: request.name.clone(),
        trigger: request.trigger,
        zone: String::from("UTC"),
        task: request.task.clone(),
        ..wire::Schedule::default()
    };
    let later = Terms { now_ms: NOW_MS + 7_007, ..terms() };
    let run = key().sign_run(&shown, &later).unwrap();
    let order = SignedOrder::from_wire(run.signed_order, &run.order_signature).unwrap();
    let name = ScheduleName::new("nightly").unwrap();
    let template = TaskSpec::try_from(request.task.unwrap().spec).unwrap();
    let check = |now_ms: u64| verifier(&[&key()]).check_run(&name, (&template, "UTC"), order.as_ref(), now_ms);
    assert_eq!(check(NOW_MS + 7_500).unwrap(), NOW_MS + 7_000);
    assert!(refusal(check(NOW_MS + 120_000)).contains("another time"));
    let folder = tempfile::tempdir().unwrap();
    let task = task_of("nightly.20231120T000007Z", "file://n1/b-0000", &order.unwrap());
    runner(folder.path()).verify(&task, NOW_MS + 7_500).unwrap();
    // The order of the schedule itself is for no single instant.
    let (order, _) = signed_schedule(every, "file://n1/b-%H%M");
    let checked = verifier(&[&key()]).check_run(&name, (&template, "UTC"), Some(&order), NOW_MS);
    assert!(refusal(checked).contains("one instant"));
    assert!(refusal(other_key().sign_run(&shown, &later)).contains("submit it anew"));
}

#[test]
fn a_key_signs_again_only_what_it_has_signed_before() {
    let mut request = request();
    key().sign_task(&mut request, &terms()).unwrap();
    let wire::SubmitRequest { id, spec, signed_order, order_signature, .. } = request;
    let told = wire::Task { id, spec, signed_order, order_signature, ..wire::Task::default() };
    let task = key().as_signed(told.clone(), "c").unwrap();
    assert_eq!(task.after[0].task, "g.a", "as it was signed, and not as the center says");
    assert!(task.group.unwrap().clean_up);
    let mut other = told.clone();
    if let Some(wire::Spec { work: Some(wire::spec::Work::Copy(copy)) }) = &mut other.spec {
        copy.destination = String::from("file://n1/c");
    }
    for (key, task, center) in [
        (key(), other, "c"),
        (key(), wire::Task { id: String::from("g.u"), ..told.clone() }, "c"),
        (key(), wire::Task { signed_order: Vec::new(), order_signature: Vec::new(), ..told.clone() }, "c"),
        (key(), told.clone(), "d"),
        (other_key(), told.clone(), "c"),
    ] {
        refusal(key.as_signed(task, center));
    }
}

#[test]
fn keys_that_openssl_has_made_are_read() {
    let text = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
                -----END PRIVATE KEY-----\n";
    let key = SigningKey::parse(text.as_bytes()).unwrap();
    assert_eq!(key.public()[..4], [0xd7, 0x5a, 0x98, 0x01], "the first test of RFC 8032");
    for bad in ["", "-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n", &text.replace("VwBC", "VxBC")] {
        assert!(SigningKey::parse(bad.as_bytes()).is_none(), "{bad}");
    }
}

proptest! {
    /// No change of a single bit, no cut and no other bytes pass.
    #[test]
    fn nothing_but_the_signed_bytes_passes(at in 0..5_000_usize, bit in 0..8_u8, cut in 0..400_usize) {
        let keys = KeySet::of(&[key().public()]);
        let order = signed(&key(), &terms()).order.unwrap();
        prop_assert!(verified(&order, &keys, "c", NOW_MS).is_ok());
        let (text, signature) = order.to_wire();
        let mut flipped = [signature.clone(), text.clone()].concat();
        let at = at % flipped.len();
        flipped[at] ^= 1 << bit;
        let cut_text = text[..text.len().saturating_sub(cut + 1)].to_vec();
        for (text, signature) in [
            (flipped[64..].to_vec(), flipped[..64].to_vec()),
            (cut_text, signature.clone()),
            (text.clone(), vec![bit; 64]),
        ] {
            let is_taken = match SignedOrder::from_wire(text, &signature) {
                Ok(Some(order)) => verified(&order, &keys, "c", NOW_MS).is_ok(),
                Ok(None) | Err(_) => false,
            };
            prop_assert!(!is_taken);
        }
    }

    /// Whatever bytes come from outside, reading them ends.
    #[test]
    fn any_bytes_are_read_to_an_end(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz::fuzz_keys(&data);
        fuzz::fuzz_order(&data);
    }
}
