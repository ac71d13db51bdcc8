//! Tests that what subscribers know equals what is stored, however slow they are and whoever leads.

use super::picture::Picture;
use super::*;
use crate::model::{DesiredState, Position, TaskId, TaskState};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Subscribers of a random history.
const SUBSCRIBERS: usize = 3;

fn change(name: &str, version: i32) -> TaskChange {
    TaskChange {
        id: TaskId::new(name).unwrap(),
        kind: "noop",
        state: TaskState::Running,
        desired_state: DesiredState::Run,
        reason: "r".repeat(usize::try_from(version).unwrap() % 90),
        node: None,
        version,
        group: None,
        schedule: None,
        is_removed: false,
    }
}

fn at(epoch: i64, number: u64) -> Option<Position> {
    Some(Position { epoch: Epoch(epoch), number })
}

/// Returns the numbers and names of what comes next; `None` for a snapshot.
fn numbers(subscriber: &mut Subscriber) -> Option<Vec<(u64, String)>> {
    match subscriber.next() {
        Next::Snapshot => None,
        Next::Changes(all) => Some(all.iter().map(|(number, change)| (*number, change.id.to_string())).collect()),
        Next::Nothing => Some(Vec::new()),
    }
}

#[test]
fn a_known_position_goes_on_after_it_and_any_other_one_needs_all_tasks() {
    let mut feed = Feed::with_bounds(Epoch(7), 100, 4, 1 << 20);
    assert_eq!(numbers(&mut Subscriber::new(feed.reader(), at(7, 100))), Some(vec![]));
    (1..=6).for_each(|version| feed.push(change(&format!("t{version}"), version)));
    let names = |all: &[u64]| Some(all.iter().map(|number| (*number, format!("t{}", number - 100))).collect());
    for (since, next) in [
        (at(7, 106), names(&[])),
        (at(7, 105), names(&[106])),
        (at(7, 102), names(&[103, 104, 105, 106])),
        // Gone; never given; of another term; unknown.
        (at(7, 101), None),
        (at(7, 107), None),
        (at(7, u64::MAX), None),
        (at(6, 105), None),
        (at(8, 105), None),
        (None, None),
    ] {
        assert_eq!(numbers(&mut Subscriber::new(feed.reader(), since)), next, "{since:?}");
    }
}

#[test]
fn a_subscriber_that_is_too_slow_needs_all_tasks_and_then_goes_on() {
    let mut feed = Feed::with_bounds(Epoch(7), 0, 4, 1 << 20);
    let mut subscriber = Subscriber::new(feed.reader(), at(7, 0));
    (1..=5).for_each(|version| feed.push(change("t", version)));
    assert_eq!(numbers(&mut subscriber), None);
    assert_eq!(numbers(&mut subscriber), None, "until it has them");
    let snapshot = feed.snapshot(|| vec![change("t", 5)]);
    feed.push(change("t", 6));
    subscriber.take(&snapshot);
    assert_eq!(numbers(&mut subscriber), Some(vec![(6, String::from("t"))]));
    assert_eq!(numbers(&mut subscriber), Some(vec![]));
}

#[test]
fn the_ring_has_a_bound_of_bytes_too() {
    let mut ring = Ring::new(0, 1000, 10_000);
    for version in 0..500 {
        ring.push(TaskChange { reason: "x".repeat(900), ..change("t", version) });
        let held = ring.after(ring_first(&ring) - 1, usize::MAX).unwrap();
        let bytes: usize = held.iter().map(|(_, change)| change.bytes()).sum();
        assert!(bytes <= 10_000, "{bytes}");
    }
    assert!(ring_first(&ring) > 480, "most are gone");
    // One that has no room at all is not kept, and its number is not given again.
    let last = ring.push(TaskChange { reason: "x".repeat(20_000), ..change("t", 1) });
    assert!(ring.after(last - 1, 9).is_none());
    assert_eq!(ring.after(last, 9), Some(vec![]));
    assert_eq!(ring.push(change("t", 2)), last + 1);
}

/// Returns the number of the first change that is held.
fn ring_first(ring: &Ring) -> u64 {
    (0..).find(|number| ring.after(*number, 1).is_some()).unwrap() + 1
}

#[test]
fn subscribers_share_a_snapshot_while_it_is_sent_and_recent() {
    let mut feed = Feed::with_bounds(Epoch(7), 0, 8, 1 << 20);
    feed.push(change("t", 1));
    let first = feed.snapshot(|| vec![change("t", 1)]);
    feed.push(change("t", 2));
    let second = feed.snapshot(|| panic!("the first one will do"));
    assert!(Arc::ptr_eq(&first, &second));
    (3..=6).for_each(|version| feed.push(change("t", version)));
    let third = feed.snapshot(|| vec![change("t", 6)]);
    assert_eq!((first.number, third.number), (1, 6), "the first one is too old");
    drop((first, second, third));
    assert_eq!(feed.snapshot(Vec::new).tasks, [], "nobody has used it any more");
}

