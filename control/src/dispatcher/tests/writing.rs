//! Tests writes whose outcome is unknown at first.

use super::support::*;
use crate::coord::sim::Ensemble;
use crate::coord::{CoordError, Done, Op, Session, SessionId, SessionState, Watch, Znode};
use crate::dispatcher::rollback_detection::RecordVersion;
use crate::dispatcher::write::{RecordUpdate, Writer, Written};
use crate::model::state_machine::{TaskEvent, next};
use crate::model::{TaskRecord, TaskState};
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// What becomes of a write.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Its answer is lost, and it is still on its way.
    Late,
    /// It is not sent, for want of a connection; meanwhile the late one is carried out.
    NotSent,
}

/// Session over which writes meet their fates.
#[derive(Debug)]
struct LateSession {
    inner: Arc<dyn Session>,
    fates: Mutex<VecDeque<Fate>>,
    late: Mutex<Option<Vec<Op>>>,
}

#[async_trait]
impl Session for LateSession {
    fn id(&self) -> SessionId {
        self.inner.id()
    }

    fn timeout(&self) -> Duration {
        self.inner.timeout()
    }

    fn states(&self) -> watch::Receiver<SessionState> {
        self.inner.states()
    }

    async fn get(&self, path: &str) -> Result<Option<Znode>, CoordError> {
        self.inner.get(path).await
    }

    async fn get_and_watch(&self, path: &str) -> Result<(Option<Znode>, Watch), CoordError> {
        self.inner.get_and_watch(path).await
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, CoordError> {
        self.inner.children(path).await
    }

    async fn children_and_watch(&self, path: &str) -> Result<(Vec<String>, Watch), CoordError> {
        self.inner.children_and_watch(path).await
    }

    async fn multi(&self, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
        let fate = self.fates.lock().unwrap().pop_front();
        match fate {
            None => self.inner.multi(ops).await,
            Some(Fate::Late) => {
                *self.late.lock().unwrap() = Some(ops);
                Err(CoordError::Unknown(String::from("no answer")))
            }
            Some(Fate::NotSent) => {
                let late = self.late.lock().unwrap().take().expect("one is late");
                self.inner.multi(late).await.expect("nothing else was written");
                Err(CoordError::NotConnected)
            }
        }
    }

    async fn sync(&self) -> Result<(), CoordError> {
        self.inner.sync().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_write_counts_although_the_next_try_finds_no_connection() {
    let ensemble = Ensemble::new(1, T);
    create_folders(&*ensemble.client("founder").open().await.unwrap()).await;
    let inner = ensemble.client("d1").open().await.unwrap();
    let session = Arc::new(LateSession { inner, fates: Mutex::default(), late: Mutex::default() });
    let (leader_term, _stand) = elected_on(session.clone(), "d1").await;
    let writer = Writer { session: session.clone(), leader_term };
    let fail = || session.fates.lock().unwrap().extend([Fate::Late, Fate::NotSent]);

    fail();
    let record = TaskRecord::new(submission("t", noop(1)), 1);
    let created = writer.clone().create(record.clone()).await;
    let Written::Done { record, version, created, .. } = created else { panic!("it is stored: {created:?}") };
    fail();
    let after = next(&record, TaskEvent::CancelRequested, 2).unwrap();
    let known = RecordVersion { version, created, op: record.op.clone() };
    let written = writer.update(RecordUpdate { before: Arc::new(*record), known, after }).await;
    let Written::Done { record, version, .. } = written else { panic!("it is stored: {written:?}") };
    assert_eq!((record.state, version), (TaskState::Cancelled, 1));
}
