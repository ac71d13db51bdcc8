//! Tests the contract of the coordination service: one suite for all implementations.
//!
//! Each function takes a client whose center no other test uses meanwhile, works below a folder of its own, and panics
//! if the contract is broken. [`everything`] runs all of them. Faults are not part of the contract: an implementation
//! that injects faults must have them turned off.

use super::{
    CoordClient, CoordError, CreateMode, Done, MULTI_BYTES_MAX, NODE_BYTES_MAX, Op, Refusal, Session, SessionEnd,
    SessionState, Stat, Watch, Znode,
};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for what must happen; no implementation needs a tenth of it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs the whole suite.
pub async fn everything(center: &dyn CoordClient) {
    nodes_are_created_set_and_deleted(center).await;
    a_refusal_names_its_operation_and_nothing_is_done(center).await;
    conditions_are_checked_in_one_order(center).await;
    operations_see_those_before_them(center).await;
    transactions_have_growing_numbers(center).await;
    a_node_that_is_created_again_starts_from_version_zero(center).await;
    malformed_operations_are_refused_before_they_are_sent(center).await;
    too_large_writes_are_refused_before_they_are_sent(center).await;
    children_are_sorted(center).await;
    ephemeral_nodes_live_as_long_as_their_session(center).await;
    a_dropped_session_ends(center).await;
    ephemeral_nodes_have_no_children(center).await;
    a_closed_session_does_nothing(center).await;
    watches_fire(center).await;
    watches_of_children_fire(center).await;
    a_dropped_watch_leaves_the_others(center).await;
    a_synchronised_session_sees_every_write(center).await;
    one_of_two_creations_succeeds(center).await;
    no_increment_is_lost(center).await;
    many_writes_are_in_flight_at_a_time(center).await;
}

/// A node is created, read, set with its version, and deleted with its version.
async fn nodes_are_created_set_and_deleted(center: &dyn CoordClient) {
    let (session, at) = start(center, "nodes").await;
    let node = at("node");
    assert_eq!(session.get(&node).await, Ok(None));
    assert_eq!(session.multi(vec![create(&node, b"one")]).await, Ok(vec![Done::Plain]));
    let made = read(&*session, &node).await;
    assert_eq!((&made.data[..], made.stat.version, made.stat.owner), (&b"one"[..], 0, None));
    assert_eq!(made.stat.created, made.stat.modified);

    let stat = set_one(&*session, set(&node, b"two", 0)).await;
    assert_eq!((stat.version, stat.created, stat.owner), (1, made.stat.created, None));
    assert_eq!(read(&*session, &node).await, Znode { data: b"two".to_vec(), stat });
    refused(&*session, vec![set(&node, b"three", 0)], 0, Refusal::BadVersion).await;
    refused(&*session, vec![delete(&node, 0)], 0, Refusal::BadVersion).await;
    refused(&*session, vec![check(&node, 2)], 0, Refusal::BadVersion).await;
    assert_eq!(session.multi(vec![check(&node, 1)]).await, Ok(vec![Done::Plain]));
    assert_eq!(session.multi(vec![delete(&node, 1)]).await, Ok(vec![Done::Plain]));

    assert_eq!(session.get(&node).await, Ok(None));
    refused(&*session, vec![set(&node, b"four", 1)], 0, Refusal::NoNode).await;
    refused(&*session, vec![delete(&node, 1)], 0, Refusal::NoNode).await;
    refused(&*session, vec![check(&node, 1)], 0, Refusal::NoNode).await;
    assert_eq!(session.multi(Vec::new()).await, Ok(Vec::new()));
    session.close().await;
}

