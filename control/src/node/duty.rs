//! When a node has its roles: while nobody has asked it to stop and its data channel can be used.
//!
//! ```text
//!            .--- the channel is back ---------------------------------------------.
//!            v                                                                     |
//!         on duty --- the channel is lost ---> steps down ---> leaves the runners, off duty
//!            |                                                                     |
//!            `------------ asked to stop, or a role has failed -- steps down ------'---> over
//! ```
//! Stepping down has one order wherever it comes from: stop deciding, take the service address off, give leadership up. What
//! follows needs no hurry: others lead already.
//!
//! What always holds: one loop does all of it, one thing after the other, so that no role is given up twice at once or
//! taken up while it is being given up; a stop is heard at any point; the loop ends stepped down.

use super::shutdown::{Stop, StopHandle};
use crate::cluster::storage_probe::{ProbeStatus, Verdict};
use blockhaul_engine::error::Error;
use std::future::Future;
use tokio::sync::{mpsc, watch};

/// The roles of a node, as far as it is about having them.
pub(super) trait Post: Sync {
    /// Stands for election, runs tasks.
    fn take_up(&self);

    /// Stops deciding, takes the service address off, gives leadership up; bounded. Nothing if that was done.
    fn step_down(&self) -> impl Future<Output = ()> + Send;

    /// Gives back what it runs, and leaves the runners. Dropped, it goes on by itself.
    fn leave(&self) -> impl Future<Output = ()> + Send;
}

/// Has the roles when it should, until a stop is asked for or a role has failed; then the node has stepped down, and the
/// runner can be stopped.
///
/// # Errors
/// Why a role has failed.
pub(super) async fn serve(
    post: &impl Post,
    stopper: &StopHandle,
    channel: Option<watch::Receiver<ProbeStatus>>,
    failures: &mut mpsc::Receiver<Error>,
) -> Result<(), Error> {
    let watching = async {
        let Some(mut channel) = channel else { return std::future::pending().await };
        loop {
            become_of(&mut channel, Verdict::Lost).await;
            post.step_down().await;
            post.leave().await;
            become_of(&mut channel, Verdict::Usable).await;
            post.take_up();
        }
    };
    let result = tokio::select! { biased;
        () = stopper.wait_for(Stop::Drained) => Ok(()),
        Some(error) = failures.recv() => Err(error),
        () = watching => Ok(()),
    };
    tracing::info!("stopping: returning all tasks");
    post.step_down().await;
    result
}

