//! Tries schedules of threads: the scheduler and the event queue are compiled here once more, with the locks of a model
//! checker. Its waits have no timeouts, so that a wake-up that gets lost is found.

use super::graph;

mod sync {
    pub(super) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(super) use shuttle::thread_local;
}

#[path = "scheduler/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::duplicate_mod,
    reason = "compiled with other locks; the schedules need a part of it"
)]
mod scheduler;

#[path = "event_queue.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::duplicate_mod,
    reason = "compiled with other locks; the schedules need a part of it"
)]
mod event_queue;

use crate::error::{Code, Error, Operation, Side};
use event_queue::{Delivery, EventQueue};
use graph::Condition;
use scheduler::{Flow, Phase, Scheduler, Task};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::{check_random, thread};
use std::time::Duration;

/// Schedules that are tried of each test.
const SCHEDULES: usize = 3000;

fn failure() -> Error {
    Error::new(Code::Io, Side::Source, Operation::Read, "a test wants it so")
}

/// Runs what is ready until a task has ended.
fn drive(scheduler: &Scheduler, until: &Task) {
    while until.result().is_none() {
        scheduler.progress();
        thread::yield_now();
    }
}

#[test]
fn a_fan_and_a_join_over_two_schedulers_run_each_task_once() {
    check_random(
        || {
            let flow = Flow::default();
            let schedulers = [flow.scheduler(), flow.scheduler()];
            let runs = Arc::new(AtomicUsize::new(0));
            let task = |scheduler: &Scheduler| {
                let runs = Arc::clone(&runs);
                scheduler.task().run(move || {
                    runs.fetch_add(1, SeqCst);
                    Ok(())
                })
            };
            let first = task(&schedulers[0]).build();
            let parts: Vec<_> =
                (0..3).map(|part| task(&schedulers[part % 2]).after(&first, Condition::Success).build()).collect();
            let join =
                parts.iter().fold(task(&schedulers[1]), |join, part| join.after(part, Condition::Success)).build();
            let threads = schedulers.map(|scheduler| {
                let join = join.clone();
                thread::spawn(move || drive(&scheduler, &join))
            });
            parts.iter().chain([&join, &first]).for_each(|task| assert!(task.schedule()));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert_eq!((runs.load(SeqCst), join.result()), (5, Some(Ok(()))));
        },
        SCHEDULES,
    );
}

/// Completions from outside, a cancel, and two threads that drive: the completion callback runs once, and the dependent
/// task ends.
#[test]
fn a_task_ends_once_however_it_is_completed_and_cancelled() {
    check_random(
        || {
            let flow = Flow::default();
            let scheduler = flow.scheduler();
            let ends = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&ends);
            let task = scheduler.task().completed(move |_, _| {
                counted.fetch_add(1, SeqCst);
                Ok(())
            });
            let task = task.build();
            let next = scheduler.task().after(&task, Condition::End).run(|| Ok(())).build();
            next.schedule();
            let driving = {
                let (scheduler, next) = (scheduler.clone(), next.clone());
                thread::spawn(move || drive(&scheduler, &next))
            };
            let outside = [Ok(()), Err(failure())].map(|result| {
                let task = task.clone();
                thread::spawn(move || usize::from(task.complete(result)))
            });
            let cancelling = {
                let task = task.clone();
                thread::spawn(move || task.cancel())
            };
            task.schedule();
            let completed: usize = outside.into_iter().map(|thread| thread.join().unwrap()).sum();
            cancelling.join().unwrap();
            driving.join().unwrap();
            assert!(completed <= 1, "one result holds");
            assert_eq!((ends.load(SeqCst), task.phase()), (1, Phase::Ended));
            assert!(scheduler.is_idle());
        },
        SCHEDULES,
    );
}

