//! Shrinks a task's record to the size limit of a node in the store, by dropping what can be dropped.

use super::{Attempt, OpId, Record, TaskRecord};
use crate::coord::NODE_BYTES_MAX;

/// Bytes reserved for what a later write may add: a holder, an attempt, a desired state.
const SPARE_BYTES: usize = 512;
/// Attempts that a record keeps whatever its size: the last ones.
const ATTEMPTS_KEPT_MIN: usize = 4;
/// Transitions that go only after the attempts: the last ones.
const TRANSITIONS_KEPT_MIN: usize = 2;

impl TaskRecord {
    /// Returns the record as it is to be written: with a fresh operation id, and small enough.
    #[must_use]
    pub fn sealed(self) -> Self {
        Self { op: OpId::fresh(), ..self }.fitted()
    }

    /// Shrinks the record to the size of a node: first the report is dropped, then the reasons of transitions are cut,
    /// then ranges of the map go (the shortest first), then the text of the error, then the reason, then the oldest
    /// transitions but two, then the oldest attempts that have drained (a long input of a hook leaves room for about
    /// eight), then all transitions. Other fields that decisions depend on always stay.
    fn fitted(mut self) -> Self {
        let is_fit = |record: &Self| record.encode().len() <= NODE_BYTES_MAX - SPARE_BYTES;
        if is_fit(&self) {
            return self;
        }
        self.report = None;
        if !is_fit(&self) {
            self.transitions.shorten();
        }
        while !is_fit(&self) && !self.map.is_empty() {
            self.map = self.map.halved();
        }
        if !is_fit(&self)
            && let Some(error) = &mut self.error
        {
            error.message = error.message.chars().take(100).collect();
        }
        if !is_fit(&self) {
            self.reason = self.reason.chars().take(100).collect();
        }
        while !is_fit(&self) && self.transitions.drop_oldest_of(TRANSITIONS_KEPT_MIN) {}
        while !is_fit(&self) && self.drop_attempt() {}
        while !is_fit(&self) && self.transitions.drop_oldest_of(0) {}
        self
    }

    /// Drops the oldest attempt of which nothing can come any more; tells whether there was one.
    fn drop_attempt(&mut self) -> bool {
        let older = self.attempts.len().saturating_sub(ATTEMPTS_KEPT_MIN);
        let is_over = |attempt: &Attempt| attempt.quiet && attempt.ended_ms.is_some();
        let oldest = self.attempts[..older].iter().position(is_over);
        oldest.map(|oldest| self.attempts.remove(oldest)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state_machine::{self, Checkpoint, TaskEvent};
    use crate::model::{Epoch, Holder, Incarnation, NodeId, RunTask, Submission, TaskId, TaskSpec};
    use blockhaul_engine::error::{Code, Error};

    /// The longest input and all arguments of a hook, which is interrupted again and again.
    #[test]
    fn a_record_with_a_long_input_can_always_be_written() {
        let run = RunTask {
            arguments: vec![format!("A={}", "x".repeat(1_000))],
            input: "y".repeat(4_096),
            ..RunTask::example(&"h".repeat(64))
        };
        let id = TaskId::new("t".repeat(64)).unwrap();
        let spec = TaskSpec::Run(run);
        spec.kind().validate().unwrap();
        let submission = Submission::new(id, 9, 100, spec);
        let mut record = TaskRecord::new(submission, 1_800_000_000_000);
        let holder = Holder { node: NodeId::new("n".repeat(64)).unwrap(), incarnation: Incarnation("i".repeat(32)) };
        for attempt in 0..40 {
            let now_ms = 1_800_000_000_000 + attempt;
            let claims = vec![format!("task:{}", record.id)];
            let failed = TaskEvent::Failed {
                error: crate::model::Failure::from(&Error { retryable: true, ..Error::bad_request("z".repeat(400)) }),
                retry_at_ms: now_ms,
                checkpoint: Checkpoint::default(),
                report: Some("r".repeat(1_000).into()),
            };
            let interrupted = TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() };
            let events = [
                TaskEvent::Assigned { to: holder.clone(), claims },
                TaskEvent::Started { epoch: Epoch(i64::MAX) },
                if attempt % 2 == 0 { failed } else { interrupted },
            ];
            for event in events {
                record = state_machine::next(&record, event, now_ms).unwrap();
                assert!(record.encode().len() <= NODE_BYTES_MAX, "{} bytes", record.encode().len());
            }
        }
        assert!(record.attempts.len() >= ATTEMPTS_KEPT_MIN);
        assert!(!record.transitions.is_empty(), "the last ones of such a record stay");
    }
}
