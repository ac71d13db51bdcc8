//! A center that not everybody may use: certificates between all its parts, credentials in the coordination service.

use crate::support::{Cell, NEEDS, Need, Records, need, port, run, text};
use blockhaul_control::coord::{CoordError, Refusal};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

/// A certificate for `127.0.0.1`, signed by the authority of that name, which is made when it is missing; the flags that
/// name its files.
fn certificate(cell: &Cell, authority: &str, name: &str) -> Vec<String> {
    let path = |file: &str| cell.site.path(file);
    let (ca, ca_key) = (path(&format!("{authority}.pem")), path(&format!("{authority}.key")));
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
    let request = |file: &PathBuf, more: &[&str]| {
        run("openssl", &[&["req", "-x509", "-days", "2"], &key[..], &[text(file)], more].concat());
    };
    if !ca.exists() {
        request(&ca_key, &["-subj", &format!("/CN={authority}"), "-out", text(&ca)]);
    }
    let (own, own_key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
    let names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
    let signer = ["-CA", text(&ca), "-CAkey", text(&ca_key), "-subj", "/CN=node", "-out", text(&own)];
    request(&own_key, &[&names[..], &signer].concat());
    let flags = ["--tls-cert", text(&own), "--tls-key", text(&own_key), "--tls-ca", text(&ca)];
    flags.map(str::to_owned).to_vec()
}

#[test]
fn with_certificates_nodes_and_clients_know_each_other_and_nobody_else() {
    let needs = [&NEEDS[..], &[Need::Program("openssl")]].concat();
    need!("with_certificates_nodes_and_clients_know_each_other_and_nobody_else", &needs);
    let mut cell = Cell::idle(2, 1, &[]);
    for index in 0..2 {
        let flags = certificate(&cell, "ours", &format!("n{index}"));
        cell.nodes[index].tell(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        cell.nodes[index].start();
    }
    let client = certificate(&cell, "ours", "client");
    let stranger = certificate(&cell, "theirs", "stranger");
    let ask = |words: &[&str], flags: &[String]| {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        cell.blockhaul(&[words, &flags].concat())
    };
    // They try for as long as a client does, one with a certificate of its own and one without any.
    let stranger: Vec<&str> = stranger.iter().map(String::as_str).collect();
    let strangers = [&stranger[..], &[]].map(|flags| cell.launch(&[&["center"], flags].concat()));
    cell.wait_until("both nodes", |_| {
        let seen = ask(&["runners"], &client).lines;
        seen.iter().filter(|node| node["registered"] == true).count() == 2
    });
    // Both run something, whoever leads: each call of the one by the other is answered.
    for node in ["n0", "n1"] {
        let done = ask(&["submit", "noop", "10ms", "--id", node, "--node", node, "--wait"], &client);
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    for stranger in strangers {
        let refused = stranger.end();
        assert_eq!(refused.code, Some(1), "{refused:?}");
    }
}

#[test]
fn with_credentials_only_the_center_writes_its_records() {
    need!("with_credentials_only_the_center_writes_its_records", &NEEDS);
    let mut cell = Cell::idle(2, 1, &[]);
    let file = cell.site.file("credentials", b"digest:center:secret\n");
    for node in &mut cell.nodes {
        node.tell(&["--zookeeper-auth", text(&file)]);
    }
    cell.start();
    cell.submit_noop("noop", Duration::from_millis(10), &[]);
    cell.wait_for_success("noop");
    let stranger = Records::of(&cell.ensemble.addresses());
    let refused = CoordError::Refused { index: 0, why: Refusal::NoAuth };
    for path in ["/cell/tasks/00/x", "/cell/claims/00/x", "/cell/runners/n7", "/cell/x"] {
        assert_eq!(stranger.create(path, b"{}"), Err(refused.clone()), "{path}");
    }
    assert_eq!(stranger.set("/cell/leader_epoch", b"{}").map_err(|_| ()), Err(()));
}

#[test]
fn a_center_that_cannot_be_used_is_named_with_what_it_answers() {
    need!("a_center_that_cannot_be_used_is_named_with_what_it_answers", &NEEDS);
    let mut cell = Cell::idle(2, 1, &[]);
    let own = cell.site.file("credentials", b"digest:center:secret\n");
    let wrong = cell.site.file("wrong", b"digest:center:guessed\n");
    let metrics = format!("127.0.0.1:{}", port());
    cell.nodes[0].tell(&["--zookeeper-auth", text(&own)]);
    cell.nodes[0].start();
    cell.wait_until("one leads", |cell| cell.leader().is_some());
    cell.nodes[1].tell(&["--zookeeper-auth", text(&wrong), "--metrics", &metrics]);
    cell.nodes[1].start();
    cell.wait_until("the wrong password is named", |cell| cell.nodes[1].said().contains("look at --zookeeper-auth"));
    let mut page = String::new();
    let mut stream = TcpStream::connect(&metrics).expect("metrics are served");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it listens");
    stream.read_to_string(&mut page).expect("it answers");
    assert!(page.lines().any(|line| line == "blockhaul_serving 0"), "{page}");
    assert_eq!(cell.nodes[1].stop().code(), Some(0));
    // Something that is no ZooKeeper, and nothing at all.
    let (other, nobody) = (cell.nodes[0].address(), format!("127.0.0.1:{}", port()));
    cell.nodes[1].tell(&["--zookeeper", &format!("{nobody},{other}/cell")]);
    cell.nodes[1].start();
    cell.wait_until("what is tried and what is answered", |cell| {
        let said = cell.nodes[1].said();
        said.contains(&format!("{nobody}: Connection refused")) && said.contains(&format!("{other}: "))
    });
    assert_eq!(cell.nodes[1].stop().code(), Some(0));
}
