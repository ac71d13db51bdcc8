//! Tests that the copies of a node follow the setting `bandwidth`.

use super::*;
use crate::model::{SettingName, Settings};

fn store_settings(harness: &Harness, value: &str) {
    let mut settings = Settings::default();
    settings.set(SettingName::Bandwidth, value, 0).unwrap();
    let (path, data) = (paths::SETTINGS.to_owned(), settings.encode());
    let version = harness.store.get(paths::SETTINGS).map(|node| node.stat.version);
    harness.store.write(&[match version {
        Some(version) => Op::Set { path, data, version },
        None => Op::Create { path, data, mode: CreateMode::Persistent },
    }]);
}

#[tokio::test(start_paused = true)]
async fn copies_of_a_node_share_the_rate_that_the_settings_say_now() {
    let harness = Harness::new().await;
    let bandwidth = || *harness.executor.bandwidth.lock().unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bandwidth(), None);
    store_settings(&harness, "100MiB/s");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(bandwidth(), Some(100 << 20));
    // The clock of the test begins at 22:13:20 UTC.
    store_settings(&harness, "22:20-23:00 1MiB/s; 2MiB/s");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(bandwidth(), Some(2 << 20));
    // Neither without the service, nor with what a later version has written, does the node forget the windows.
    harness.store.cut(true);
    harness.clock.jump(600_000);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bandwidth(), Some(1 << 20));
    harness.store.cut(false);
    let version = harness.store.get(paths::SETTINGS).unwrap().stat.version;
    let later = Settings { bandwidth: Some(String::from("weekly 1MiB/s")), ..Settings::default() };
    harness.store.write(&[Op::Set { path: paths::SETTINGS.to_owned(), data: later.encode(), version }]);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bandwidth(), Some(1 << 20));
    store_settings(&harness, "none");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(bandwidth(), None);
}
