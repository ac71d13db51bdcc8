//! Tests the scheduler: who runs what, in which order, and what happens when callbacks interfere.

use super::graph::{Condition, DependError};
use super::scheduler::{Flow, Phase, Scheduler, Task, TaskResult};
use crate::error::{Code, Error, Operation, Side};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What callbacks and bodies have said, in order.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn say(&self, text: impl Into<String>) {
        self.0.lock().unwrap().push(text.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// A body that says this and succeeds.
    fn run(&self, text: &str) -> impl FnMut() -> TaskResult + Send + 'static {
        let (log, text) = (self.clone(), text.to_owned());
        move || {
            log.say(&text);
            Ok(())
        }
    }

    /// A completion callback that says this and the result.
    fn end(&self, text: &str) -> impl FnMut(&Task, &TaskResult) -> TaskResult + Send + 'static {
        let (log, text) = (self.clone(), text.to_owned());
        move |_, result| {
            let code = result.as_ref().err().map_or("ok", |error| error.code.as_str());
            log.say(format!("{text}: {code}"));
            Ok(())
        }
    }
}

/// A clock that a test moves.
#[derive(Clone, Debug, Default)]
struct TestClock(Arc<AtomicU64>);

impl TestClock {
    fn flow(&self) -> Flow {
        let clock = self.clone();
        Flow::with_clock(move || Duration::from_millis(clock.0.load(SeqCst)))
    }

    fn pass(&self, milliseconds: u64) {
        self.0.fetch_add(milliseconds, SeqCst);
    }
}

fn scheduler() -> Scheduler {
    Flow::default().scheduler()
}

fn failure(code: Code) -> Error {
    Error::new(code, Side::Source, Operation::Read, "a test wants it so")
}

fn code(task: &Task) -> Option<Code> {
    task.result().and_then(|result| result.err()).map(|error| error.code)
}

#[test]
fn preparations_run_in_order_then_the_body_then_completions_in_reverse_order() {
    let (scheduler, log) = (scheduler(), Log::default());
    let prepare = |text: &'static str| {
        let log = log.clone();
        move |_: &Task| {
            log.say(text);
            Ok(())
        }
    };
    let task = scheduler.task().prepare(prepare("first")).prepare(prepare("second")).run(log.run("body"));
    let task = task.completed(log.end("last")).completed(log.end("first of all")).build();
    assert_eq!((task.phase(), scheduler.progress()), (Phase::Created, 0));
    assert!(task.schedule() && !task.schedule());
    assert!(!scheduler.is_idle());
    assert_eq!(scheduler.progress(), 1);
    assert_eq!(log.take(), ["first", "second", "body", "first of all: ok", "last: ok"]);
    assert_eq!((task.phase(), task.result(), scheduler.is_idle()), (Phase::Ended, Some(Ok(())), true));
    assert!(!task.complete(Ok(())) && task.phase() == Phase::Ended, "a task ends once");
}

#[test]
fn a_task_without_a_body_is_completed_from_outside() {
    let (scheduler, log) = (scheduler(), Log::default());
    let outside = scheduler.task().completed(log.end("outside")).build();
    let next = scheduler.task().run(log.run("next")).after(&outside, Condition::Success).build();
    outside.schedule();
    next.schedule();
    assert_eq!((scheduler.progress(), outside.phase()), (1, Phase::Running));
    assert!(outside.complete(Ok(())) && !outside.complete(Ok(())));
    assert_eq!(log.take(), ["outside: ok"]);
    assert_eq!((scheduler.progress(), log.take()), (1, vec!["next".to_owned()]));
}

#[test]
fn a_task_that_is_completed_before_it_starts_does_not_start() {
    let (scheduler, log) = (scheduler(), Log::default());
    let task = scheduler.task().run(log.run("body")).completed(log.end("end")).build();
    task.schedule();
    assert!(task.complete(Ok(())));
    assert_eq!((scheduler.progress(), log.take()), (0, vec!["end: ok".to_owned()]));
}