#[tokio::test]
async fn who_waits_is_woken_by_a_change_and_by_the_end_of_the_term() {
    let mut feed = Feed::new(Epoch(7), 0);
    let mut subscriber = Subscriber::new(feed.reader(), at(7, 0));
    let waiting = tokio::spawn(async move {
        assert!(subscriber.changed().await);
        assert_eq!(numbers(&mut subscriber), Some(vec![(1, String::from("t"))]));
        (subscriber.changed().await, subscriber)
    });
    tokio::task::yield_now().await;
    feed.push(change("t", 1));
    tokio::task::yield_now().await;
    drop(feed);
    assert!(!waiting.await.unwrap().0, "the term is over");
}

/// A store that goes back repeats an epoch, and the leader counts from the time.
#[test]
fn a_position_in_lost_history_is_not_taken_for_one_in_the_present() {
    let mut feed = Feed::new(Epoch(7), 1_800_000_000_000);
    (1..=50).for_each(|version| feed.push(change("t", version)));
    let since = at(7, 1_800_000_000_050);
    let mut again = Feed::new(Epoch(7), 1_800_000_060_000);
    (1..=90).for_each(|version| again.push(change("u", version)));
    assert_eq!(numbers(&mut Subscriber::new(again.reader(), since)), None);
}

/// Step of a random history.
#[derive(Clone, Debug)]
enum Step {
    /// A task is created or changed.
    Put(u8),
    /// A task is removed, if it is there.
    Remove(u8),
    /// A subscriber takes what it gets next.
    Read(usize),
    /// The connection of a subscriber breaks while it takes what it gets next: only so many lines arrive.
    Break(usize, usize),
    /// Another node leads.
    NewLeader,
    /// Nothing more happens until all subscribers have caught up.
    Rest,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..12_u8).prop_map(Step::Put),
        3 => (0..12_u8).prop_map(Step::Remove),
        6 => (0..SUBSCRIBERS).prop_map(Step::Read),
        2 => (0..SUBSCRIBERS, 0..6_usize).prop_map(|(subscriber, lines)| Step::Break(subscriber, lines)),
        1 => Just(Step::NewLeader),
        1 => Just(Step::Rest),
    ];
    proptest::collection::vec(step, 0..300)
}

/// A center and its subscribers.
struct History {
    stored: BTreeMap<TaskId, TaskChange>,
    version: i32,
    feed: Feed,
    subscribers: Vec<(Option<Subscriber>, Picture)>,
}

impl History {
    fn new() -> Self {
        let subscribers = (0..SUBSCRIBERS).map(|_| (None, Picture::default())).collect();
        Self { stored: BTreeMap::new(), version: 0, feed: small_feed(1), subscribers }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Put(task) => {
                self.version += 1;
                let change = change(&format!("t{task}"), self.version);
                self.stored.insert(change.id.clone(), change.clone());
                self.feed.push(change);
            }
            Step::Remove(task) => {
                if let Some(last) = self.stored.remove(&TaskId::new(format!("t{task}")).unwrap()) {
                    self.feed.push(TaskChange { is_removed: true, ..last });
                }
            }
            Step::Read(subscriber) => drop(self.read(*subscriber, usize::MAX)),
            Step::Break(subscriber, lines) => {
                self.read(*subscriber, *lines);
                self.subscribers[*subscriber].0 = None;
            }
            Step::NewLeader => self.feed = small_feed(self.feed.epoch.0 + 1),
            Step::Rest => self.rest(),
        }
    }

    /// Has a subscriber take what it gets next, or the first `lines` of it; returns whether there was something.
    fn read(&mut self, index: usize, lines: usize) -> bool {
        let Self { stored, feed, subscribers, .. } = self;
        let (connection, picture) = &mut subscribers[index];
        let subscriber = connection.get_or_insert_with(|| Subscriber::new(feed.reader(), picture.position));
        let epoch = subscriber.position(0).epoch;
        if epoch != feed.epoch {
            // What the earlier leader has sent still arrives; then the stream ends.
            if !picture.apply_all(&subscriber.next(), epoch) {
                *connection = None;
            }
            return true;
        }
        match subscriber.next() {
            Next::Snapshot => {
                let snapshot = feed.snapshot(|| stored.values().cloned().collect());
                subscriber.take(&snapshot);
                picture.start_over(&snapshot, subscriber.position(snapshot.number), lines);
            }
            Next::Changes(changes) => {
                for (number, change) in changes.iter().take(lines) {
                    picture.apply(change, subscriber.position(*number));
                }
            }
            Next::Nothing => return false,
        }
        true
    }

    fn rest(&mut self) {
        for index in 0..SUBSCRIBERS {
            while self.read(index, usize::MAX) {}
            assert_eq!(self.subscribers[index].1.tasks, self.stored);
        }
    }
}

fn small_feed(epoch: i64) -> Feed {
    Feed::with_bounds(Epoch(epoch), 0, 8, 2_000)
}

proptest! {
    #[test]
    fn whatever_happens_subscribers_know_what_is_stored_once_nothing_happens(steps in steps()) {
        let mut history = History::new();
        steps.iter().for_each(|step| history.take(step));
        history.rest();
    }
}
