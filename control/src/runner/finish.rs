//! The end of an attempt: what its copy came to, stored.
//!
//! What always holds: nothing is given back before it is quiet. A copy that did not come to rest keeps its task: of a
//! server its late requests are over after a while; of a local volume the worker tells, when the device has answered, or
//! the end of this process and the destination's lock do.

use super::attempt::Attempt;
use super::context::Hub;
use super::executor::{End, Outcome, Running};
use super::grant::Written;
use crate::model::state_machine::{self, Event, Illegal, Mark};
use crate::model::{Failure, Fence, State, TaskRecord};
use blockhaul_engine::error::Code;
use blockhaul_engine::job::Reason;
use std::time::Duration;

/// After the first failure; doubled with each.
const RETRY_FIRST_MS: u64 = 1000;
/// Until a node without space for journals is tried again: nobody is told when there is some.
const FULL_REST_MS: u64 = 10_000;
/// At most, between two tries of a task.
const RETRY_MAX_MS: u64 = 60_000;
const _: () = assert!(RETRY_MAX_MS * 125 / 100 <= state_machine::RETRY_REST_MAX.as_millis() as u64);
/// Between two looks at whether earlier attempts are quiet.
const QUIET_LOOK: Duration = Duration::from_secs(1);

impl Attempt {
    /// Stores the outcome, unless the task is somebody else's.
    pub(super) async fn conclude(&self, hub: &Hub, running: &dyn Running, mut outcome: Outcome) {
        if !outcome.quiesced && !self.is_abandoned() {
            self.come_to_rest(hub, running).await;
            if let (Some(reason), End::Failed(_)) = (self.told_to_stop(), &outcome.end) {
                // It failed to come to rest in time, and for no other reason.
                outcome.end = End::Stopped(reason);
            }
        }
        self.end(hub, outcome).await;
    }

    /// Waits until nothing of a copy can land any more that its engine has not seen the end of.
    async fn come_to_rest(&self, hub: &Hub, running: &dyn Running) {
        tracing::error!("a copy did not come to rest: its task is kept until its devices answer");
        if self.needs_lease() {
            tokio::time::sleep(hub.config.quiet_after).await;
        } else {
            running.quiet().await;
        }
        tracing::info!("a copy has come to rest");
    }

    /// Stores the outcome of a copy that is quiet.
    pub(super) async fn end(&self, hub: &Hub, outcome: Outcome) {
        if self.is_abandoned() {
            return;
        }
        let written = match &outcome.end {
            End::Succeeded => self.succeed(hub, &outcome).await,
            End::Failed(failure) => self.fail(hub, &outcome, failure).await,
            End::Stopped(reason) => self.give_back(hub, &outcome, outcome_of(*reason)).await,
        };
        match written {
            Written::Done(record) => self.clean_up(hub, &record),
            Written::NotOurs => {}
            Written::Illegal(illegal, record) => {
                let state = record.state;
                tracing::error!(%illegal, ?state, "the end of a copy does not fit its record");
            }
        }
    }

    async fn succeed(&self, hub: &Hub, outcome: &Outcome) -> Written {
        loop {
            let written = self.grant.write(hub, |record| succeeded(self, record, outcome, hub.unix_ms())).await;
            match written {
                Written::Done(record) if record.state == State::Verifying => {}
                Written::Illegal(Illegal::NotQuiet, record) if record.state == State::Cancelling => {
                    return self.give_back(hub, outcome, Code::Cancelled).await;
                }
                Written::Illegal(Illegal::NotQuiet, _) => {}
                Written::Illegal(..) => return self.give_back(hub, outcome, Code::Cancelled).await,
                over => return over,
            }
            // Quiet is for the dispatcher to say.
            self.looked_at(QUIET_LOOK).await;
            if let Some(reason) = self.told_to_stop() {
                return self.give_back(hub, outcome, outcome_of(reason)).await;
            }
            if self.grant.read(hub).await.is_none() {
                return Written::NotOurs;
            }
        }
    }

    async fn fail(&self, hub: &Hub, outcome: &Outcome, failure: &Failure) -> Written {
        let fail = |record: &TaskRecord| {
            let now_ms = hub.unix_ms();
            let rest_ms = if failure.is_node_full() { FULL_REST_MS } else { retry_after_ms(record.failures) };
            let event = Event::Failed {
                error: failure.clone(),
                retry_at_ms: now_ms.saturating_add(rest_ms),
                mark: mark(record, outcome),
                report: outcome.report.clone(),
            };
            state_machine::next(record, event, now_ms)
        };
        self.grant.write(hub, fail).await
    }

    async fn give_back(&self, hub: &Hub, outcome: &Outcome, code: Code) -> Written {
        let give = |record: &TaskRecord| {
            state_machine::next(record, Event::GivenBack { code, mark: mark(record, outcome) }, hub.unix_ms())
        };
        self.grant.write(hub, give).await
    }

    /// A journal is of use only to a later attempt on this node.
    fn clean_up(&self, hub: &Hub, record: &TaskRecord) {
        if record.state.is_terminal() || record.spec.fence() != Fence::Local {
            hub.seams.worker.forget(&record.id, record.created_ms);
        }
    }
}

/// The record of a task that is done: `SUCCEEDED`, or `VERIFYING` while an earlier attempt may still write.
fn succeeded(attempt: &Attempt, record: &TaskRecord, outcome: &Outcome, now_ms: u64) -> Result<TaskRecord, Illegal> {
    let began = match record.state {
        // There was nothing left to write, so it did not ask.
        State::Assigned => state_machine::apply(record, Event::Began { epoch: attempt.epoch() }, now_ms)?,
        _ => record.clone(),
    };
    let mark = mark(&began, outcome);
    let event = Event::Succeeded { mark: mark.clone(), report: outcome.report.clone() };
    match state_machine::next(&began, event, now_ms) {
        Err(Illegal::NotQuiet) if began.state == State::Running => {
            state_machine::next(&began, Event::Written(mark), now_ms)
        }
        done => done,
    }
}

/// How far the copy was; a copy that knows nothing does not forget what the record knows.
fn mark(record: &TaskRecord, outcome: &Outcome) -> Mark {
    let map = if outcome.durable.is_empty() { record.map.clone() } else { outcome.durable.clone() };
    let progress = if outcome.progress.planned == 0 { record.progress } else { outcome.progress };
    Mark { progress, map }
}

/// What an attempt that was stopped is called. A lost lease that left the record to this runner has harmed nobody: it
/// is given back like any other interrupted copy.
fn outcome_of(reason: Reason) -> Code {
    match reason {
        Reason::UserCancel => Code::Cancelled,
        Reason::RunnerInterrupt | Reason::LeaseLost => Code::RunnerInterrupt,
        Reason::DeadlineExceeded => Code::Timeout,
    }
}

/// How long a task rests after a failure, `failures` before it: 1 s doubling to 60 s, give or take a quarter.
fn retry_after_ms(failures: u32) -> u64 {
    let wait = RETRY_FIRST_MS.checked_shl(failures.min(16)).unwrap_or(RETRY_MAX_MS).min(RETRY_MAX_MS);
    wait * fastrand::u64(75..=125) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_rests_longer_after_each_failure_up_to_a_minute() {
        fastrand::seed(1);
        for (failures, expected) in [(0, 1000), (1, 2000), (5, 32_000), (6, 60_000), (4_000_000_000, 60_000)] {
            for _ in 0..100 {
                let wait = retry_after_ms(failures);
                assert!((expected * 3 / 4..=expected * 5 / 4).contains(&wait), "{wait} ms after {failures} failures");
            }
        }
    }
}