async fn become_of(channel: &mut watch::Receiver<ProbeStatus>, verdict: Verdict) {
    if channel.wait_for(|seen| seen.verdict == verdict).await.is_err() {
        // Nobody judges it any more: it stays as it is.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::{Code, Operation, Side};
    use shuttle::sync::Mutex;
    use shuttle::{check_random, future, thread};
    use std::sync::Arc;

    /// Schedules of threads and tasks that are tried.
    const SCHEDULES: usize = 2000;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Roles {
        stands: bool,
        leads: bool,
        runs: bool,
        /// Steps that have begun and not ended.
        under_way: usize,
        steps_down: usize,
    }

    /// Roles that take their time, and that an election gives and takes in between.
    #[derive(Clone, Default)]
    struct Played(Arc<Mutex<Roles>>);

    impl Played {
        fn begin(&self, change: impl FnOnce(&mut Roles)) {
            let mut roles = self.0.lock().unwrap();
            assert_eq!(roles.under_way, 0, "one thing after the other: {roles:?}");
            roles.under_way += 1;
            change(&mut roles);
        }

        fn end(&self, change: impl FnOnce(&mut Roles)) {
            let mut roles = self.0.lock().unwrap();
            roles.under_way -= 1;
            change(&mut roles);
        }

        /// A step that is dropped half-way has ended, too.
        fn step(&self) -> Step {
            Step(self.clone())
        }
    }

    struct Step(Played);

    impl Drop for Step {
        fn drop(&mut self) {
            self.0.end(|_| ());
        }
    }

    impl Post for Played {
        fn take_up(&self) {
            self.begin(|roles| (roles.stands, roles.runs) = (true, true));
            self.end(|_| ());
        }

        async fn step_down(&self) {
            self.begin(|roles| roles.stands = false);
            let _step = self.step();
            future::yield_now().await;
            let mut roles = self.0.lock().unwrap();
            roles.leads = false;
            roles.steps_down += 1;
        }

        async fn leave(&self) {
            self.begin(|roles| assert!(!roles.leads && !roles.stands, "leadership goes first: {roles:?}"));
            let _step = self.step();
            future::yield_now().await;
            self.0.lock().unwrap().runs = false;
        }
    }

    fn seen(verdict: Verdict) -> ProbeStatus {
        ProbeStatus { verdict, peers: Vec::new() }
    }

    /// A stop from two threads at once against the start, a channel that comes and goes, and an election.
    #[test]
    fn a_stop_at_any_moment_ends_stepped_down() {
        let schedule = || {
            let (post, stopper) = (Played::default(), StopHandle::new());
            let (channel, judged) = watch::channel(seen(Verdict::Usable));
            let (_failed, mut failures) = mpsc::channel(1);
            let channel = Arc::new(channel);
            let flapping = {
                let channel = Arc::clone(&channel);
                thread::spawn(move || {
                    for verdict in [Verdict::Lost, Verdict::Usable, Verdict::Lost, Verdict::Usable] {
                        channel.send_replace(seen(verdict));
                        thread::yield_now();
                    }
                })
            };
            let electing = {
                let post = post.clone();
                thread::spawn(move || {
                    for _ in 0..3 {
                        let mut roles = post.0.lock().unwrap();
                        roles.leads |= roles.stands;
                        drop(roles);
                        thread::yield_now();
                    }
                })
            };
            let stopping: Vec<_> = [Stop::Drained, Stop::Drained, Stop::Fast]
                .map(|how| {
                    let stopper = stopper.clone();
                    thread::spawn(move || stopper.stop(how))
                })
                .into();
            let (played, asked) = (post.clone(), stopper.clone());
            let ended = future::block_on(async move {
                played.take_up();
                serve(&played, &asked, Some(judged), &mut failures).await
            });
            assert_eq!(ended, Ok(()));
            let roles = *post.0.lock().unwrap();
            assert!(!roles.stands && roles.under_way == 0 && roles.steps_down >= 1, "{roles:?}");
            stopping.into_iter().chain([flapping, electing]).for_each(|thread| thread.join().unwrap());
            let roles = *post.0.lock().unwrap();
            assert!(!roles.leads || roles.stands, "nobody is elected who does not stand: {roles:?}");
            assert_eq!(stopper.asked(), Stop::Fast);
        };
        check_random(schedule, SCHEDULES);
    }

    /// A role that fails while others ask for a stop: the server ends once, with the reason or without, stepped down.
    #[test]
    fn a_failed_role_ends_it_with_its_reason() {
        let schedule = || {
            let (post, stopper) = (Played::default(), StopHandle::new());
            let (failed, mut failures) = mpsc::channel(1);
            let failing = thread::spawn(move || {
                let error = Error::new(Code::NotFound, Side::Caller, Operation::Start, "no such interface");
                failed.try_send(error).unwrap();
                failed
            });
            let (played, asked) = (post.clone(), stopper.clone());
            let ended = future::block_on(async move {
                played.take_up();
                serve(&played, &asked, None, &mut failures).await
            });
            assert_eq!(ended.unwrap_err().code, Code::NotFound);
            assert_eq!(post.0.lock().unwrap().steps_down, 1);
            drop(failing.join().unwrap());
        };
        check_random(schedule, SCHEDULES);
    }

    /// Asked before it begins, it takes nothing up for longer than it takes to step down.
    #[test]
    fn a_stop_that_came_first_wins() {
        let schedule = || {
            let (post, stopper) = (Played::default(), StopHandle::new());
            stopper.stop(Stop::Drained);
            let (channel, judged) = watch::channel(seen(Verdict::Lost));
            let (_failed, mut failures) = mpsc::channel(1);
            let played = post.clone();
            future::block_on(async move {
                played.take_up();
                serve(&played, &stopper, Some(judged), &mut failures).await.unwrap();
            });
            let roles = *post.0.lock().unwrap();
            assert_eq!((roles.stands, roles.steps_down), (false, 1));
            drop(channel);
        };
        check_random(schedule, 100);
    }
}