#[test]
fn a_delay_runs_beside_the_dependencies() {
    let (clock, log) = (TestClock::default(), Log::default());
    let scheduler = clock.flow().scheduler();
    let first = scheduler.task().run(log.run("first")).delay(Duration::from_millis(50)).build();
    let second = scheduler.task().run(log.run("second")).after(&first, Condition::End).build();
    let later = scheduler.task().run(log.run("later")).build();
    first.schedule();
    second.schedule_after(Duration::from_millis(40));
    later.schedule_after(Duration::from_millis(90));
    assert_eq!((scheduler.progress(), scheduler.next_wake()), (0, Some(Duration::from_millis(40))));
    clock.pass(45);
    assert_eq!((scheduler.progress(), first.phase(), second.phase()), (0, Phase::Scheduled, Phase::Scheduled));
    clock.pass(5);
    assert_eq!((scheduler.progress(), log.take()), (2, vec!["first".to_owned(), "second".to_owned()]));
    assert_eq!(scheduler.next_wake(), Some(Duration::from_millis(40)));
    clock.pass(40);
    assert_eq!((scheduler.progress(), scheduler.next_wake()), (1, None));
}

#[test]
fn a_failed_predecessor_skips_those_that_want_its_success_and_only_those() {
    let (scheduler, log) = (scheduler(), Log::default());
    let fails = scheduler.task().run(|| Err(failure(Code::Io))).completed(log.end("fails")).build();
    let after = |condition| scheduler.task().after(&fails, condition);
    let wants_success = after(Condition::Success).run(log.run("no")).completed(log.end("success")).build();
    let chained = scheduler.task().after(&wants_success, Condition::Success).completed(log.end("chained")).build();
    let cleans_up = after(Condition::End).run(log.run("cleans up")).build();
    let repairs = after(Condition::Failure).run(log.run("repairs")).build();
    let after_skip = scheduler.task().after(&chained, Condition::End).run(log.run("after the skip")).build();
    for task in [&after_skip, &cleans_up, &repairs, &chained, &wants_success, &fails] {
        task.schedule();
    }
    scheduler.progress();
    let said = log.take();
    assert_eq!(said[..3], ["fails: EIo", "success: EDependency", "chained: EDependency"]);
    assert_eq!(said.len(), 6, "{said:?}");
    assert_eq!(
        (code(&fails), code(&wants_success), code(&chained)),
        (Some(Code::Io), Some(Code::Dependency), Some(Code::Dependency))
    );
    assert_eq!((code(&cleans_up), code(&repairs), code(&after_skip)), (None, None, None));
    assert!(scheduler.is_idle());
}

#[test]
fn a_dependency_on_an_ended_task_is_decided_at_once() {
    let (scheduler, log) = (scheduler(), Log::default());
    let ends = |result: TaskResult| {
        let task = scheduler.task().build();
        task.complete(result);
        task
    };
    let (good, bad) = (ends(Ok(())), ends(Err(failure(Code::Io))));
    let runs = scheduler.task().after(&good, Condition::Success).run(log.run("runs")).build();
    let skipped = scheduler.task().after(&bad, Condition::Success).run(log.run("no")).build();
    runs.schedule();
    skipped.schedule();
    assert_eq!((scheduler.progress(), log.take()), (1, vec!["runs".to_owned()]));
    assert_eq!(code(&skipped), Some(Code::Dependency));
    let late = scheduler.task().build();
    assert_eq!(late.depend(&late, Condition::End), Err(DependError::Circle));
    assert_eq!(good.depend(&late, Condition::End), Err(DependError::HasEnded));
    let other = scheduler.task().after(&late, Condition::End).build();
    assert_eq!(late.depend(&other, Condition::End), Err(DependError::Circle));
}

#[test]
fn a_running_task_ends_with_the_last_dependency_that_it_was_given() {
    let (scheduler, log) = (scheduler(), Log::default());
    let parts: Vec<Task> = (0..3).map(|_| scheduler.task().build()).collect();
    let given = parts.clone();
    let whole = scheduler.task().completed(log.end("whole"));
    let whole = whole.body(move |task| {
        given.iter().for_each(|part| task.depend(part, Condition::Success).unwrap());
        task.complete(Ok(()));
    });
    let whole = whole.build();
    parts.iter().chain([&whole]).for_each(|task| _ = task.schedule());
    scheduler.progress();
    assert_eq!((whole.phase(), log.take().len()), (Phase::Ending, 0));
    parts[..2].iter().for_each(|part| _ = part.complete(Ok(())));
    assert_eq!(whole.phase(), Phase::Ending);
    parts[2].complete(Ok(()));
    assert_eq!((whole.phase(), log.take()), (Phase::Ended, vec!["whole: ok".to_owned()]));
}

#[test]
fn a_broken_dependency_of_a_running_task_is_its_error() {
    let scheduler = scheduler();
    let (part, whole) = (scheduler.task().build(), scheduler.task().build());
    part.schedule();
    whole.schedule();
    scheduler.progress();
    whole.depend(&part, Condition::Success).unwrap();
    whole.complete(Ok(()));
    part.complete(Err(failure(Code::Io)));
    assert_eq!(code(&whole), Some(Code::Dependency));
}

