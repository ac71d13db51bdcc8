//! Tests an event queue over real jobs: copies whose ends are delivered as events.

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::Code;
use blockhaul_engine::flow::event_queue::{EventQueue, EventState};
use blockhaul_engine::progress::Status;
use blockhaul_engine::spec::{CopySpec, Reflink};
use std::path::Path;
use std::time::Duration;

/// Nothing that is waited for takes this long.
const LONG: Duration = Duration::from_secs(120);

fn spec(folder: &Path, from: &str, to: &str) -> CopySpec {
    CopySpec { reflink: Reflink::Never, ..CopySpec::new(folder.join(from).into(), folder.join(to).into()) }
}

#[test]
fn the_ends_of_copies_are_events() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("source"), vec![7; 8 << 20]).unwrap();
    let engine = Engine::start(EngineConfig::default()).unwrap();
    let queue = EventQueue::default();

    let event = queue.event();
    for name in ["first", "second"] {
        event.launch_job(&engine.submit(spec(folder, "source", name))).unwrap();
        let delivered = queue.poll(8, LONG);
        assert_eq!((delivered.len(), &delivered[0].result), (1, &Ok(())));
        let report = delivered[0].report.as_ref().expect("it stood for a job");
        assert_eq!(report.status, Status::Succeeded);
        assert!(event.state() == EventState::Ready && std::fs::read(folder.join(name)).unwrap() == [7; 8 << 20]);
    }

    // A parent ends with its last child, and has the first error.
    let parent = queue.event();
    let children = ["source", "missing", "source"].map(|from| (parent.child(), from));
    for (number, (child, from)) in children.iter().enumerate() {
        child.launch_job(&engine.submit(spec(folder, from, &format!("part-{number}")))).unwrap();
    }
    parent.barrier().unwrap();
    let delivered = queue.poll(8, LONG);
    assert!(delivered.len() == 1 && delivered[0].event == parent);
    assert_eq!(delivered[0].result.as_ref().unwrap_err().code, Code::NotFound);
    assert!(folder.join("part-0").exists() && folder.join("part-2").exists());

    // An abort ends a copy that would take minutes; its event is still delivered, and the queue can be closed then.
    let slow = CopySpec { limit_bytes_per_second: Some(16 << 10), ..spec(folder, "source", "slow") };
    event.launch_job(&engine.submit(slow)).unwrap();
    assert!(queue.poll(8, Duration::from_millis(50)).is_empty() && event.test().is_none());
    assert_eq!(queue.close().unwrap_err().code, Code::Busy);
    event.abort();
    let delivered = queue.poll(8, LONG);
    assert_eq!(delivered[0].result.as_ref().unwrap_err().code, Code::Cancelled);
    assert!(delivered[0].report.as_ref().is_some_and(|report| report.quiesced));
    queue.close().unwrap();
}

#[test]
fn several_pollers_get_the_end_of_each_copy_once() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("source"), vec![7; 1 << 20]).unwrap();
    let engine = Engine::start(EngineConfig::default()).unwrap();
    let queue = EventQueue::default();
    let events: Vec<_> = (0..12).map(|_| queue.event()).collect();
    for (number, event) in events.iter().enumerate() {
        event.launch_job(&engine.submit(spec(folder, "source", &format!("copy-{number}")))).unwrap();
    }
    let delivered: usize = std::thread::scope(|scope| {
        let poll_all = || {
            let mut count = 0;
            while queue.close().is_err() {
                count += queue.poll(2, Duration::from_millis(20)).len();
            }
            count
        };
        let pollers: Vec<_> = (0..3).map(|_| scope.spawn(poll_all)).collect();
        pollers.into_iter().map(|poller| poller.join().unwrap()).sum()
    });
    assert_eq!(delivered, events.len());
}
