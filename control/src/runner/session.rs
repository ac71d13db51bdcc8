//! One session with the coordination service for all roles of a process: opened, replaced when it is over, published.
//!
//! Roles take the receiver and act on what they see; only the keeper opens and closes.

use crate::coord::{Center, CoordError, Ending, Session, SessionState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two tries to open one: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The session that is open now; `None` while there is none.
pub type Sessions = watch::Receiver<Option<Arc<dyn Session>>>;

/// See the module's head.
#[derive(Debug)]
pub struct SessionKeeper {
    center: Arc<dyn Center>,
    published: watch::Sender<Option<Arc<dyn Session>>>,
}

impl SessionKeeper {
    /// A keeper that has not opened one yet.
    #[must_use]
    pub fn new(center: Arc<dyn Center>) -> Self {
        Self { center, published: watch::Sender::new(None) }
    }

    /// What roles look at.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        self.published.subscribe()
    }

    /// Keeps a session open for as long as it is polled. Dropping it leaves the session as it is: see
    /// [`SessionKeeper::close`].
    pub async fn run(&self) {
        loop {
            let session = self.open().await;
            self.published.send_replace(Some(Arc::clone(&session)));
            let mut states = session.states();
            // An error means that nobody can tell any more: as good as over.
            let _ = states.wait_for(SessionState::is_over).await;
            tracing::warn!(session = ?session.id(), "the session is over");
            self.published.send_replace(None);
        }
    }

    /// Closes the session, if there is one: its ephemeral nodes go at once. Only when everything is given back.
    pub async fn close(&self) {
        if let Some(session) = self.published.send_replace(None) {
            session.close().await;
        }
    }

    async fn open(&self) -> Arc<dyn Session> {
        let mut wait = RETRY.0;
        loop {
            match self.center.open().await {
                Ok(session) => return session,
                Err(CoordError::Ended(Ending::AuthFailed)) => {
                    tracing::error!("the coordination service refuses the credentials: look at --zookeeper-auth");
                }
                Err(error) => tracing::debug!(%error, "no session yet"),
            }
            tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}
