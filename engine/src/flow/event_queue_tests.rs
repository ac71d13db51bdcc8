//! Tests the event queue with several pollers, parents, barriers, aborts, and closing while it is busy.

use super::event_queue::{Event, EventCounts, EventQueue, EventState};
use super::scheduler::Flow;
use crate::error::{Code, Error, Operation, Side};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;
/// Nothing that is waited for takes this long.
const LONG: Duration = Duration::from_secs(60);

fn failure() -> Error {
    Error::new(Code::Io, Side::Source, Operation::Read, "a test wants it so")
}

#[test]
fn events_are_delivered_in_the_order_in_which_they_end_and_can_be_used_again() {
    let queue = EventQueue::default();
    let events: Vec<Event> = (0..3).map(|_| queue.event()).collect();
    assert!(queue.poll(8, NOW).is_empty());
    for _ in 0..2 {
        events.iter().for_each(|event| event.launch().unwrap());
        assert_eq!(events[0].launch().unwrap_err().code, Code::Busy);
        assert_eq!(queue.query(), EventCounts { launched: 3, completed: 0 });
        assert!(events[2].complete(Err(failure())) && events[0].complete(Ok(())));
        assert!(!events[0].complete(Ok(())), "it ends once");
        assert_eq!(queue.query(), EventCounts { launched: 1, completed: 2 });
        let delivered = queue.poll(1, LONG);
        assert_eq!((delivered.len(), delivered[0].result.as_ref().unwrap_err().code), (1, Code::Io));
        assert_eq!(delivered[0].event.state(), EventState::Ready);
        assert_eq!(events[0].test().unwrap().result, Ok(()));
        assert!(events[0].test().is_none() && queue.poll(8, NOW).is_empty(), "each is delivered once");
        events[1].complete(Ok(()));
        assert_eq!(queue.poll(8, LONG).len(), 1);
    }
}

#[test]
fn a_parent_is_delivered_after_its_last_child_with_the_first_error() {
    let queue = EventQueue::default();
    let parent = queue.event();
    let children: Vec<Event> = (0..3).map(|_| parent.child()).collect();
    for is_barrier in [false, true] {
        children.iter().for_each(|child| child.launch().unwrap());
        children[1].complete(Err(failure()));
        if is_barrier {
            parent.barrier().unwrap()
        } else {
            parent.launch().unwrap()
        }
        assert_eq!(children[1].launch().unwrap_err().code, Code::Busy, "children come before their parent");
        children[0].complete(Ok(()));
        assert!(children[0].test().is_none(), "a child is never delivered alone");
        children[2].complete(Ok(()));
        if !is_barrier {
            assert_eq!((parent.state(), queue.poll(8, NOW).len()), (EventState::Launched, 0));
            parent.complete(Ok(()));
        }
        let delivered = queue.poll(8, LONG);
        assert_eq!((delivered.len(), delivered[0].result.as_ref().unwrap_err().code), (1, Code::Io));
        assert!(children.iter().all(|child| child.state() == EventState::Ready));
    }
    parent.barrier().unwrap();
    assert_eq!(queue.poll(8, NOW)[0].result, Ok(()), "without children it ends at once");
}

#[test]
fn pollers_drive_the_schedulers_and_tasks_are_events() {
    let (queue, flow) = (EventQueue::default(), Flow::default());
    let scheduler = flow.scheduler();
    queue.drive(&scheduler);
    let task = scheduler.task().run(|| Err(failure())).delay(Duration::from_millis(5)).build();
    let event = queue.event();
    event.launch_task(&task).unwrap();
    task.schedule();
    let delivered = queue.poll(1, LONG);
    assert_eq!(delivered[0].result.as_ref().unwrap_err().code, Code::Io);
    event.launch_task(&task).unwrap();
    assert_eq!(queue.poll(1, LONG).len(), 1, "it has ended already");

    let outside = scheduler.task().build();
    outside.schedule();
    event.launch_task(&outside).unwrap();
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| queue.poll(1, LONG));
        scope.spawn(|| outside.complete(Ok(())));
        assert_eq!(poller.join().unwrap().len(), 1, "a completion elsewhere wakes the poller");
    });
}

#[test]
fn an_abort_cancels_what_has_not_ended_and_the_event_is_still_delivered() {
    let (queue, flow) = (EventQueue::default(), Flow::default());
    let scheduler = flow.scheduler();
    queue.drive(&scheduler);
    let parent = queue.event();
    let tasks: Vec<_> = (0..3).map(|_| scheduler.task().delay(LONG).build()).collect();
    for task in &tasks {
        let child = parent.child();
        child.launch_task(task).unwrap();
        task.schedule();
    }
    parent.barrier().unwrap();
    parent.abort();
    let delivered = queue.poll(8, LONG);
    assert_eq!((delivered.len(), delivered[0].result.as_ref().unwrap_err().code), (1, Code::Cancelled));
}

#[test]
fn a_queue_is_closed_when_nothing_is_in_flight() {
    let queue = EventQueue::default();
    let event = queue.event();
    event.launch().unwrap();
    assert_eq!(queue.close().unwrap_err().code, Code::Busy);
    event.complete(Ok(()));
    assert_eq!(queue.close().unwrap_err().code, Code::Busy, "it is not delivered");
    std::thread::scope(|scope| {
        assert_eq!(queue.poll(1, LONG).len(), 1);
        let poller = scope.spawn(|| queue.poll(1, LONG));
        queue.close().unwrap();
        assert!(poller.join().unwrap().is_empty(), "pollers return");
    });
    assert_eq!(event.launch().unwrap_err().code, Code::BadRequest);
}

#[test]
fn a_thousand_events_reach_several_pollers_each_once() {
    let queue = EventQueue::default();
    let events: Vec<Event> = (0..1000).map(|_| queue.event()).collect();
    events.iter().for_each(|event| event.launch().unwrap());
    let got = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let delivered = queue.poll(7, LONG);
                    if delivered.is_empty() {
                        return;
                    }
                    got.lock().unwrap().extend(delivered.into_iter().map(|delivery| format!("{:?}", delivery.event)));
                }
            });
        }
        for half in events.chunks(500) {
            scope.spawn(move || half.iter().for_each(|event| assert!(event.complete(Ok(())))));
        }
        while queue.close().is_err() {
            std::thread::yield_now();
        }
    });
    let got = got.into_inner().unwrap();
    assert_eq!((got.len(), got.iter().collect::<BTreeSet<_>>().len()), (1000, 1000));
}
