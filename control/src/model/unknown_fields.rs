//! Keeps the fields of a record that this version does not know, so that writing the record again does not lose them.
//!
//! What always holds: a node of an older version neither refuses nor changes what a later version has added to a
//! record. Fields that change what a task does are in its spec: a node that does not know such a field does not run the
//! task.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Unknown fields by name, as they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnknownFields(BTreeMap<String, Value>);

impl UnknownFields {
    /// Returns the name of one, if there is any.
    #[must_use]
    pub fn first(&self) -> Option<&str> {
        self.0.keys().next().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use crate::execution::{CompareJob, CopyJob, End, Execution, ExecutionHandle, Executor, HookJob, Outcome};
    use crate::model::state_machine::{self, TaskEvent};
    use crate::model::{
        Claim, CopyTask, DurableMap, Epoch, Holder, Incarnation, NodeFault, NodeId, NoopTask, OpId, Record, Submission,
        TaskId, TaskRecord, TaskSpec, TaskVolume,
    };
    use async_trait::async_trait;
    use blockhaul_engine::error::Result;
    use blockhaul_engine::write_gate::WriteGate;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn record(spec: TaskSpec) -> TaskRecord {
        TaskRecord::new(Submission::new(TaskId::new("t").unwrap(), 0, 5, spec), 1)
    }

    fn holder() -> Holder {
        Holder { node: NodeId::new("n").unwrap(), incarnation: Incarnation("i".to_owned()) }
    }

    /// Adds a field of a later version to every object of a record.
    fn later(record: &impl Record) -> Value {
        fn add(value: &mut Value) {
            match value {
                Value::Object(fields) => {
                    fields.values_mut().for_each(add);
                    fields.insert("from_later".to_owned(), json!({ "deep": [1, null] }));
                }
                Value::Array(values) => values.iter_mut().for_each(add),
                _ => {}
            }
        }
        let mut value = serde_json::from_slice(&record.encode()).unwrap();
        add(&mut value);
        value
    }

    #[test]
    fn what_a_later_version_has_added_survives_a_transition_of_an_older_one() {
        let copy = TaskSpec::Copy(CopyTask::example("file://n/a", "file://n/b"));
        let assigned = TaskEvent::Assigned { to: holder(), claims: vec![String::from("c")] };
        let before = state_machine::next(&record(copy), assigned, 2).unwrap();
        let stored = serde_json::to_vec(&later(&before)).unwrap();
        let read = TaskRecord::decode(&stored).unwrap();
        let after = state_machine::next(&read, TaskEvent::RunnerLost, 3).unwrap();
        let written: Value = serde_json::from_slice(&after.encode()).unwrap();
        for kept in [&written, &written["spec"], &written["attempts"][0]] {
            assert_eq!(kept["from_later"], json!({ "deep": [1, null] }), "{written:#}");
        }
        assert_eq!(written["state"], "PENDING", "{written:#}");
    }

    #[test]
    fn a_claim_keeps_what_it_does_not_know() {
        let task = TaskId::new("t").unwrap();
        let claim = Claim {
            destination: "d".to_owned(),
            task,
            holder: Some(holder()),
            op: OpId::fresh(),
            unknown: super::UnknownFields::default(),
        };
        let read = Claim::decode(&serde_json::to_vec(&later(&claim)).unwrap()).unwrap();
        assert_eq!((read.unknown.first(), read.holder), (Some("from_later"), Some(holder())));
    }

    /// Executor that is never called.
    #[derive(Debug)]
    struct Idle;

    #[async_trait]
    impl Executor for Idle {
        async fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>> {
            panic!("{destination} was asked for")
        }

        fn copy(&self, job: CopyJob, _: Execution) -> Arc<dyn ExecutionHandle> {
            panic!("{job:?} was started")
        }

        fn compare(&self, job: CompareJob, _: Execution) -> Arc<dyn ExecutionHandle> {
            panic!("{job:?} was started")
        }

        fn run_hook(&self, job: HookJob, _: Execution) -> Arc<dyn ExecutionHandle> {
            panic!("{job:?} was started")
        }

        fn kept(&self) -> Vec<(TaskId, u64)> {
            Vec::new()
        }

        fn forget(&self, _: &TaskId, _: u64) {}
    }

    /// Ignoring an unknown option could corrupt data.
    #[tokio::test]
    async fn a_task_with_an_option_that_is_not_known_is_left_to_later_nodes() {
        let spec = json!({ "kind": "noop", "milliseconds": 1, "node": null, "compressed": true });
        let spec: TaskSpec = serde_json::from_value(spec).unwrap();
        let TaskSpec::Noop(NoopTask { unknown, .. }) = &spec else { panic!("{spec:?}") };
        assert_eq!(unknown.first(), Some("compressed"));
        let (admission, _permit) = tokio::sync::oneshot::channel();
        let execution = Execution {
            task: TaskId::new("t").unwrap(),
            group: None,
            created_ms: 1,
            attempt: 1,
            epoch: Epoch(1),
            admitted: false,
            earlier: Vec::new(),
            mark: None,
            durable: DurableMap::default(),
            gate: Arc::new(WriteGate::closed()),
            admission,
        };
        let Outcome { end: End::Failed(failure), quiesced: true, .. } = spec.start(execution, &Idle).ended().await
        else {
            panic!("it must not run")
        };
        assert!(failure.message.contains("compressed"), "{failure}");
        assert_eq!(failure.node_fault(), Some(NodeFault::Lasting));
    }
}
