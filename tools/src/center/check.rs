//! Shows what nodes would do with a task that is not submitted: `submit ... --check`.

use super::args::RawCenter;
use super::submit::CopyHooks;
use super::{CenterSession, call};
use crate::exit::Exit;
use crate::output;
use blockhaul_control::rpc::error::RpcError;
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::units::format_size;
use serde::Serialize;
use serde_json::Value;

/// Has a task checked. Succeeds if a node would run it, else exits as the first refusal says.
pub(super) fn run(request: wire::SubmitRequest, hooks: &CopyHooks, center: RawCenter) -> Result<Exit> {
    if !hooks.is_empty() {
        let error = Error::bad_request("--check is for single tasks: leave out --before and --finally");
        return Err(error.advise("check each hook by `submit run HOOK --check`"));
    }
    let mut session = CenterSession::open(center)?;
    let wire::CheckReply { nodes, others } = call!(session, check, request)?;
    let checks: Vec<NodeView> = nodes.into_iter().map(NodeView::from).collect();
    for check in &checks {
        if session.json {
            output::json_event("check", check);
        } else {
            output::print_stdout(check.line());
        }
    }
    if others > 0 {
        output::print_stderr(format_args!("{others} more nodes could run it, and were not asked"));
    }
    let refusal = checks.iter().filter_map(|check| check.refusal.as_ref()).next();
    Ok(match (checks.iter().any(|check| check.plan.is_some()), refusal) {
        (true, _) | (false, None) => Exit::Done,
        (false, Some(refusal)) => Exit::from(refusal),
    })
}

/// Answer of a node. Exactly one of `plan` and `refusal` is not null.
#[derive(Debug, Serialize)]
struct NodeView {
    node: String,
    plan: Option<Value>,
    refusal: Option<Error>,
}

impl From<wire::NodeCheck> for NodeView {
    fn from(wire::NodeCheck { node, plan_json, refused }: wire::NodeCheck) -> Self {
        let refusal = refused.map(|error| RpcError::from(error).error);
        let plan = plan_json.filter(|_| refusal.is_none());
        // A plan that is no JSON is shown as the text that it is.
        let plan = plan.map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text)));
        Self { node, plan, refusal }
    }
}

impl NodeView {
    fn line(&self) -> String {
        let Self { node, plan, refusal } = self;
        match (refusal, plan) {
            (Some(refusal), _) => format!("{node} refuses: {refusal}"),
            (None, plan) => format!("{node} would run it{}", plan.as_ref().map(plan_text).unwrap_or_default()),
        }
    }
}

/// Formats the plan of a copy as `: 4.0 GiB, data 1.0 GiB, path ring, free space 9.0 GiB`.
fn plan_text(plan: &Value) -> String {
    let size = |field: &str| plan[field].as_u64().map(format_size);
    let mut parts: Vec<String> = size("source_bytes").into_iter().collect();
    for (name, field) in
        [("data", "data_bytes"), ("zeros", "zero_bytes"), ("holes", "hole_bytes"), ("free space", "free_bytes")]
    {
        parts.extend(size(field).map(|size| format!("{name} {size}")));
    }
    parts.extend(plan["path"].as_str().map(|path| format!("path {path}")));
    parts.extend(plan["hook"].as_str().map(|hook| format!("hook {hook}")));
    if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(plan: Option<&str>, refused: Option<&str>) -> NodeView {
        let refused = refused.map(|message| wire::RpcError {
            code: String::from("EPermission"),
            message: message.to_owned(),
            ..wire::RpcError::default()
        });
        NodeView::from(wire::NodeCheck { node: String::from("n1"), plan_json: plan.map(str::to_owned), refused })
    }

    #[test]
    fn each_node_has_a_line_with_its_plan_or_its_refusal() {
        let plan = r#"{"source_bytes":4096,"data_bytes":4096,"zero_bytes":0,"free_bytes":null,"path":"ring"}"#;
        let line = check(Some(plan), None).line();
        assert_eq!(line, "n1 would run it: 4.0 KiB, data 4.0 KiB, zeros 0 B, path ring");
        assert_eq!(check(Some("{}"), None).line(), "n1 would run it");
        assert_eq!(check(Some(r#"{"hook":"h"}"#), None).line(), "n1 would run it: hook h");
        let refused = check(None, Some("/etc is not allowed"));
        assert!(refused.line().starts_with("n1 refuses: EPermission: /etc is not allowed"), "{}", refused.line());
        let json = serde_json::to_value(&refused).unwrap();
        assert_eq!((&json["plan"], &json["refusal"]["code"]), (&Value::Null, &Value::from("EPermission")));
    }
}
