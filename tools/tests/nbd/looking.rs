//! Tests `blockhaul map` of exports and servers.

use crate::support::{Export, Kind, MIB, Need, Server, TestDirs, need, noise, run};
use serde_json::Value;

const NEEDS: [Need; 4] =
    [Need::Program("nbdkit"), Need::Program("nbdinfo"), Need::Program("qemu-nbd"), Need::Program("setpriv")];

/// Returns the lines of `blockhaul map --json`.
fn map(dirs: &TestDirs, uri: &str) -> Vec<Value> {
    let output = dirs.command(&crate::support::program(), &["map", "--json", uri]).output().expect("it was built");
    assert!(output.status.success(), "map {uri}: {}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("JSON is text");
    lines.lines().map(|line| serde_json::from_str(line).expect("every line is an object")).collect()
}

/// Returns the ranges of data, merged where they touch.
fn data_ranges(extents: &[(u64, u64, bool)]) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for &(offset, length, _) in extents.iter().filter(|(_, _, is_data)| *is_data) {
        match found.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += length,
            _ => found.push((offset, length)),
        }
    }
    found
}

#[test]
fn extents_equal_those_of_another_client() {
    need!("extents_equal_those_of_another_client", &NEEDS);
    let mut bytes = vec![0; 12 * MIB];
    bytes[2 * MIB..3 * MIB].copy_from_slice(&noise(MIB, 70));
    bytes[7 * MIB..9 * MIB].copy_from_slice(&noise(2 * MIB, 71));
    for kind in [Kind::NbdkitFile, Kind::NbdkitMemory, Kind::QemuRaw, Kind::QemuQcow2] {
        let dirs = TestDirs::new();
        let export = Export::with(&dirs, "export", kind, &bytes);
        let ours = map(&dirs, &export.uri());
        let number = |line: &Value, field: &str| line[field].as_u64().unwrap_or_else(|| panic!("{field} of {line}"));
        let ours: Vec<_> =
            ours.iter().map(|line| (number(line, "offset"), number(line, "length"), line["kind"] == "data")).collect();
        assert_eq!(
            ours.iter().map(|extent| extent.1).sum::<u64>(),
            bytes.len() as u64,
            "{kind:?}: the extents cover the export"
        );

        let theirs: Value = serde_json::from_str(&run("nbdinfo", &["--map", "--json", &export.uri()])).expect("JSON");
        let theirs: Vec<_> = theirs.as_array().expect("a list").iter().collect();
        let theirs: Vec<_> = theirs
            .iter()
            .map(|line| (number(line, "offset"), number(line, "length"), number(line, "type") & 2 == 0))
            .collect();
        assert_eq!(data_ranges(&ours), data_ranges(&theirs), "{kind:?}");
    }
}

#[test]
fn a_server_lists_its_exports() {
    need!("a_server_lists_its_exports", &NEEDS);
    let dirs = TestDirs::new();
    std::fs::create_dir(dirs.path("images")).expect("the directory is writable");
    dirs.file("images/first", &noise(MIB, 1));
    dirs.file("images/second disk", &noise(4097, 2));
    let directory = format!("dir={}", dirs.path("images").display());
    let address = crate::support::Address::free_port();
    let server = Server::nbdkit_at(&dirs, "server", address, &["file", &directory]);
    let lines = map(&dirs, &server.uri());
    let listed = format!("{lines:?}");
    for (name, size) in [("first", MIB as u64), ("second disk", 4097)] {
        let line = lines.iter().find(|line| line.to_string().contains(&format!("\"{name}\"")));
        let line = line.unwrap_or_else(|| panic!("{name} is not listed: {listed}"));
        assert!(line.to_string().contains(&size.to_string()), "the size of {name}: {line}");
    }
}