#[test]
fn a_queued_task_that_gets_a_dependency_waits_again() {
    let (scheduler, log) = (scheduler(), Log::default());
    let (first, second) = (scheduler.task().build(), scheduler.task().run(log.run("second")).build());
    second.schedule();
    second.depend(&first, Condition::Success).unwrap();
    assert_eq!((scheduler.progress(), second.phase()), (0, Phase::Scheduled));
    first.complete(Ok(()));
    assert_eq!((scheduler.progress(), log.take().len()), (1, 1));
}

#[test]
fn the_first_error_is_the_result() {
    let scheduler = scheduler();
    let late = |_: &Task, _: &TaskResult| Err(failure(Code::Busy));
    let of_preparation =
        scheduler.task().prepare(|_| Err(failure(Code::NoSpace))).run(|| Ok(())).completed(late).build();
    let of_body = scheduler.task().run(|| Err(failure(Code::Io))).completed(late).build();
    let of_callback =
        scheduler.task().run(|| Ok(())).completed(late).completed(|_, _| Err(failure(Code::Timeout))).build();
    for task in [&of_preparation, &of_body, &of_callback] {
        task.schedule();
    }
    scheduler.progress();
    let codes = [&of_preparation, &of_body, &of_callback].map(code);
    assert_eq!(codes, [Some(Code::NoSpace), Some(Code::Io), Some(Code::Timeout)]);
}

