//! Tests that a leader with keys stores only what is signed.

use super::mock::{MockDispatcher, Node, center, client, noop};
use crate::clock::{Clock, HostClock};
use crate::model::Trigger;
use crate::order::{OrderKeys, OrderVerifier, SigningKey, Terms};
use crate::rpc::client::CenterClient;
use crate::rpc::error::RpcError;
use crate::rpc::wire;
use blockhaul_engine::error::Code;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

fn terms(name: &str) -> Terms {
    Terms { center: name.to_owned(), now_ms: HostClock.unix_ms(), validity: Duration::from_secs(60) }
}

async fn leader() -> (Node, Arc<MockDispatcher>, CenterClient) {
    let orders = OrderVerifier::new(OrderKeys::of(&[key().public()]), center("c"), None);
    let (node, tasks) = (Node::with_orders(&orders).await, Arc::new(MockDispatcher::default()));
    node.lead(&tasks);
    let client = client(&[node.address()]);
    (node, tasks, client)
}

fn signed(id: &str, key: &SigningKey, terms: &Terms) -> wire::SubmitRequest {
    let mut request = noop(id);
    key.sign_task(&mut request, terms).unwrap();
    request
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, RpcError>) -> String {
    let RpcError { error, .. } = answer.expect_err("it is not signed");
    assert_eq!(error.code, Code::Permission, "{error}");
    error.message
}

#[tokio::test]
async fn what_is_not_signed_as_it_has_to_be_is_refused_before_anything_is_stored() {
    let (_node, tasks, mut client) = leader().await;
    assert!(refusal(client.submit(noop("t")).await).contains("--sign"));
    let mut renamed = signed("t", &key(), &terms("c"));
    renamed.id = String::from("u");
    let mut long = signed("t", &key(), &terms("c"));
    long.signed_order.resize(2049, b' ');
    let mut cut = signed("t", &key(), &terms("c"));
    cut.order_signature.pop();
    for request in [
        signed("t", &SigningKey::from_seed([8; 32]), &terms("c")),
        signed("t", &key(), &terms("d")),
        renamed,
        long,
        cut,
    ] {
        refusal(client.submit(request).await);
    }
    assert!(tasks.tasks.lock().unwrap().is_empty());
    let good = signed("t", &key(), &terms("c"));
    let task = client.submit(good.clone()).await.unwrap();
    assert_eq!((task.signed_order, task.order_signature), (good.signed_order, good.order_signature), "as it was sent");
}

#[tokio::test]
async fn schedules_are_signed_and_the_center_itself_makes_no_tasks() {
    let (_node, _tasks, mut client) = leader().await;
    let schedule = wire::AddScheduleRequest {
        name: String::from("nightly"),
        trigger: Some(Trigger::Cron(String::from("0 2 * * *")).into()),
        task: Some(noop("")),
        ..wire::AddScheduleRequest::default()
    };
    assert!(refusal(client.add_schedule(schedule.clone()).await).contains("not signed"));
    let mut good = schedule;
    key().sign_schedule(&mut good, &terms("c")).unwrap();
    let other = wire::AddScheduleRequest { name: String::from("weekly"), ..good.clone() };
    assert!(refusal(client.add_schedule(other).await).contains("schedule weekly"));
    // The mock has no schedules: this one got as far as that.
    assert_eq!(client.add_schedule(good).await.unwrap_err().error.code, Code::NotFound);
    let notify = HashMap::from([(String::from("notify"), String::from("h"))]);
    let settings = wire::SetSettingsRequest { values: notify, if_version: None };
    assert!(refusal(client.set_settings(settings).await).contains("notify"));
}

#[tokio::test]
async fn without_keys_a_signature_is_kept_and_does_not_count() {
    let (node, tasks) = (Node::start().await, Arc::new(MockDispatcher::default()));
    node.lead(&tasks);
    let mut client = client(&[node.address()]);
    let mut wrong = signed("t", &key(), &terms("another"));
    wrong.order_signature[0] ^= 1;
    assert_eq!(client.submit(wrong.clone()).await.unwrap().order_signature, wrong.order_signature);
    client.submit(noop("u")).await.unwrap();
}
