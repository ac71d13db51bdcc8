//! Checks work on this node without doing it: opens what an attempt would open, as the policy allows it, and lets the engine
//! refuse what it would refuse. Nothing is created or changed.

use super::{EngineExecutor, JobEnvironment, no_hooks};
use crate::execution::{CompareJob, CopyJob, Reference, Work};
use crate::model::TaskVolume;
use crate::policy::Destination;
use blockhaul_engine::engine::Engine;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::spec::{CheckpointLocation, CopySpec, Direct, ResumePolicy};
use blockhaul_engine::supervision::{OpenedDestination, Supervision};
use blockhaul_engine::volume::{Locator, ReadOptions, look_at_export};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Checks at once. Each may wait for a device that never answers, and must not take the threads of others.
pub(super) const CHECKS_MAX: usize = 4;
/// Longest wait for the lock of a destination: whoever asks waits for the answer.
const LOCK_WAIT: Duration = Duration::from_secs(1);

impl EngineExecutor {
    /// As [`Executor::check`](crate::execution::Executor::check).
    pub(super) async fn check_work(&self, work: Work) -> Result<Value> {
        let overloaded = |why: String| Error {
            retryable: true,
            ..Error::new(Code::Overloaded, Side::Engine, Operation::Start, why)
        };
        let place = Arc::clone(&self.checks).try_acquire_owned();
        let place = place.map_err(|_| overloaded(format!("{CHECKS_MAX} checks run on this node already")))?;
        let executor = self.clone();
        let checking = tokio::task::spawn_blocking(move || {
            let _place = place;
            match work {
                Work::Copy(job) => executor.environment.check_copy(&job, &executor.engine),
                Work::Compare(job) => executor.environment.check_comparison(&job),
                Work::Hook(job) => match &executor.hooks {
                    Some(hooks) => hooks.check(&job).map(|()| json!({ "hook": job.hook.as_str() })),
                    None => Err(no_hooks(&job.hook)),
                },
                Work::Nothing => Ok(json!({})),
            }
        });
        checking.await.unwrap_or_else(|error| Err(overloaded(error.to_string())))
    }
}

impl JobEnvironment {
    fn check_copy(&self, job: &CopyJob, engine: &Engine) -> Result<Value> {
        let source = self.locator(&job.source, Side::Source)?;
        let destination = self.locator(&job.destination, Side::Destination)?;
        let mut supervision =
            Supervision { source: self.open_to_read(&source, Side::Source)?, ..Supervision::default() };
        if let Locator::Path(path) = &destination {
            // Of one that is missing, the engine looks at the folder.
            if let Destination::Present(file) = self.policy.look_at_destination(path)? {
                let file = file.into();
                supervision.destination = Some(OpenedDestination { file, created: false, parent: None });
            }
        }
        let checkpoint = CheckpointLocation::File(self.journals.join("check.journal"));
        let spec = CopySpec { checkpoint, lock_wait: LOCK_WAIT, resume_policy: ResumePolicy::Resume, ..job.spec() };
        let plan = engine.check_supervised(&spec, supervision)?;
        serde_json::to_value(plan).map_err(|error| Error::internal(Operation::Start, format!("show the plan: {error}")))
    }

    fn check_comparison(&self, job: &CompareJob) -> Result<Value> {
        match &job.reference {
            Reference::Volume(volume) => self.check_readable(volume, Side::Source)?,
            Reference::Receipt { node, path } => {
                self.check_node(node)?;
                self.policy.open_to_read(path, Side::Source)?;
            }
        }
        self.check_readable(&job.volume, Side::Destination)?;
        Ok(json!({}))
    }

    fn check_readable(&self, volume: &TaskVolume, side: Side) -> Result<()> {
        match self.locator(volume, side)? {
            Locator::Path(path) => self.policy.open_to_read(&path, side).map(drop),
            Locator::Nbd(uri) => look_at_export(&uri, &ReadOptions::new(Direct::No)).map(drop),
        }
    }
}
