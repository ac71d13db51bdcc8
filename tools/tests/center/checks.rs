//! Tests `submit ... --check`: nodes say what they would do with a task, and nothing is submitted or changed.

use crate::support::{MIB, NEEDS, TestCluster, need, noise};

#[test]
fn nodes_check_a_task_that_is_not_submitted() {
    let name = "nodes_check_a_task_that_is_not_submitted";
    need!(name, &NEEDS);
    let cluster = TestCluster::new(2, 1);
    cluster.fill("a", &noise(4 * MIB, 1));
    cluster.fill("full", &noise(MIB, 2));
    let (source, missing) = (cluster.uri(1, "a"), cluster.uri(1, "b"));
    let plan = cluster.ask(&["submit", "copy", &source, &missing, "--id", "t", "--check"]);
    assert_eq!((plan.len(), &plan[0]["event"], &plan[0]["node"]), (1, &"check".into(), &"n1".into()), "{plan:?}");
    assert_eq!((&plan[0]["plan"]["source_bytes"], plan[0]["refusal"].is_null()), (&(4 * MIB).into(), true), "{plan:?}");
    assert!(!cluster.volume("b").exists());
    let full = cluster.blockhaul(&["submit", "copy", &source, &cluster.uri(1, "full"), "--check"]);
    assert_eq!((full.code, &full.lines[0]["refusal"]["code"]), (Some(1), &"EExists".into()), "{full:?}");
    let outside = cluster.blockhaul(&["submit", "copy", &source, "file://n1/etc/passwd", "--check"]);
    assert_eq!((outside.code, &outside.lines[0]["refusal"]["code"]), (Some(1), &"EPermission".into()), "{outside:?}");
    let both = cluster.ask(&["submit", "noop", "--check"]);
    let nodes: Vec<_> = both.iter().filter_map(|check| check["node"].as_str()).collect();
    assert!(nodes.len() == 2 && nodes.contains(&"n0") && nodes.contains(&"n1"), "{both:?}");
    let hook = cluster.blockhaul(&["submit", "run", "h", "--node", "n0", "--check"]);
    assert_eq!((hook.code, &hook.lines[0]["refusal"]["code"]), (Some(1), &"EUnsupported".into()), "{hook:?}");
    assert!(cluster.ask(&["list"]).is_empty());
}
