//! One session with the coordination service for all roles of a process: opened, replaced when it is over, published.
//!
//! Roles take the receiver and act on what they see; only the keeper opens and closes.

use crate::coord::{Center, CoordError, Ending, Session, SessionState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Between two tries to open one: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Between two words about the same trouble.
const SAY_AGAIN: Duration = Duration::from_secs(30);

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
        let (mut wait, mut said) = (RETRY.0, None);
        loop {
            match self.center.open().await {
                Ok(session) => return session,
                Err(error) if is_news(&mut said, &error, Instant::now()) => report(&error),
                Err(_) => {}
            }
            tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}

/// Whether an error is another one than the last that was said, or that was long ago.
fn is_news(said: &mut Option<(CoordError, Instant)>, error: &CoordError, now: Instant) -> bool {
    let is_said = said.as_ref().is_some_and(|(last, at)| last == error && now < *at + SAY_AGAIN);
    if !is_said {
        *said = Some((error.clone(), now));
    }
    !is_said
}

fn report(error: &CoordError) {
    match error {
        CoordError::Ended(Ending::AuthFailed) => {
            tracing::error!("the coordination service refuses the credentials: look at --zookeeper-auth");
        }
        CoordError::Unusable(why) => tracing::error!(why, "the center cannot be used: this node has no role"),
        error => tracing::warn!(%error, "no session with the coordination service: this node has no role"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_said_once_in_half_a_minute() {
        let (mut said, start) = (None, Instant::now());
        let other = CoordError::Unusable(String::from("why"));
        for (error, seconds, is_said) in [
            (&CoordError::NotConnected, 0, true),
            (&CoordError::NotConnected, 29, false),
            (&CoordError::NotConnected, 30, true),
            (&other, 31, true),
            (&other, 32, false),
        ] {
            assert_eq!(is_news(&mut said, error, start + Duration::from_secs(seconds)), is_said, "{seconds} s");
        }
    }
}
