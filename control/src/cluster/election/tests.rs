//! Elections over a simulated ensemble.

use super::*;
use crate::coord::Center;
use crate::coord::sim::{Ensemble, Weather};
use tokio::time::sleep;

const T: Duration = Duration::from_secs(10);

struct Candidate {
    session: Arc<dyn Session>,
    roles: watch::Receiver<Role>,
    stand: watch::Sender<bool>,
}

async fn candidate(ensemble: &Ensemble, node: &str, life: &str) -> Candidate {
    candidate_after(ensemble, node, life, &[]).await
}

/// One that knows of these lives of its node.
async fn candidate_after(ensemble: &Ensemble, node: &str, life: &str, lives: &[&str]) -> Candidate {
    let center: Arc<dyn Center> = ensemble.client(node);
    let session = loop {
        match center.open().await {
            Ok(session) => break session,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let (roles, (stand, stands)) = (Election::roles(), watch::channel(true));
    let (name, incarnation) = (NodeId::new(node).unwrap(), Incarnation(life.to_owned()));
    let election = Election::new(session.clone(), name, incarnation, format!("{node}:1"), roles.clone());
    let election = election.after(lives.iter().map(|&life| Incarnation(life.to_owned())).collect());
    tokio::spawn(async move { election.run(stands).await });
    Candidate { session, roles: roles.subscribe(), stand }
}

impl Candidate {
    async fn reign(&mut self) -> Reign {
        match &*self.roles.wait_for(|role| matches!(role, Role::Leader(_))).await.unwrap() {
            Role::Leader(reign) => reign.clone(),
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
    vec![Op::Create { path: path.to_owned(), data: Vec::new(), life: Life::Persistent }]
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_others_know_where() {
    let ensemble = Ensemble::new(1, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let reign = first.reign().await;
    let mut second = candidate(&ensemble, "b", "1").await;
    second.follows("a:1").await;
    assert_eq!(second.roles.borrow().not_leader().code, Code::NotLeader);
    assert!(second.roles.borrow().not_leader().message.starts_with("a:1 leads"));
    assert_eq!(reign.commit(write("/x")).await.unwrap(), [Done::Plain]);
    let refused = reign.commit(write("/x")).await.unwrap_err();
    assert_eq!(refused, CoordError::Refused { index: 0, why: Refusal::NodeExists }.into());
    assert!(!reign.is_over(), "a refusal of the write itself deposes nobody");
}

#[tokio::test(start_paused = true)]
async fn who_resigns_is_followed_at_once_and_stands_again_when_asked_to() {
    let ensemble = Ensemble::new(2, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let old = first.reign().await;
    let mut second = candidate(&ensemble, "b", "1").await;
    second.follows("a:1").await;
    let start = Instant::now();
    first.stand.send_replace(false);
    let new = second.reign().await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(new.epoch() > old.epoch());
    assert_eq!(old.commit(write("/x")).await, Err(CommitError::Deposed));
    first.follows("b:1").await;
    first.stand.send_replace(true);
    second.stand.send_replace(false);
    assert!(first.reign().await.epoch() > new.epoch());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_steps_down_before_the_next_one_begins() {
    let ensemble = Ensemble::new(3, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let old = first.reign().await;
    let mut second = candidate(&ensemble, "b", "1").await;
    second.follows("a:1").await;
    ensemble.cut("a");
    let start = Instant::now();
    let ended = tokio::spawn(async move {
        old.over().await;
        Instant::now()
    });
    second.reign().await;
    assert!(start.elapsed() <= Duration::from_secs(14), "{:?}", start.elapsed());
    assert!(ended.await.unwrap() < Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stepped_down_and_still_holds_the_office_is_elected_anew() {
    let ensemble = Ensemble::new(7, T);
    let mut only = candidate(&ensemble, "a", "1").await;
    let old = only.reign().await;
    ensemble.cut("a");
    old.over().await;
    ensemble.mend("a");
    // The session has outlived it, and with it the node that says who leads.
    let start = Instant::now();
    while only.reign().await.epoch() == old.epoch() && start.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(50)).await;
    }
    let (session, new) = (only.session.id(), only.reign().await);
    assert_eq!(ensemble.committed(LEADER).unwrap().stat.owner, Some(session));
    assert!(new.epoch() > old.epoch(), "{:?} after {:?}", new.epoch(), old.epoch());
    assert_eq!(new.commit(write("/x")).await.unwrap(), [Done::Plain]);
}

#[tokio::test(start_paused = true)]
async fn a_zombie_writes_nothing() {
    let ensemble = Ensemble::new(4, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let zombie = first.reign().await;
    let other = candidate(&ensemble, "operator", "1").await;
    other.stand.send_replace(false);
    let node = ensemble.committed(LEADER_EPOCH).unwrap();
    let bump = Op::Set { path: LEADER_EPOCH.to_owned(), data: node.data, version: node.stat.version };
    other.session.multi(vec![bump]).await.unwrap();
    assert!(!zombie.is_over());
    assert_eq!(zombie.commit(write("/x")).await, Err(CommitError::Deposed));
    assert!(zombie.is_over() && ensemble.committed("/x").is_none());
    zombie.over().await;
    // The look at the role may come before the election's own at what has become of its reign.
    while first.reign().await.epoch() <= zombie.epoch() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_leadership_of_an_earlier_life_of_the_node_is_removed_at_once() {
    let ensemble = Ensemble::new(5, T);
    let mut dead = candidate(&ensemble, "a", "1").await;
    let old = dead.reign().await;
    let start = Instant::now();
    let mut anew = candidate_after(&ensemble, "a", "2", &["1", "2"]).await;
    assert!(anew.reign().await.epoch() > old.epoch());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_leadership_of_another_process_of_the_same_name_is_left_alone() {
    let ensemble = Ensemble::new(6, T);
    let mut first = candidate(&ensemble, "a", "1").await;
    let reign = first.reign().await;
    let mut double = candidate_after(&ensemble, "a", "x", &["w", "x"]).await;
    double.follows("a:1").await;
    sleep(T * 3).await;
    assert_eq!(reign.commit(write("/x")).await.unwrap(), [Done::Plain]);
}

#[tokio::test(start_paused = true)]
async fn with_lost_answers_and_watches_there_is_still_one_leader_at_a_time() {
    for seed in 0..50 {
        fastrand::seed(seed);
        let ensemble = Ensemble::new(seed, T);
        let weather =
            Weather { lost_reply: 0.3, late_write: 0.5, lost_watch: 0.3, lag_ms: (0, 200), ..Weather::default() };
        ensemble.set_weather(weather);
        let mut nodes = Vec::new();
        for node in ["a", "b", "c"] {
            nodes.push(candidate(&ensemble, node, "1").await);
        }
        let mut written = 0;
        for round in 0..20 {
            sleep(Duration::from_secs(1)).await;
            let reigns = nodes.iter().filter_map(|node| match &*node.roles.borrow() {
                Role::Leader(reign) => Some(reign.clone()),
                Role::Follower { .. } => None,
            });
            for reign in reigns.collect::<Vec<_>>() {
                let path = format!("/x{round}-{}", reign.epoch().0);
                if reign.commit(write(&path)).await.is_ok() {
                    let node = ensemble.committed(LEADER_EPOCH).unwrap();
                    assert_eq!(Epoch::from(node.stat.modified), reign.epoch(), "seed {seed}");
                    written += 1;
                }
            }
            if round % 5 == 4 {
                ensemble.reset(["a", "b", "c"][round / 5 % 3]);
            }
        }
        assert!(written > 0, "seed {seed}: somebody leads");
    }
}

#[test]
fn a_node_that_is_cut_off_says_so_now_and_then() {
    let start = Instant::now();
    let mut trouble = Trouble::default();
    let mut said =
        |error: Option<&CoordError>, second: f64| trouble.is_news(error, start + Duration::from_secs_f64(second));
    let away = CoordError::NotConnected;
    assert!(said(Some(&away), 0.0));
    let repeated = (1..=480).filter(|quarter| said(Some(&away), f64::from(*quarter) / 4.0)).count();
    assert_eq!(repeated, 4, "in two minutes");
    let other = CoordError::Unknown(String::from("no answer"));
    assert!(said(Some(&other), 120.25) && !said(Some(&other), 120.5), "another one is news");
    assert!(!said(None, 120.75), "success is not");
    assert!(said(Some(&other), 121.0), "what comes after it is");
}

#[tokio::test(start_paused = true)]
async fn a_leader_steps_down_when_the_service_goes_back_to_before_its_election() {
    let ensemble = Ensemble::new(6, T);
    // Its session is older than the backup, its election is not.
    let mut only = candidate(&ensemble, "a", "1").await;
    only.stand.send_replace(false);
    while ensemble.committed(LEADER).is_some() {
        sleep(Duration::from_millis(50)).await;
    }
    let backup = ensemble.snapshot();
    only.stand.send_replace(true);
    let lost = only.reign().await;
    ensemble.regress(&backup);
    let start = Instant::now();
    while !lost.is_over() && start.elapsed() < Duration::from_secs(60) {
        // Others come, until the service has counted on to where the leader has been.
        ensemble.client("b").open().await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() < DISCONNECTED_MAX, "{:?}: by itself", start.elapsed());
    assert_eq!(lost.commit(write("/x")).await, Err(CommitError::Deposed));
    loop {
        let reign = only.reign().await;
        if reign.epoch() != lost.epoch() && reign.commit(write("/x")).await.is_ok() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
}
