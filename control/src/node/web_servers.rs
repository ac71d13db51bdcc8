//! Serves what browsers and collectors read over HTTP: the metrics and the console, where the settings ask for them.

use crate::config::Config;
use crate::console::Console;
use crate::metrics::Metrics;
use crate::rpc::listener::Listener;
use crate::rpc::local_roles::NodeRoles;
use crate::runner::RunnerHandle;
use blockhaul_engine::error::Result;

/// Both servers.
#[derive(Debug)]
pub(super) struct WebServers {
    metrics: Option<Metrics>,
    console: Option<Console>,
}

impl WebServers {
    /// Serves what the settings ask for.
    ///
    /// # Errors
    /// An error of the system.
    pub(super) async fn open(
        config: &Config,
        roles: &NodeRoles,
        runner: &RunnerHandle,
        listener: &Listener,
    ) -> Result<Self> {
        let metrics = match config.metrics {
            Some(at) => Some(Metrics::open(at, roles.clone(), runner.clone(), config.tls.clone()).await?),
            None => None,
        };
        let console = match config.console {
            Some(console) => Some(Console::open(console, listener.center(), config.tls.clone()).await?),
            None => None,
        };
        Ok(Self { metrics, console })
    }

    /// Ends open pages and lets requests finish, bounded.
    pub(super) async fn close(self) {
        let Self { metrics, console } = self;
        let metrics = async {
            if let Some(metrics) = metrics {
                metrics.close().await;
            }
        };
        let console = async {
            if let Some(console) = console {
                console.close().await;
            }
        };
        tokio::join!(metrics, console);
    }
}
