//! Tests settings from files and command lines.

use super::*;
use clap::CommandFactory;

fn raw(arguments: &[&str]) -> RawConfig {
    RawConfig::try_parse_from([&["taskd"], arguments].concat()).unwrap()
}

fn resolved(arguments: &[&str]) -> Result<Config> {
    raw(arguments).with_file()?.resolve(|name| (name == "HOME").then(|| "/people/x".into()))
}

fn refusal(arguments: &[&str]) -> String {
    let error = resolved(arguments).expect_err("it makes no sense");
    assert!(matches!(error.code, Code::BadRequest | Code::NotFound), "{error}");
    error.message
}

#[test]
fn the_declaration_is_consistent() {
    RawConfig::command().debug_assert();
}

#[test]
fn defaults_are_those_of_the_design() {
    let config =
        resolved(&["--standalone", "--node-id", "n", "--allow-path", "/a", "/b", "--allow-path", "/c"]).unwrap();
    assert_eq!(
        (config.slots, config.retention, config.quiet_after),
        (4, Duration::from_secs(604_800), Duration::from_secs(30))
    );
    assert_eq!(config.store, Store::Embedded);
    assert_eq!(config.allow_paths, ["/a", "/b", "/c"].map(PathBuf::from));
    assert_eq!(config.state_dir, Path::new("/people/x/.local/state/blockhaul"));
    assert!(config.listen.ip().is_loopback() && config.tls.is_none() && config.metrics.is_none());
}

#[test]
fn a_node_of_a_center_has_a_name_and_an_ensemble() {
    let config = resolved(&["--node-id", "n1", "--zookeeper", "a:1,b:2/c", "--session-timeout", "20s"]).unwrap();
    let session_timeout = Duration::from_secs(20);
    assert_eq!(config.store, Store::ZooKeeper { address: "a:1,b:2/c".to_owned(), auth: None, session_timeout });
    assert!(refusal(&["--zookeeper", "a:1"]).contains("--node-id"));
    assert!(refusal(&[]).contains("--standalone") && refusal(&[]).contains("--node-id"));
    assert!(refusal(&["--node-id", "n"]).contains("--standalone"));
    assert!(refusal(&["--node-id", "a/b", "--standalone"]).contains("a/b"));
}

#[test]
fn roles_need_certificates() {
    let why = refusal(&["--standalone", "--node-id", "n", "--roles", "/etc/roles.toml"]);
    assert!(["--roles", "--tls-cert"].iter().all(|word| why.contains(word)), "{why}");
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::io::Write::write_all(&mut file, b"standalone = true\nnode-id = 'n'\nroles = '/etc/roles.toml'\n").unwrap();
    assert!(refusal(&["--config", file.path().to_str().unwrap()]).contains("--roles"));
}

#[test]
fn what_other_hosts_reach_is_protected_or_said_to_be_insecure() {
    assert!(refusal(&["--standalone", "--listen", "0.0.0.0:7400"]).contains("--insecure"));
    assert!(refusal(&["--standalone", "--listen", "[::]:7400"]).contains("--tls-cert"));
    assert!(refusal(&["--standalone", "--metrics", "0.0.0.0:9"]).contains("--metrics"));
    assert!(resolved(&["--standalone", "--listen", "0.0.0.0:7400", "--insecure"]).is_ok());
    assert!(resolved(&["--standalone", "--listen", "[::1]:7400"]).is_ok());
    // A service address is answered, wherever else this node listens.
    let vip = ["--standalone", "--listen", "127.0.0.1:7400", "--vip", "10.0.0.100/24@eth0"];
    let why = refusal(&vip);
    assert!(["--vip", "--tls-cert", "--insecure"].iter().all(|word| why.contains(word)), "{why}");
    assert!(resolved(&[&vip[..], &["--insecure"]].concat()).is_ok());
}

#[test]
fn no_duration_is_too_long_to_be_refused_or_obeyed() {
    let flags =
        ["--retention", "--quiet-after", "--session-timeout", "--data-channel-interval", "--data-channel-timeout"];
    for flag in flags {
        for time in ["18446744073709551615s", "18446744073709551615ms", "213503982334601d", "36500d"] {
            let words = ["--standalone", "--node-id", "n", "--data-address", "127.0.0.1", flag, time];
            if let Err(error) = resolved(&words) {
                assert!(error.code == Code::BadRequest && error.message.contains(flag), "{error}");
            } else {
                assert!(time == "36500d" && ["--retention", "--quiet-after"].contains(&flag), "{flag} {time}");
            }
        }
    }
}

