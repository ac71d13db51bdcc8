//! Runs the program that cuts off a lost runner, for tasks whose fence is `command`.

use crate::model::Holder;
use async_trait::async_trait;
use blockhaul_engine::shown::Shown;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Longest run time of the program; then it is killed and has failed.
pub(crate) const FENCE_TIME_MAX: Duration = Duration::from_secs(60);

/// Cuts runners off: after success no write of that runner can land any more.
#[async_trait]
pub(crate) trait FenceProgram: Send + Sync + std::fmt::Debug {
    /// Cuts off one process of a node. May be called again for the same process.
    ///
    /// # Errors
    /// A message for operators; the call is repeated later.
    async fn fence_runner(&self, runner: &Holder) -> Result<(), String>;
}

/// Program of this host, named on the command line of `taskd`: gets the node's name as its argument and
/// `BLOCKHAUL_INCARNATION` in its environment, and has cut the runner off when it exits with 0.
#[derive(Clone, Debug)]
pub(crate) struct FenceCommand(pub PathBuf);

#[async_trait]
impl FenceProgram for FenceCommand {
    async fn fence_runner(&self, runner: &Holder) -> Result<(), String> {
        let name = self.0.shown();
        let mut command = Command::new(&self.0);
        command.arg(runner.node.as_str()).env("BLOCKHAUL_INCARNATION", &runner.incarnation.0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(|error| format!("start {name}: {error}"))?;
        match tokio::time::timeout(FENCE_TIME_MAX, child.wait_with_output()).await {
            Err(_) => Err(format!("{name} did not end within {} s", FENCE_TIME_MAX.as_secs())),
            Ok(Err(error)) => Err(format!("wait for {name}: {error}")),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let stderr: String = String::from_utf8_lossy(&output.stderr).chars().take(200).collect();
                Err(format!("{name}: {}: {}", output.status, stderr.trim()))
            }
        }
    }
}