/// Wherever in a multi the refused operation is, the others are not done.
async fn a_refusal_names_its_operation_and_nothing_is_done(center: &dyn CoordClient) {
    let (session, at) = start(center, "atomic").await;
    let (kept, gone, made) = (at("kept"), at("gone"), at("made"));
    done(&*session, vec![create(&kept, b"as it was"), create(&gone, b"")]).await;
    let before = (session.get(&kept).await, session.get(&gone).await, session.children(&at("")).await);
    let good = [set(&kept, b"changed", 0), delete(&gone, 0), create(&made, b""), create(&format!("{made}/child"), b"")];
    let bad = [
        (check(&kept, 7), Refusal::BadVersion),
        (set(&at("missing"), b"", 0), Refusal::NoNode),
        (create(&at("missing/child"), b""), Refusal::NoNode),
        (create(&at(""), b""), Refusal::NodeExists),
        (delete(&at(""), 0), Refusal::NotEmpty),
    ];
    for (op, why) in bad {
        for index in 0..=good.len() {
            let mut ops = good.to_vec();
            ops.insert(index, op.clone());
            refused(&*session, ops, index, why).await;
            let now = (session.get(&kept).await, session.get(&gone).await, session.children(&at("")).await);
            assert_eq!(now, before, "{op:?} at {index}");
        }
    }
    session.close().await;
}

/// If several conditions do not hold, all implementations report the same one.
async fn conditions_are_checked_in_one_order(center: &dyn CoordClient) {
    let (session, at) = start(center, "order").await;
    done(&*session, vec![create(&at("parent"), b""), create(&at("parent/child"), b"")]).await;
    refused(&*session, vec![delete(&at("parent"), 5)], 0, Refusal::BadVersion).await;
    refused(&*session, vec![delete(&at("parent"), 0)], 0, Refusal::NotEmpty).await;
    let both = vec![create(&at("parent"), b""), set(&at("missing"), b"", 0)];
    refused(&*session, both, 0, Refusal::NodeExists).await;
    session.close().await;
}

/// Within a multi, every operation sees the effects of the operations before it.
async fn operations_see_those_before_them(center: &dyn CoordClient) {
    let (session, at) = start(center, "sequence").await;
    let (node, child) = (at("node"), at("node/child"));
    let ops = vec![
        create(&node, b"0"),
        create(&child, b""),
        check(&node, 0),
        set(&node, b"1", 0),
        set(&node, b"2", 1),
        check(&node, 2),
        delete(&child, 0),
        create(&child, b"again"),
    ];
    let results = done(&*session, ops).await;
    let [.., Done::Set(first), Done::Set(second), Done::Plain, Done::Plain, Done::Plain] = results[..] else {
        panic!("a set returns its node: {results:?}");
    };
    assert_eq!((first.version, second.version), (1, 2));
    assert_eq!(read(&*session, &node).await, Znode { data: b"2".to_vec(), stat: second });
    assert_eq!(read(&*session, &child).await.data, b"again");
    refused(&*session, vec![delete(&child, 0), delete(&node, 2), create(&child, b"")], 2, Refusal::NoNode).await;
    session.close().await;
}

/// All changes of a multi have one transaction number, and these numbers grow over all sessions.
async fn transactions_have_growing_numbers(center: &dyn CoordClient) {
    let (session, at) = start(center, "numbers").await;
    let other = open(center).await;
    done(&*session, vec![create(&at("a"), b""), create(&at("b"), b"")]).await;
    let mut last = read(&*session, &at("a")).await.stat.created;
    for version in 0..10 {
        let writer = if version % 2 == 0 { &session } else { &other };
        let made = at(&format!("made{version}"));
        let ops = vec![set(&at("a"), b"", version), create(&made, b""), set(&at("b"), b"", version)];
        let results = done(&**writer, ops).await;
        let [Done::Set(a), Done::Plain, Done::Set(b)] = results[..] else { panic!("{results:?}") };
        let made = read(&**writer, &made).await.stat;
        assert_eq!((a.modified, made.created, made.modified), (b.modified, b.modified, b.modified));
        assert_eq!(read(&**writer, &at("b")).await.stat, b);
        assert!(a.modified > last, "{:?} after {last:?}", a.modified);
        last = a.modified;
    }
    other.close().await;
    session.close().await;
}

/// The version of a node that is created again starts from 0, and its creation is the later transaction.
async fn a_node_that_is_created_again_starts_from_version_zero(center: &dyn CoordClient) {
    let (session, at) = start(center, "again").await;
    let node = at("node");
    done(&*session, vec![create(&node, b"")]).await;
    let first = set_one(&*session, set(&node, b"", 0)).await;
    done(&*session, vec![delete(&node, 1)]).await;
    done(&*session, vec![create(&node, b"")]).await;
    let second = read(&*session, &node).await.stat;
    assert_eq!(second.version, 0);
    assert!(second.created > first.modified);
    session.close().await;
}

