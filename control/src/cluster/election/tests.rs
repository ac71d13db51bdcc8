//! Tests elections over a simulated ensemble.

use super::*;
use crate::coord::CoordClient;
use crate::coord::sim::{Ensemble, FaultRates};
use tokio::time::sleep;

const T: Duration = Duration::from_secs(10);

struct Candidate {
    session: Arc<dyn Session>,
    roles: watch::Receiver<Role>,
    stand: watch::Sender<bool>,
}

async fn candidate(ensemble: &Ensemble, node: &str, incarnation: &str) -> Candidate {
    candidate_after(ensemble, node, incarnation, &[]).await
}

/// Creates a candidate that knows of these incarnations of its node.
async fn candidate_after(ensemble: &Ensemble, node: &str, incarnation: &str, incarnations: &[&str]) -> Candidate {
    let center: Arc<dyn CoordClient> = ensemble.client(node);
    let session = loop {
        match center.open().await {
            Ok(session) => break session,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let (roles, (stand, stands)) = (Election::roles(), watch::channel(true));
    let (name, incarnation) = (NodeId::new(node).unwrap(), Incarnation(incarnation.to_owned()));
    let election = Election::new(session.clone(), name, incarnation, format!("{node}:1"), roles.clone());
    let election =
        election.after(incarnations.iter().map(|&incarnation| Incarnation(incarnation.to_owned())).collect());
    tokio::spawn(async move { election.run(stands).await });
    Candidate { session, roles: roles.subscribe(), stand }
}

impl Candidate {
    async fn leader_term(&mut self) -> LeaderTerm {
        match &*self.roles.wait_for(|role| matches!(role, Role::Leader(_))).await.unwrap() {
            Role::Leader(leader_term) => leader_term.clone(),
            Role::Follower { .. } => unreachable!("waited for a leader"),
        }
    }

    async fn follows(&mut self, address: &str) {
        let is_it = |role: &Role| {
            matches!(role, Role::Follower { .. }) && role.leader().is_some_and(|leader| leader.address == address)
        };
        self.roles.wait_for(is_it).await.unwrap();
    }
}

fn write(path: &str) -> Vec<Op> {
    vec![Op::Create { path: path.to_owned(), data: Vec::new(), mode: CreateMode::Persistent }]
}

#[tokio::test(start_paused = true)]
async fn one_node_leads_and_the_others_know_its_address() {
    let ensemble = Ensemble::new(1, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let leader_term = first.leader_term().await;
    let mut second = candidate(&ensemble, "b", "1").await;
    second.follows("a:1").await;
    assert_eq!(second.roles.borrow().not_leader().code, Code::NotLeader);
    assert!(second.roles.borrow().not_leader().message.ends_with("ask a:1"));
    assert_eq!(leader_term.commit(write("/x")).await.unwrap(), [Done::Plain]);
    let refused = leader_term.commit(write("/x")).await.unwrap_err();
    assert_eq!(refused, CoordError::Refused { index: 0, why: Refusal::NodeExists }.into());
    assert!(!leader_term.has_ended(), "a refusal of the write itself does not end the term");
}

#[tokio::test(start_paused = true)]
async fn another_node_leads_at_once_after_a_resignation() {
    let ensemble = Ensemble::new(2, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let old = first.leader_term().await;
    let mut second = candidate(&ensemble, "b", "1").await;
    second.follows("a:1").await;
    let start = Instant::now();
    first.stand.send_replace(false);
    let new = second.leader_term().await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(new.epoch() > old.epoch());
    assert_eq!(old.commit(write("/x")).await, Err(CommitError::LostLeadership));
    first.follows("b:1").await;
    first.stand.send_replace(true);
    second.stand.send_replace(false);
    assert!(first.leader_term().await.epoch() > new.epoch());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_steps_down_before_the_next_one_begins() {
    let ensemble = Ensemble::new(3, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let old = first.leader_term().await;
    let mut second = candidate(&ensemble, "b", "1").await;
    second.follows("a:1").await;
    ensemble.cut("a");
    let start = Instant::now();
    let ended = tokio::spawn(async move {
        old.ended().await;
        Instant::now()
    });
    second.leader_term().await;
    assert!(start.elapsed() <= Duration::from_secs(14), "{:?}", start.elapsed());
    assert!(ended.await.unwrap() < Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stepped_down_and_still_holds_leadership_is_elected_again() {
    let ensemble = Ensemble::new(7, T);
    let mut only = candidate(&ensemble, "a", "1").await;
    let old = only.leader_term().await;
    ensemble.cut("a");
    old.ended().await;
    ensemble.mend("a");
    // The session has outlived the term, and `/leader` with it.
    let start = Instant::now();
    while only.leader_term().await.epoch() == old.epoch() && start.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(50)).await;
    }
    let (session, new) = (only.session.id(), only.leader_term().await);
    assert_eq!(ensemble.committed(LEADER).unwrap().stat.owner, Some(session));
    assert!(new.epoch() > old.epoch(), "{:?} after {:?}", new.epoch(), old.epoch());
    assert_eq!(new.commit(write("/x")).await.unwrap(), [Done::Plain]);
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_writes_nothing() {
    let ensemble = Ensemble::new(4, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let zombie = first.leader_term().await;
    let other = candidate(&ensemble, "operator", "1").await;
    other.stand.send_replace(false);
    let node = ensemble.committed(LEADER_EPOCH).unwrap();
    let bump = Op::Set { path: LEADER_EPOCH.to_owned(), data: node.data, version: node.stat.version };
    other.session.multi(vec![bump]).await.unwrap();
    assert!(!zombie.has_ended());
    assert_eq!(zombie.commit(write("/x")).await, Err(CommitError::LostLeadership));
    assert!(zombie.has_ended() && ensemble.committed("/x").is_none());
    zombie.ended().await;
    // This task may read the role before the election has noticed the end of its term.
    while first.leader_term().await.epoch() <= zombie.epoch() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_leadership_of_an_earlier_incarnation_is_removed_at_once() {
    let ensemble = Ensemble::new(5, T);
    let mut dead = candidate(&ensemble, "a", "1").await;
    let old = dead.leader_term().await;
    let start = Instant::now();
    let mut restarted = candidate_after(&ensemble, "a", "2", &["1", "2"]).await;
    assert!(restarted.leader_term().await.epoch() > old.epoch());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_leadership_of_another_process_of_the_same_name_is_left_alone() {
    let ensemble = Ensemble::new(6, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let leader_term = first.leader_term().await;
    let mut double = candidate_after(&ensemble, "a", "x", &["w", "x"]).await;
    double.follows("a:1").await;
    sleep(T * 3).await;
    assert_eq!(leader_term.commit(write("/x")).await.unwrap(), [Done::Plain]);
}

#[tokio::test(start_paused = true)]
async fn with_lost_answers_and_watches_there_is_still_one_leader_at_a_time() {
    for seed in 0..50 {
        fastrand::seed(seed);
        let ensemble = Ensemble::new(seed, T);
        let fault_rates =
            FaultRates { lost_reply: 0.3, late_write: 0.5, lost_watch: 0.3, lag_ms: (0, 200), ..FaultRates::default() };
        ensemble.set_fault_rates(fault_rates);
        let mut nodes = Vec::new();
        for node in ["a", "b", "c"] {
            nodes.push(candidate(&ensemble, node, "1").await);
        }
        let mut written = 0;
        for round in 0..20 {
            sleep(Duration::from_secs(1)).await;
            let leader_terms = nodes.iter().filter_map(|node| match &*node.roles.borrow() {
                Role::Leader(leader_term) => Some(leader_term.clone()),
                Role::Follower { .. } => None,
            });
            for leader_term in leader_terms.collect::<Vec<_>>() {
                let path = format!("/x{round}-{}", leader_term.epoch().0);
                if leader_term.commit(write(&path)).await.is_ok() {
                    let node = ensemble.committed(LEADER_EPOCH).unwrap();
                    assert_eq!(Epoch::from(node.stat.modified), leader_term.epoch(), "seed {seed}");
                    written += 1;
                }
            }
            if round % 5 == 4 {
                ensemble.reset(["a", "b", "c"][round / 5 % 3]);
            }
        }
        assert!(written > 0, "seed {seed}: no leader has written");
    }
}

#[test]
fn repeated_failures_are_logged_now_and_then() {
    let start = Instant::now();
    let mut logged_failure = LoggedFailure::default();
    let mut should_log = |error: Option<&CoordError>, second: f64| {
        logged_failure.should_log(error, start + Duration::from_secs_f64(second))
    };
    let away = CoordError::NotConnected;
    assert!(should_log(Some(&away), 0.0));
    let repeated = (1..=480).filter(|quarter| should_log(Some(&away), f64::from(*quarter) / 4.0)).count();
    assert_eq!(repeated, 4, "in two minutes");
    let other = CoordError::Unknown(String::from("no answer"));
    assert!(should_log(Some(&other), 120.25) && !should_log(Some(&other), 120.5), "another failure is logged");
    assert!(!should_log(None, 120.75), "a success is not logged");
    assert!(should_log(Some(&other), 121.0), "a failure after a success is logged");
}

#[tokio::test(start_paused = true)]
async fn a_leader_steps_down_when_the_service_goes_back_to_before_its_election() {
    let ensemble = Ensemble::new(6, T);
    // The leader's session is older than the backup; its election is later.
    let mut only = candidate(&ensemble, "a", "1").await;
    only.stand.send_replace(false);
    while ensemble.committed(LEADER).is_some() {
        sleep(Duration::from_millis(50)).await;
    }
    let backup = ensemble.snapshot();
    only.stand.send_replace(true);
    let lost = only.leader_term().await;
    ensemble.regress(&backup);
    let start = Instant::now();
    while !lost.has_ended() && start.elapsed() < Duration::from_secs(60) {
        // Other sessions open until the service has used up the transaction numbers that the leader has seen.
        ensemble.client("b").open().await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() < DISCONNECTED_MAX, "{:?}: by itself", start.elapsed());
    assert_eq!(lost.commit(write("/x")).await, Err(CommitError::LostLeadership));
    loop {
        let leader_term = only.leader_term().await;
        if leader_term.epoch() != lost.epoch() && leader_term.commit(write("/x")).await.is_ok() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
}
