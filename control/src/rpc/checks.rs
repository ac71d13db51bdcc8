//! Has nodes check a task before it is submitted: those that could run it now open its volumes and say what they would do.

use super::error::RpcError;
use super::limits::CHECK_NODES_MAX;
use super::wire;
use crate::dispatcher::RunnerSummary;
use crate::model::{NodeId, PlacementRules, Submission};
use crate::peers::{CallError, Peer, RunnerClient};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use futures_util::future::join_all;
use serde_json::Value;
use std::cmp::Reverse;

/// Has up to [`CHECK_NODES_MAX`] nodes check a task, all at the same time: of those that its rules of placement allow, first
/// those with the most preferred labels, then those with the fewest tasks.
///
/// # Errors
/// `ENotFound` if no node could run it now.
pub(super) async fn check(
    order: &Submission,
    nodes: Vec<RunnerSummary>,
    runners: &dyn RunnerClient,
) -> Result<wire::CheckReply> {
    let spec = &order.spec;
    let only = spec.node()?;
    let able = able(nodes, only.as_ref(), &order.placement);
    if able.is_empty() {
        let message = match only {
            Some(node) => format!(
                "only node {node} can run this task, and it is away, stopping, draining or without a required label"
            ),
            None => String::from(
                "no node can take this task now: each is away, stopping, draining or without a required label",
            ),
        };
        return Err(Error::new(Code::NotFound, Side::Coordination, Operation::Start, message));
    }
    let others = able.len().saturating_sub(CHECK_NODES_MAX);
    let checks = able.iter().take(CHECK_NODES_MAX).map(|node| async move {
        let checked = runners.check(node, spec).await.unwrap_or_else(|fault| Err(of_call(node, fault)));
        wire::NodeCheck { node: node.node.to_string(), ..answer(checked) }
    });
    Ok(wire::CheckReply { nodes: join_all(checks).await, others: u32::try_from(others).unwrap_or(u32::MAX) })
}

/// Returns the nodes that take tasks, and may run this one, in the order in which they are asked.
fn able(nodes: Vec<RunnerSummary>, only: Option<&NodeId>, placement: &PlacementRules) -> Vec<Peer> {
    let takes = |runner: &RunnerSummary| {
        let there = runner.registration.as_ref().filter(|there| !there.stopping && placement.allow(&there.labels))?;
        let may = runner.drain.is_none() && only.is_none_or(|only| runner.node == *only);
        may.then(|| (Reverse(placement.preference(&there.labels)), runner.tasks, Peer::from(there)))
    };
    let mut able: Vec<_> = nodes.iter().filter_map(takes).collect();
    able.sort_by_key(|(preference, tasks, _)| (*preference, *tasks));
    able.into_iter().map(|(_, _, peer)| peer).collect()
}

/// Returns the error of a node without an answer.
fn of_call(node: &Peer, fault: CallError) -> Error {
    let (code, why) = match fault {
        CallError::Refused { code: Code::Unsupported, .. } => {
            (Code::Unsupported, String::from("it runs a version of taskd that checks no tasks"))
        }
        CallError::Refused { code, why } => (code, why),
        CallError::NoAnswer(why) | CallError::Misdirected(why) => (Code::Unreachable, why),
    };
    Error::new(code, Side::Coordination, Operation::Start, format!("node {}: {why}", node.node))
}

/// Returns the answer of a node, without its name.
pub(super) fn answer(checked: Result<Value>) -> wire::NodeCheck {
    let (plan_json, refused) = match checked {
        Ok(plan) => (Some(plan.to_string()), None),
        Err(error) => (None, Some(wire::RpcError::from(&RpcError::from(error)))),
    };
    wire::NodeCheck { node: String::new(), plan_json, refused }
}

/// Returns what the answer of a node says.
///
/// # Errors
/// If it says nothing.
pub(super) fn result(answer: wire::NodeCheck) -> std::result::Result<Result<Value>, CallError> {
    match (answer.refused, answer.plan_json.map(|plan| serde_json::from_str::<Value>(&plan))) {
        (Some(refused), _) => Ok(Err(RpcError::from(refused).error)),
        (None, Some(Ok(plan))) => Ok(Ok(plan)),
        (None, Some(Err(_)) | None) => Err(CallError::NoAnswer(String::from("its plan cannot be read"))),
    }
}