/// Malformed paths and negative versions are never sent to a service, where a negative version means any.
async fn malformed_operations_are_refused_before_they_are_sent(center: &dyn CoordClient) {
    let (session, at) = start(center, "nonsense").await;
    done(&*session, vec![create(&at("node"), b"")]).await;
    for path in ["", "node", "//", "/node/", "/a//b", "/a/./b", "/a/../b", "/a\nb", "/a\0b"] {
        refused(&*session, vec![check(&at("node"), 0), create(path, b"")], 1, Refusal::Impossible).await;
        let impossible = CoordError::Refused { index: 0, why: Refusal::Impossible };
        assert_eq!(session.get(path).await, Err(impossible.clone()), "{path:?}");
        assert_eq!(session.children(path).await, Err(impossible), "{path:?}");
    }
    refused(&*session, vec![create("/", b"")], 0, Refusal::Impossible).await;
    refused(&*session, vec![delete("/", 0)], 0, Refusal::Impossible).await;
    for op in [check(&at("node"), -1), set(&at("node"), b"", -1), delete(&at("node"), -1)] {
        refused(&*session, vec![op], 0, Refusal::BadVersion).await;
    }
    assert_eq!(read(&*session, &at("node")).await.stat.version, 0);
    session.close().await;
}

/// A write of the largest permitted size is done; a larger one is refused, and the session continues.
async fn too_large_writes_are_refused_before_they_are_sent(center: &dyn CoordClient) {
    let (session, at) = start(center, "size").await;
    let most = vec![7; NODE_BYTES_MAX];
    done(&*session, vec![create(&at("node"), &most)]).await;
    assert_eq!(read(&*session, &at("node")).await.data, most);
    let over = [&most[..], &[7]].concat();
    for op in [create(&at("other"), &over), set(&at("node"), &over, 0)] {
        let error = session.multi(vec![op]).await.expect_err("a node is too large");
        assert!(matches!(&error, CoordError::TooLarge { bytes, .. } if *bytes == over.len()), "{error}");
    }
    let many = MULTI_BYTES_MAX / NODE_BYTES_MAX;
    let ops: Vec<Op> = (0..many).map(|index| create(&at(&format!("many{index}")), &most)).collect();
    let error = session.multi(ops.clone()).await.expect_err("with its paths the multi is too large");
    assert!(matches!(error, CoordError::TooLarge { limit: MULTI_BYTES_MAX, .. }), "{error}");
    done(&*session, ops[1..].to_vec()).await;
    assert!(session.states().borrow().is_connected());
    assert_eq!(session.states().borrow().reconnects, 0);
    session.close().await;
}

/// Children are in order of their names; a node that does not exist has none.
async fn children_are_sorted(center: &dyn CoordClient) {
    let (session, at) = start(center, "children").await;
    let names = ["b", "a", "a-b", "a.b", "a0", "Z", "10", "9", "ä"];
    done(&*session, names.map(|name| create(&at(name), b"")).to_vec()).await;
    done(&*session, vec![create(&at("a/grandchild"), b"")]).await;
    let mut sorted = names.map(str::to_owned).to_vec();
    sorted.sort();
    assert_eq!(session.children(&at("")).await, Ok(sorted.clone()));
    let (watched, _watch) = session.children_and_watch(&at("")).await.expect("the folder exists");
    assert_eq!(watched, sorted);
    assert_eq!(session.children(&at("a")).await, Ok(vec!["grandchild".to_owned()]));
    assert_eq!(session.children(&at("b")).await, Ok(Vec::new()));
    assert_eq!(session.children(&at("missing")).await, Ok(Vec::new()));
    let missing = session.children_and_watch(&at("missing")).await.expect_err("nothing to watch");
    assert_eq!(missing, CoordError::Refused { index: 0, why: Refusal::NoNode });
    session.close().await;
}

