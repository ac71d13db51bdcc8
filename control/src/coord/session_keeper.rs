//! Keeps one session with the coordination service open for all roles of a process: opens a session, publishes it, and
//! replaces it when it is over.
//!
//! Roles watch the published session. Only the keeper opens and closes sessions.

use crate::coord::{CoordClient, CoordError, Refusal, Session, SessionEnd, SessionState};
use blockhaul_engine::backoff::ExponentialBackoff;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Waits between attempts to open a session.
const RETRY: ExponentialBackoff = ExponentialBackoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };

/// Time after which a missing session is logged. With the time for the diagnosis, at most 5 s.
const OPEN_LOG_AFTER: Duration = Duration::from_secs(2);

/// Time after which the same failure is logged again.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Receiver of the open session; `None` while there is none.
pub type Sessions = watch::Receiver<Option<Arc<dyn Session>>>;

/// Keeps a session open; see the module's head.
#[derive(Debug)]
pub struct SessionKeeper {
    center: Arc<dyn CoordClient>,
    published: watch::Sender<Option<Arc<dyn Session>>>,
}

impl SessionKeeper {
    /// Creates a keeper that has not opened a session yet.
    #[must_use]
    pub fn new(center: Arc<dyn CoordClient>) -> Self {
        Self { center, published: watch::Sender::new(None) }
    }

    /// Returns the receiver that roles read.
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
            // An error means that the sender is gone, and the session with it.
            let _ = states.wait_for(SessionState::is_over).await;
            tracing::warn!(session = ?session.id(), "session ended");
            self.published.send_replace(None);
        }
    }

    /// Closes the session, if there is one: its ephemeral nodes are deleted at once. Only when every task has been
    /// returned.
    pub async fn close(&self) {
        if let Some(session) = self.published.send_replace(None) {
            session.close().await;
        }
    }

    async fn open(&self) -> Arc<dyn Session> {
        let (mut failures, mut logged) = (0, None);
        loop {
            match self.open_and_log(&mut logged).await {
                Ok(session) => return session,
                Err(error) => self.log_failure(&mut logged, &error).await,
            }
            failures += 1;
            tokio::time::sleep(RETRY.jittered(failures, fastrand::f64())).await;
        }
    }

    /// Opens a session, and logs when that takes long: the client library retries an unreachable service without
    /// logging.
    async fn open_and_log(&self, logged: &mut Option<LoggedError>) -> Result<Arc<dyn Session>, CoordError> {
        let mut opening = self.center.open();
        let mut wait = OPEN_LOG_AFTER;
        loop {
            match timeout(wait, &mut opening).await {
                Ok(opened) => return opened,
                Err(_) => self.log_failure(logged, &CoordError::NotConnected).await,
            }
            wait = LOG_EVERY;
        }
    }

    /// Logs why there is no session, unless the same error was logged less than 30 s ago.
    async fn log_failure(&self, logged: &mut Option<LoggedError>, error: &CoordError) {
        if !should_log(logged, error, Instant::now()) {
            return;
        }
        let tried = self.center.diagnose().await;
        match error {
            CoordError::Ended(SessionEnd::AuthFailed) => {
                tracing::error!("credentials refused by the coordination service: check --zookeeper-auth");
            }
            CoordError::Refused { why: Refusal::NoAuth, .. } => tracing::error!(
                tried,
                "access to the center's records denied: check --zookeeper-auth and the access \
list of the chroot; this node has no roles"
            ),
            CoordError::Unusable(why) => tracing::error!(why, "center unusable: this node has no roles"),
            error => tracing::warn!(
                %error,
                tried,
                "no session with the coordination service: this node has no roles"
            ),
        }
    }
}

/// Last logged error and its time.
type LoggedError = (CoordError, Instant);

/// Tells whether an error is to be logged: it differs from the last logged one, or that was logged 30 s ago. Then notes
/// it as logged.
fn should_log(logged: &mut Option<LoggedError>, error: &CoordError, now: Instant) -> bool {
    let is_logged = logged.as_ref().is_some_and(|(last, at)| last == error && now < *at + LOG_EVERY);
    if !is_logged {
        *logged = Some((error.clone(), now));
    }
    !is_logged
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_same_error_is_logged_once_in_half_a_minute() {
        let (mut logged, start) = (None, Instant::now());
        let other = CoordError::Unusable(String::from("why"));
        for (error, seconds, is_logged) in [
            (&CoordError::NotConnected, 0, true),
            (&CoordError::NotConnected, 29, false),
            (&CoordError::NotConnected, 30, true),
            (&other, 31, true),
            (&other, 32, false),
        ] {
            assert_eq!(should_log(&mut logged, error, start + Duration::from_secs(seconds)), is_logged, "{seconds} s");
        }
    }

    /// Service that answers no request, and counts how often it is diagnosed.
    #[derive(Debug, Default)]
    struct Silent(AtomicUsize);

    #[async_trait::async_trait]
    impl CoordClient for Silent {
        async fn open(&self) -> Result<Arc<dyn Session>, CoordError> {
            std::future::pending().await
        }

        async fn diagnose(&self) -> String {
            self.0.fetch_add(1, Ordering::Relaxed);
            String::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_service_is_logged_within_five_seconds_and_every_half_minute() {
        for (seconds, logged) in [(5, 1), (35, 2), (95, 4)] {
            let center = Arc::new(Silent::default());
            let keeper = SessionKeeper::new(Arc::clone(&center) as Arc<dyn CoordClient>);
            assert!(timeout(Duration::from_secs(seconds), keeper.run()).await.is_err());
            assert_eq!(center.0.load(Ordering::Relaxed), logged, "after {seconds} s");
        }
    }
}