#[test]
fn each_refusal_names_its_flag() {
    for (flag, value) in [
        ("--listen", "nowhere"),
        ("--listen", "127.0.0.1:90936"),
        ("--metrics", "127.0.0.1:+80"),
        ("--data-address", "127.0.0.1:90936"),
        ("--advertise", "host"),
        ("--advertise", "host:90936"),
        ("--advertise", "host:0"),
        ("--slots", "0"),
        ("--slots", "257"),
        ("--retention", "7"),
        ("--quiet-after", "soon"),
        ("--session-timeout", "5s"),
        ("--allow-nbd", "host:port"),
        ("--allow-nbd", "host:+80"),
        ("--listen", "127.0.0.1:+80"),
        ("--advertise", "host:+80"),
        ("--data-address", "10.0.0.1:+80"),
        ("--label", "plain"),
        ("--memory", "much"),
        ("--data-address", "0.0.0.0"),
        ("--data-channel-timeout", "5s"),
        ("--data-channel-interval", "1s"),
        ("--tls-cert", "/none"),
    ] {
        let message = refusal(&["--standalone", flag, value]);
        assert!(message.contains(flag), "{flag} {value}: {message}");
    }
    assert!(refusal(&["--standalone", "--config", "/does/not/exist.toml"]).contains("/does/not/exist.toml"));
}

#[test]
fn flags_win_over_the_file_whatever_its_kind() {
    let scratch = tempfile::tempdir().unwrap();
    let toml = "standalone = true\nnode-id = \"f\"\nslots = 9\nallow-path = [\"/f\"]\nretention = \"1h\"\n";
    let json = r#"{"standalone": true, "node-id": "f", "slots": 9, "allow-path": ["/f"], "retention": "1h"}"#;
    for (name, text) in [("c.toml", toml), ("c.json", json)] {
        let file = scratch.path().join(name);
        std::fs::write(&file, text).unwrap();
        let config = resolved(&["--config", file.to_str().unwrap(), "--slots", "2", "--node-id", "flag"]).unwrap();
        assert_eq!((config.node.as_str(), config.slots, config.retention), ("flag", 2, Duration::from_secs(3600)));
        assert_eq!((config.store, config.allow_paths), (Store::Embedded, vec![PathBuf::from("/f")]));
    }
}

#[test]
fn the_store_on_the_command_line_replaces_the_files() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("c");
    std::fs::write(&file, "zookeeper = \"a:1\"\nnode-id = \"n\"\n").unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(resolved(&["--config", path, "--standalone"]).unwrap().store, Store::Embedded);
    std::fs::write(&file, "standalone = true\nnode-id = \"n\"\n").unwrap();
    assert!(matches!(resolved(&["--config", path, "--zookeeper", "a:1"]).unwrap().store, Store::ZooKeeper { .. }));
}

#[test]
fn a_file_that_says_something_else_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("c.toml");
    for text in ["slot = 3", "slots = \"three\"", "[slots]", "config = \"x\"", "\u{0}", "standalone"] {
        std::fs::write(&file, text).unwrap();
        let message = refusal(&["--config", file.to_str().unwrap()]);
        assert!(message.contains("c.toml"), "{text:?}: {message}");
    }
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(refusal(&["--config", file.to_str().unwrap()]).contains("not UTF-8 text"));
}

#[test]
fn the_storage_network_is_watched_if_the_node_has_an_address_there() {
    let config = |more: &[&str]| resolved(&[&["--standalone", "--data-address", "eth1:7401"], more].concat());
    let (address, terms) = config(&[]).unwrap().data.unwrap();
    assert_eq!(address.to_string(), "eth1:7401");
    assert_eq!((terms.interval, terms.timeout), (Duration::from_secs(1), Duration::from_secs(5)));
    for bad in [
        &["--data-channel-interval", "49ms"][..],
        &["--data-channel-timeout", "2s"],
        &["--data-channel-timeout", "61s"],
        &["--data-channel-interval", "2s", "--data-channel-timeout", "5s"],
    ] {
        let error = config(bad).expect_err("it would judge by chance");
        assert!(error.code == Code::BadRequest && error.message.contains("--data-channel-"), "{bad:?}: {error}");
    }
    assert!(resolved(&["--standalone"]).unwrap().data.is_none());
}

/// A registration is one record: what does not fit is refused here instead of being retried for ever.
#[test]
fn what_a_registration_has_no_room_for_is_refused_with_the_sizes() {
    let paths: Vec<String> = (0..150).map(|number| format!("/srv/volumes/of/some/customer/{number:032}")).collect();
    let words: Vec<&str> =
        ["--standalone", "--allow-path"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let message = refusal(&words);
    for part in ["8192", "150 --allow-path take 9300", "0 --label", "folders above"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(resolved(&words[..100]).is_ok());
    let labels: Vec<String> = (0..40).map(|number| format!("--label=key{number}={}", "v".repeat(240))).collect();
    let words: Vec<&str> = ["--standalone"].into_iter().chain(labels.iter().map(String::as_str)).collect();
    assert!(refusal(&words).contains("40 --label"));
}