/// Other sessions see ephemeral nodes and their owner. The end of the owner's session removes them, and no other nodes.
async fn ephemeral_nodes_live_as_long_as_their_session(center: &dyn CoordClient) {
    let (session, at) = start(center, "ephemeral").await;
    let other = open(center).await;
    assert_ne!(session.id(), other.id());
    done(&*other, vec![ephemeral(&at("e"), b"0"), create(&at("p"), b""), ephemeral(&at("f"), b"")]).await;
    let stat = set_one(&*other, set(&at("e"), b"1", 0)).await;
    assert_eq!((stat.owner, stat.version), (Some(other.id()), 1));
    synchronise(&*session).await;
    assert_eq!(read(&*session, &at("e")).await, Znode { data: b"1".to_vec(), stat });
    // Any session may delete it with the right version.
    done(&*session, vec![delete(&at("f"), 0)]).await;
    let (_, watch) = session.get_and_watch(&at("e")).await.expect("the session is connected");
    other.close().await;
    fires(watch).await;
    synchronise(&*session).await;
    assert_eq!(session.children(&at("")).await, Ok(vec!["p".to_owned()]));
    session.close().await;
}

/// Dropping a session has the effect of closing it.
async fn a_dropped_session_ends(center: &dyn CoordClient) {
    let (session, at) = start(center, "dropped").await;
    let other = open(center).await;
    done(&*other, vec![ephemeral(&at("e"), b"")]).await;
    synchronise(&*session).await;
    let (node, watch) = session.get_and_watch(&at("e")).await.expect("the session is connected");
    assert!(node.is_some());
    drop(other);
    fires(watch).await;
    synchronise(&*session).await;
    assert_eq!(session.get(&at("e")).await, Ok(None));
    session.close().await;
}

/// A child of an ephemeral node is refused, also in the multi that creates both.
async fn ephemeral_nodes_have_no_children(center: &dyn CoordClient) {
    let (session, at) = start(center, "childless").await;
    done(&*session, vec![ephemeral(&at("e"), b"")]).await;
    refused(&*session, vec![create(&at("e/child"), b"")], 0, Refusal::Impossible).await;
    refused(&*session, vec![ephemeral(&at("f"), b""), create(&at("f/child"), b"")], 1, Refusal::Impossible).await;
    session.close().await;
}

/// Every request on a closed session returns its end, its watches wake, and closing it again does nothing.
async fn a_closed_session_does_nothing(center: &dyn CoordClient) {
    let (session, at) = start(center, "closed").await;
    done(&*session, vec![create(&at("node"), b"")]).await;
    let mut states = session.states();
    assert!(states.borrow_and_update().is_connected());
    assert!(session.timeout() > Duration::ZERO);
    let (_, watch) = session.get_and_watch(&at("node")).await.expect("the session is connected");
    session.close().await;
    fires(watch).await;
    let over = tokio::time::timeout(PATIENCE, states.wait_for(SessionState::is_over)).await;
    let over = *over.expect("the end is published").expect("the end is published before the sender is dropped");
    assert_eq!(over.connection, super::ConnectionState::Over(SessionEnd::Closed));
    let ended = CoordError::Ended(SessionEnd::Closed);
    assert_eq!(session.get(&at("node")).await, Err(ended.clone()));
    assert_eq!(session.children(&at("")).await, Err(ended.clone()));
    assert_eq!(session.get_and_watch(&at("node")).await.map(|(node, _)| node), Err(ended.clone()));
    assert_eq!(session.children_and_watch(&at("")).await.map(|(names, _)| names), Err(ended.clone()));
    assert_eq!(session.sync().await, Err(ended.clone()));
    assert_eq!(session.multi(vec![create(&at("late"), b"")]).await, Err(ended));
    session.close().await;
    let other = open(center).await;
    assert_eq!(other.get(&at("late")).await, Ok(None));
    other.close().await;
}

/// Watches fire when any session creates, sets and deletes a node.
async fn watches_fire(center: &dyn CoordClient) {
    let (session, at) = start(center, "watches").await;
    let other = open(center).await;
    let node = at("node");
    let mut data = None;
    for op in [create(&node, b"0"), set(&node, b"1", 0), set(&node, b"2", 1), delete(&node, 2), create(&node, b"3")] {
        let (seen, watch) = session.get_and_watch(&node).await.expect("the session is connected");
        let (_, second) = session.get_and_watch(&node).await.expect("the session is connected");
        assert_eq!(seen.map(|node| node.data), data);
        data = match &op {
            Op::Create { data, .. } | Op::Set { data, .. } => Some(data.clone()),
            Op::Check { .. } | Op::Delete { .. } => None,
        };
        done(&*other, vec![op]).await;
        fires(watch).await;
        fires(second).await;
    }
    // A multi fires the watches that its operations would fire one by one.
    let (_, watch) = session.get_and_watch(&node).await.expect("the session is connected");
    done(&*session, vec![create(&at("aside"), b""), set(&node, b"4", 0)]).await;
    fires(watch).await;
    other.close().await;
    session.close().await;
}