#[test]
fn a_task_restarts_a_million_times_in_one_progress() {
    let (scheduler, runs) = (scheduler(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&runs);
    let restarts = |task: &Task, _: &TaskResult| {
        if task.life() < 1_000_000 {
            assert!(task.restart());
        }
        Ok(())
    };
    let never = Log::default();
    let task = scheduler.task().completed(never.end("once")).completed(restarts);
    let task = task.run(move || {
        counted.fetch_add(1, SeqCst);
        Ok(())
    });
    let task = task.build();
    task.schedule();
    assert_eq!(scheduler.progress(), 1_000_001);
    assert_eq!((runs.load(SeqCst), task.life(), task.phase()), (1_000_001, 1_000_000, Phase::Ended));
    assert_eq!(never.take(), ["once: ok"], "the remaining callbacks run in the last life only");
}

#[test]
fn a_restart_takes_a_delay_or_another_body_and_its_dependents_wait_for_it() {
    let (clock, log) = (TestClock::default(), Log::default());
    let scheduler = clock.flow().scheduler();
    let retries = |task: &Task, result: &TaskResult| {
        if result.is_err() && task.life() == 0 {
            task.restart_after(Duration::from_millis(10));
        }
        Ok(())
    };
    let tries = AtomicUsize::new(0);
    let work = move || if tries.fetch_add(1, SeqCst) == 0 { Err(failure(Code::Io)) } else { Ok(()) };
    let task = scheduler.task().run(work).completed(retries).build();
    let next = scheduler.task().after(&task, Condition::Success).run(log.run("next")).build();
    task.schedule();
    next.schedule();
    assert_eq!((scheduler.progress(), task.phase(), log.take().len()), (1, Phase::Scheduled, 0));
    clock.pass(10);
    assert_eq!((scheduler.progress(), log.take()), (2, vec!["next".to_owned()]));
    let again = log.clone();
    assert!(task.restart_with(move |task| {
        again.say("another body");
        task.complete(Ok(()));
    }));
    assert_eq!((task.result(), scheduler.is_idle()), (None, false));
    clock.pass(10);
    assert_eq!((scheduler.progress(), log.take()), (1, vec!["another body".to_owned()]));
    assert_eq!(next.phase(), Phase::Ended, "what its first end has decided stays decided");
    assert!(!next.schedule() && next.restart());
    scheduler.progress();
    assert_eq!(log.take(), ["next"]);
}

#[test]
fn only_a_task_that_ends_or_has_ended_restarts() {
    let scheduler = scheduler();
    let task = scheduler.task().body(|task| assert!(!task.restart(), "it runs")).build();
    assert!(!task.restart(), "it was not scheduled");
    task.schedule();
    assert!(!task.restart(), "it is queued");
    scheduler.progress();
    assert!(!task.restart(), "it runs");
    task.complete(Ok(()));
    assert!(task.restart());
}

#[test]
fn an_instant_start_runs_before_schedule_returns_and_nests_without_end() {
    let (scheduler, log) = (scheduler(), Log::default());
    let task = scheduler.task().run(log.run("now")).build();
    assert!(task.schedule_now());
    assert_eq!((log.take(), scheduler.progress()), (vec!["now".to_owned()], 0));
    let waits = scheduler.task().build();
    let later = scheduler.task().after(&waits, Condition::End).run(log.run("later")).build();
    later.schedule_now();
    assert_eq!(log.take().len(), 0, "it is not ready");
    waits.complete(Ok(()));

    // Each body starts the next one.
    fn chain(scheduler: &Scheduler, left: usize, runs: &Arc<AtomicUsize>) {
        if left > 0 {
            let (next, counted) = (scheduler.clone(), Arc::clone(runs));
            let link = scheduler.task().run(move || {
                counted.fetch_add(1, SeqCst);
                chain(&next, left - 1, &counted);
                Ok(())
            });
            link.build().schedule_now();
        }
    }
    let runs = Arc::new(AtomicUsize::new(0));
    chain(&scheduler, 100_000, &runs);
    scheduler.progress();
    assert_eq!(runs.load(SeqCst), 100_000);
}

#[test]
fn a_chain_and_a_fan_of_many_tasks_run_without_recursion() {
    let (scheduler, runs) = (scheduler(), Arc::new(AtomicUsize::new(0)));
    let count = |counted: &Arc<AtomicUsize>| {
        let counted = Arc::clone(counted);
        move || {
            counted.fetch_add(1, SeqCst);
            Ok(())
        }
    };
    let first = scheduler.task().run(count(&runs)).build();
    let mut last = first.clone();
    for _ in 0..50_000 {
        let next = scheduler.task().after(&last, Condition::Success).run(count(&runs)).build();
        next.schedule();
        last = next;
    }
    let fan: Vec<_> =
        (0..500).map(|_| scheduler.task().after(&last, Condition::End).run(count(&runs)).build()).collect();
    let join = fan.iter().fold(scheduler.task(), |join, part| join.after(part, Condition::Success));
    let join = join.run(count(&runs)).build();
    fan.iter().chain([&join, &first]).for_each(|task| _ = task.schedule());
    assert_eq!(scheduler.progress(), 50_502);
    assert_eq!(runs.load(SeqCst), 50_502);

    // The same chain, skipped from its first end on.
    let first = scheduler.task().build();
    let mut last = first.clone();
    for _ in 0..50_000 {
        last = scheduler.task().after(&last, Condition::Success).build();
        last.schedule();
    }
    first.complete(Err(failure(Code::Io)));
    assert_eq!((code(&last), scheduler.is_idle()), (Some(Code::Dependency), true));
}

#[test]
fn a_cancel_runs_every_completion_callback_once_also_of_sleepers() {
    let (clock, log) = (TestClock::default(), Log::default());
    let scheduler = clock.flow().scheduler();
    let other = scheduler.flow().scheduler();
    let task = |name: &str| scheduler.task().completed(log.end(name));
    let created = task("created").build();
    let sleeps = task("sleeps").delay(Duration::from_secs(60)).build();
    let runs = task("runs").cancelled({
        let log = log.clone();
        move |_| log.say("told to stop")
    });
    let runs = runs.build();
    let waits = task("waits").after(&runs, Condition::Success).build();
    let cleans_up = other.task().after(&runs, Condition::End).run(log.run("cleans up")).build();
    let queued = task("queued").run(log.run("never")).build();
    for task in [&sleeps, &runs, &waits, &cleans_up] {
        task.schedule();
    }
    scheduler.progress();
    queued.schedule();
    scheduler.cancel();
    scheduler.cancel();
    let mut said = log.take();
    said.sort_unstable();
    let cancelled = ["created", "queued", "sleeps", "waits"].map(|name| format!("{name}: ECancelled"));
    assert_eq!(said, [&cancelled[..3], &["told to stop".to_owned()], &cancelled[3..]].concat());
    assert!(runs.is_cancelled() && runs.phase() == Phase::Running, "what it does may not be over");
    assert_eq!((other.progress(), scheduler.next_wake()), (0, None));
    runs.complete(Err(failure(Code::Cancelled)));
    assert_eq!((log.take(), other.progress()), (vec!["runs: ECancelled".to_owned()], 1));
    assert!(scheduler.is_idle() && !runs.restart(), "a cancelled scheduler starts nothing");
    let late = task("late").build();
    assert!(late.schedule());
    assert_eq!(code(&late), Some(Code::Cancelled));
    clock.pass(60_000);
    assert_eq!((scheduler.progress(), created.phase(), sleeps.phase()), (0, Phase::Ended, Phase::Ended));
}

#[test]
fn what_a_callback_completes_ends_when_the_callback_has_returned() {
    let (scheduler, log) = (scheduler(), Log::default());
    let other = scheduler.task().completed(log.end("other")).build();
    let (completes, said) = (other.clone(), log.clone());
    let task = scheduler.task().run(|| Ok(()));
    let task = task.completed(move |task, _| {
        assert!(!task.complete(Ok(())), "it ends already");
        assert!(completes.complete(Ok(())));
        completes.cancel();
        said.say("callback returns");
        Ok(())
    });
    let task = task.build();
    task.schedule();
    other.schedule();
    scheduler.progress();
    assert_eq!(log.take(), ["callback returns", "other: ok"]);
}

#[test]
fn a_preparation_that_completes_its_task_keeps_the_body_from_running() {
    let (scheduler, log) = (scheduler(), Log::default());
    let prepare = |task: &Task| {
        task.complete(Err(failure(Code::Exists)));
        Ok(())
    };
    let task = scheduler.task().prepare(prepare).run(log.run("body")).completed(log.end("end")).build();
    task.schedule();
    scheduler.progress();
    assert_eq!(log.take(), ["end: EExists"]);
}

#[test]
fn a_task_that_nothing_can_move_on_any_more_is_cancelled() {
    let (scheduler, log) = (scheduler(), Log::default());
    let forgotten = scheduler.task().completed(log.end("forgotten")).build();
    let outside = scheduler.task().completed(log.end("outside")).build();
    let waits = scheduler.task().after(&forgotten, Condition::Success).after(&outside, Condition::End).build();
    waits.schedule();
    drop(forgotten);
    assert_eq!(log.take(), ["forgotten: ECancelled"]);
    assert_eq!(code(&waits), Some(Code::Dependency));
    outside.schedule();
    scheduler.progress();
    drop(outside);
    assert_eq!(log.take(), ["outside: ECancelled"]);
    assert!(scheduler.is_idle());
    let body = scheduler.task().run(log.run("runs without a handle")).build();
    body.schedule();
    drop(body);
    assert_eq!((scheduler.progress(), log.take().len()), (1, 1));
}

#[test]
fn callbacks_and_tasks_are_dropped_with_the_last_handle() {
    let scheduler = scheduler();
    let held = Arc::new(());
    for _ in 0..1000 {
        let kept = Arc::clone(&held);
        let task = scheduler.task().run(move || {
            let _ = &kept;
            Ok(())
        });
        let task = task.build();
        let next = scheduler.task().after(&task, Condition::Success).run(|| Ok(())).build();
        task.schedule();
        next.schedule();
    }
    scheduler.progress();
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(format!("{:?}", scheduler.flow()).contains("tasks: 0"), "{:?}", scheduler.flow());
}

#[test]
fn an_idle_scheduler_says_so_each_time() {
    let (scheduler, log) = (scheduler(), Log::default());
    let said = log.clone();
    scheduler.idle(move || said.say("idle"));
    for _ in 0..2 {
        let (first, second) = (scheduler.task().run(|| Ok(())).build(), scheduler.task().run(|| Ok(())).build());
        first.schedule();
        second.schedule();
        scheduler.progress();
        assert_eq!(log.take(), ["idle"]);
    }
}

#[test]
fn two_schedulers_of_one_flow_are_driven_by_two_threads() {
    let flow = Flow::default();
    let schedulers = [flow.scheduler(), flow.scheduler()];
    let runs = Arc::new(AtomicUsize::new(0));
    let mut last: Option<Task> = None;
    for number in 0..2000 {
        let counted = Arc::clone(&runs);
        let task = schedulers[number % 2].task().run(move || {
            assert_eq!(counted.fetch_add(1, SeqCst), number, "a chain is in order");
            Ok(())
        });
        let task = match &last {
            Some(last) => task.after(last, Condition::Success).build(),
            None => task.build(),
        };
        task.schedule();
        last = Some(task);
    }
    let last = last.unwrap();
    std::thread::scope(|scope| {
        for scheduler in &schedulers {
            scope.spawn(|| {
                while last.result().is_none() {
                    scheduler.progress();
                    std::thread::yield_now();
                }
            });
        }
    });
    assert_eq!(runs.load(SeqCst), 2000);
    assert!(schedulers.iter().all(Scheduler::is_idle));
}