/// A callback restarts its task while another thread cancels the scheduler: it lives at most as often as it was started.
#[test]
fn a_restart_that_races_a_cancel_leaves_nothing_running() {
    check_random(
        || {
            let flow = Flow::default();
            let scheduler = flow.scheduler();
            let (runs, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (run, ended) = (Arc::clone(&runs), Arc::clone(&ends));
            let restarts = |task: &Task, _: &scheduler::TaskResult| {
                if task.life() < 2 {
                    task.restart();
                }
                Ok(())
            };
            let ends_once = move |_: &Task, _: &scheduler::TaskResult| {
                ended.fetch_add(1, SeqCst);
                Ok(())
            };
            let task = scheduler.task().completed(ends_once).completed(restarts);
            let task = task.run(move || {
                run.fetch_add(1, SeqCst);
                Ok(())
            });
            let task = task.build();
            task.schedule();
            let cancelling = {
                let scheduler = scheduler.clone();
                thread::spawn(move || scheduler.cancel())
            };
            drive(&scheduler, &task);
            cancelling.join().unwrap();
            assert!(scheduler.is_idle() && runs.load(SeqCst) <= 3);
            assert_eq!(ends.load(SeqCst), 1, "the last life ends");
        },
        SCHEDULES,
    );
}

/// Handles are dropped while the task ends on another thread: it is forgotten, and its dependent task ends.
#[test]
fn the_last_handle_may_go_at_any_moment() {
    check_random(
        || {
            let flow = Flow::default();
            let scheduler = flow.scheduler();
            let task = scheduler.task().build();
            let next = scheduler.task().after(&task, Condition::End).run(|| Ok(())).build();
            next.schedule();
            task.schedule();
            let dropping = {
                let task = task.clone();
                thread::spawn(move || drop(task))
            };
            let completing = thread::spawn(move || task.complete(Ok(())));
            drive(&scheduler, &next);
            dropping.join().unwrap();
            completing.join().unwrap();
            drop(next);
            assert!(format!("{flow:?}").contains("tasks: 0"), "{flow:?}");
        },
        SCHEDULES,
    );
}

/// A dependency is added while the task and its predecessor end.
#[test]
fn a_dependency_that_comes_late_is_refused_or_holds() {
    check_random(
        || {
            let flow = Flow::default();
            let scheduler = flow.scheduler();
            let (task, on) = (scheduler.task().build(), scheduler.task().build());
            task.schedule();
            on.schedule();
            scheduler.progress();
            let depending = {
                let (task, on) = (task.clone(), on.clone());
                thread::spawn(move || task.depend(&on, Condition::Success).is_ok())
            };
            let completing = {
                let task = task.clone();
                thread::spawn(move || task.complete(Ok(())))
            };
            on.complete(Err(failure()));
            let was_added = depending.join().unwrap();
            completing.join().unwrap();
            assert_eq!(task.phase(), Phase::Ended);
            let has_failed = task.result().unwrap().is_err();
            assert!(was_added || !has_failed, "a condition that was refused has no effect");
        },
        SCHEDULES,
    );
}

/// Polls until the queue is closed.
fn poll_to_the_end(queue: &EventQueue) -> Vec<Delivery> {
    let mut delivered = Vec::new();
    loop {
        let events = queue.poll(1, Duration::from_secs(3600));
        if events.is_empty() {
            return delivered;
        }
        delivered.extend(events);
    }
}

/// Closes the queue once nothing is in flight.
fn close(queue: &EventQueue) {
    while queue.close().is_err() {
        thread::yield_now();
    }
}

/// Two pollers, a parent whose children complete on two threads, and an event beside it: each is delivered once, the
/// parent after its children, and a close wakes the poller that got nothing.
#[test]
fn each_event_is_delivered_to_one_poller_and_a_close_wakes_the_rest() {
    check_random(
        || {
            let queue = EventQueue::default();
            let (parent, alone) = (queue.event(), queue.event());
            let children = [parent.child(), parent.child()];
            children.iter().chain([&alone]).for_each(|event| event.launch().unwrap());
            parent.barrier().unwrap();
            let pollers = [queue.clone(), queue.clone()].map(|queue| thread::spawn(move || poll_to_the_end(&queue)));
            let completing =
                [(children[0].clone(), Ok(())), (children[1].clone(), Err(failure())), (alone.clone(), Ok(()))];
            let completing = completing.map(|(event, result)| thread::spawn(move || event.complete(result)));
            completing.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
            close(&queue);
            let delivered: Vec<Delivery> = pollers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
            assert_eq!(delivered.len(), 2);
            let of_parent = delivered.iter().find(|delivery| delivery.event == parent).expect("it is delivered");
            assert!(of_parent.result.is_err(), "the first error wins");
            assert!(delivered.iter().any(|delivery| delivery.event == alone && delivery.result.is_ok()));
        },
        SCHEDULES,
    );
}

/// Pollers run the tasks whose ends they deliver, while another thread aborts one of them.
#[test]
fn pollers_run_tasks_and_an_abort_loses_no_event() {
    check_random(
        || {
            let queue = EventQueue::default();
            let flow = Flow::default();
            let scheduler = flow.scheduler();
            queue.drive(&scheduler);
            let first = scheduler.task().run(|| Ok(())).build();
            let second = scheduler.task().after(&first, Condition::End).run(|| Ok(())).build();
            let events = [&first, &second].map(|task| {
                let event = queue.event();
                event.launch_task(task).unwrap();
                event
            });
            let pollers = [queue.clone(), queue.clone()].map(|queue| thread::spawn(move || poll_to_the_end(&queue)));
            let aborting = {
                let event = events[1].clone();
                thread::spawn(move || event.abort())
            };
            // It may have been cancelled by now.
            second.schedule();
            assert!(first.schedule());
            aborting.join().unwrap();
            close(&queue);
            let delivered: usize = pollers.into_iter().map(|thread| thread.join().unwrap().len()).sum();
            assert_eq!(delivered, 2);
            assert!(scheduler.is_idle());
        },
        SCHEDULES,
    );
}