/// Watches fire when a child is created or deleted, and when the node itself is deleted.
async fn watches_of_children_fire(center: &dyn CoordClient) {
    let (session, at) = start(center, "listings").await;
    let other = open(center).await;
    done(&*session, vec![create(&at("folder"), b"")]).await;
    let child = at("folder/child");
    let names = ["child".to_owned()];
    let steps: [(Op, &[String]); 4] = [
        (create(&child, b""), &[]),
        (delete(&child, 0), &names),
        (ephemeral(&child, b""), &[]),
        (delete(&child, 0), &names),
    ];
    for (op, before) in steps {
        let (seen, watch) = session.children_and_watch(&at("folder")).await.expect("the folder exists");
        assert_eq!(seen, before);
        done(&*other, vec![op]).await;
        fires(watch).await;
    }
    let (_, watch) = session.children_and_watch(&at("folder")).await.expect("the folder exists");
    done(&*other, vec![delete(&at("folder"), 0)]).await;
    fires(watch).await;
    other.close().await;
    session.close().await;
}

/// Dropping one watch of a node keeps the node's other watches: those set before and those set later.
async fn a_dropped_watch_leaves_the_others(center: &dyn CoordClient) {
    let (session, at) = start(center, "silence").await;
    let node = at("node");
    done(&*session, vec![create(&node, b"")]).await;
    for version in 0..20 {
        let watch = async || session.get_and_watch(&node).await.expect("the session is connected").1;
        let dropped = watch().await;
        let kept = watch().await;
        drop(dropped);
        let later = watch().await;
        done(&*session, vec![set(&node, b"", version)]).await;
        fires(kept).await;
        fires(later).await;
    }
    session.close().await;
}

/// After `sync`, a session sees every write that was committed before.
async fn a_synchronised_session_sees_every_write(center: &dyn CoordClient) {
    let (session, at) = start(center, "sync").await;
    let other = open(center).await;
    done(&*session, vec![create(&at("node"), b"")]).await;
    for version in 0..20 {
        let stat = set_one(&*session, set(&at("node"), b"", version)).await;
        synchronise(&*other).await;
        assert_eq!(read(&*other, &at("node")).await.stat, stat);
    }
    other.close().await;
    session.close().await;
}

/// Of two sessions that create one node, one succeeds and the other is refused as the node exists.
async fn one_of_two_creations_succeeds(center: &dyn CoordClient) {
    let (session, at) = start(center, "creation").await;
    let other = open(center).await;
    for round in 0..20 {
        let node = at(&format!("node{round}"));
        let (first, second) =
            tokio::join!(session.multi(vec![ephemeral(&node, b"")]), other.multi(vec![ephemeral(&node, b"")]));
        let exists = Err(CoordError::Refused { index: 0, why: Refusal::NodeExists });
        let winner = if first.is_ok() { session.id() } else { other.id() };
        assert!([&first, &second].contains(&&Ok(vec![Done::Plain])), "{first:?} {second:?}");
        assert!([&first, &second].contains(&&exists), "{first:?} {second:?}");
        synchronise(&*session).await;
        assert_eq!(read(&*session, &node).await.stat.owner, Some(winner));
    }
    other.close().await;
    session.close().await;
}

/// Two sessions increment a number by compare-and-set: a stale read costs another round, but no increment.
async fn no_increment_is_lost(center: &dyn CoordClient) {
    const EACH: usize = 50;
    let (session, at) = start(center, "count").await;
    let other = open(center).await;
    let node = at("node");
    done(&*session, vec![create(&node, b"0")]).await;
    let count = async |session: Arc<dyn Session>| {
        synchronise(&*session).await;
        let mut counted = 0;
        while counted < EACH {
            let now = read(&*session, &node).await;
            let number: usize = String::from_utf8_lossy(&now.data).parse().expect("only numbers are written");
            let next = (number + 1).to_string();
            match session.multi(vec![set(&node, next.as_bytes(), now.stat.version)]).await {
                Ok(_) => counted += 1,
                Err(error) => assert_eq!(error, CoordError::Refused { index: 0, why: Refusal::BadVersion }),
            }
        }
    };
    tokio::join!(count(session.clone()), count(other.clone()));
    synchronise(&*session).await;
    let end = read(&*session, &node).await;
    assert_eq!(end.data, (2 * EACH).to_string().into_bytes());
    assert_eq!(end.stat.version, i32::try_from(2 * EACH).expect("it is small"));
    other.close().await;
    session.close().await;
}

/// Writes are sent without waiting for the answers to earlier ones.
async fn many_writes_are_in_flight_at_a_time(center: &dyn CoordClient) {
    const MANY: usize = 256;
    let (session, at) = start(center, "many").await;
    let nodes: Vec<String> = (0..MANY).map(|index| at(&format!("node{index:03}"))).collect();
    let mut writes = tokio::task::JoinSet::new();
    for node in nodes {
        let session = session.clone();
        writes.spawn(async move { session.multi(vec![create(&node, b""), set(&node, b"1", 0)]).await });
    }
    let mut numbers = std::collections::BTreeSet::new();
    for result in writes.join_all().await {
        match result.as_deref() {
            Ok([Done::Plain, Done::Set(stat)]) => assert!(numbers.insert(stat.modified), "each has its own number"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(session.children(&at("")).await.map(|names| names.len()), Ok(MANY));
    session.close().await;
}

/// Opens a session and creates a folder of this name. The returned function makes paths below that folder; an empty
/// name is the folder itself.
async fn start(center: &dyn CoordClient, folder: &'static str) -> (Arc<dyn Session>, impl Fn(&str) -> String) {
    let session = open(center).await;
    let at = move |name: &str| if name.is_empty() { format!("/{folder}") } else { format!("/{folder}/{name}") };
    done(&*session, vec![create(&at(""), b"")]).await;
    (session, at)
}

async fn open(center: &dyn CoordClient) -> Arc<dyn Session> {
    center.open().await.expect("the center opens sessions")
}

async fn done(session: &dyn Session, ops: Vec<Op>) -> Vec<Done> {
    let count = ops.len();
    let results = session.multi(ops.clone()).await.unwrap_or_else(|error| panic!("{error}: {ops:?}"));
    assert_eq!(results.len(), count, "one result for each operation");
    results
}

async fn set_one(session: &dyn Session, op: Op) -> Stat {
    match done(session, vec![op]).await[..] {
        [Done::Set(stat)] => stat,
        ref other => panic!("a set returns its node: {other:?}"),
    }
}

async fn refused(session: &dyn Session, ops: Vec<Op>, index: usize, why: Refusal) {
    let expected = Err(CoordError::Refused { index, why });
    assert_eq!(session.multi(ops.clone()).await, expected, "{ops:?}");
}

async fn read(session: &dyn Session, path: &str) -> Znode {
    let node = session.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    node.unwrap_or_else(|| panic!("{path} exists"))
}

async fn synchronise(session: &dyn Session) {
    session.sync().await.expect("the session is connected");
}

async fn fires(watch: Watch) {
    tokio::time::timeout(PATIENCE, watch.fired()).await.expect("the watch fires");
}

fn check(path: &str, version: i32) -> Op {
    Op::Check { path: path.to_owned(), version }
}

fn create(path: &str, data: &[u8]) -> Op {
    Op::Create { path: path.to_owned(), data: data.to_vec(), mode: CreateMode::Persistent }
}

fn ephemeral(path: &str, data: &[u8]) -> Op {
    Op::Create { path: path.to_owned(), data: data.to_vec(), mode: CreateMode::Ephemeral }
}

fn set(path: &str, data: &[u8], version: i32) -> Op {
    Op::Set { path: path.to_owned(), data: data.to_vec(), version }
}

fn delete(path: &str, version: i32) -> Op {
    Op::Delete { path: path.to_owned(), version }
}
