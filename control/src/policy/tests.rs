//! Tests the policy with real files, links and descriptors.

use super::*;
use crate::model::NodeId;
use blockhaul_engine::volume::NbdUri;
use std::os::unix::fs::{MetadataExt, symlink};

struct Site {
    root: tempfile::TempDir,
    policy: Policy,
}

impl Site {
    /// Creates a tree with an allowed folder `in` and a forbidden one `out`, each with a file `f`.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["in", "in/deep", "out"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
            std::fs::write(root.path().join(folder).join("f"), folder).unwrap();
        }
        let policy = Policy::new(&[root.path().join("in")], &[]).unwrap();
        Self { root, policy }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn source(&self, name: &str) -> Result<OwnedFd> {
        self.policy.open_to_read(&self.path(name), Side::Source)
    }

    fn destination(&self, name: &str) -> Result<OpenedVolume> {
        self.policy.open_destination(&self.path(name), 0o640)
    }

    fn names(&self, name: &str) -> Result<Vec<String>> {
        identities(&self.policy, &NodeId::new("n1").unwrap(), &self.path(name))
    }
}

#[test]
fn what_lies_in_an_allowed_folder_is_opened_whatever_links_lead_to_it() {
    let site = Site::new();
    symlink(site.path("in/deep/f"), site.path("out/inwards")).unwrap();
    symlink("deep", site.path("in/alias")).unwrap();
    for name in ["in/f", "in/deep/f", "in/alias/f", "out/inwards", "in/./deep//f"] {
        site.source(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(site.destination(name).unwrap().created.is_none(), "{name}");
    }
}

#[test]
fn what_leads_out_of_the_tree_is_refused_and_left_alone() {
    let site = Site::new();
    symlink(site.path("out/f"), site.path("in/outwards")).unwrap();
    symlink(site.path("out"), site.path("in/door")).unwrap();
    symlink("/proc/self/cwd/", site.path("in/magic")).unwrap();
    symlink(site.path("out/new"), site.path("in/dangling")).unwrap();
    symlink("around", site.path("in/around")).unwrap();
    let all =
        ["out/f", "in/../in/f", "in/../out/f", "in/outwards", "in/door/f", "in/door/new", "in/magic/f", "in/around"];
    for name in all {
        assert_eq!(site.source(name).map(drop).unwrap_err().code, expected(name), "source {name}");
        assert_eq!(site.destination(name).map(drop).unwrap_err().code, Code::Permission, "destination {name}");
        assert_eq!(site.names(name).unwrap_err().code, Code::Permission, "identity of {name}");
    }
    assert_eq!(site.destination("in/dangling").map(drop).unwrap_err().code, Code::Permission);
    assert!(!site.path("out/new").exists(), "nothing was created outside");

    fn expected(name: &str) -> Code {
        if name == "in/door/new" { Code::NotFound } else { Code::Permission }
    }
}

#[test]
fn a_neighbour_whose_name_begins_alike_is_not_allowed() {
    let site = Site::new();
    std::fs::write(site.path("inside"), "x").unwrap();
    assert_eq!(site.source("inside").unwrap_err().code, Code::Permission);
}

#[test]
fn what_is_no_volume_is_no_volume() {
    let site = Site::new();
    nix::unistd::mkfifo(&site.path("in/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert_eq!(site.source("in/deep").unwrap_err().code, Code::BadRequest);
    assert_eq!(site.destination("in/fifo").map(drop).unwrap_err().code, Code::Unsupported);
    assert_eq!(site.source("in/none").unwrap_err().code, Code::NotFound);
    assert_eq!(site.destination("in/none/x").map(drop).unwrap_err().code, Code::NotFound);
    let relative = site.policy.open_to_read(Path::new("in/f"), Side::Source).unwrap_err();
    assert_eq!(relative.code, Code::BadRequest);
}

#[test]
fn a_missing_file_is_created_in_its_folder_and_taken_away_only_while_it_is_empty() {
    let site = Site::new();
    let created = site.destination("in/deep/new").unwrap();
    let stat = std::fs::metadata(site.path("in/deep/new")).unwrap();
    assert_eq!((stat.len(), stat.mode() & 0o700), (0, 0o600));
    let (opened, created) = created.split().unwrap();
    assert!(opened.created && opened.parent.is_some());
    created.unwrap().remove();
    assert!(!site.path("in/deep/new").exists());

    let written = site.destination("in/deep/new").unwrap();
    std::fs::write(site.path("in/deep/new"), "data").unwrap();
    written.created.unwrap().remove();
    assert!(site.path("in/deep/new").exists(), "it holds data");

    let replaced = site.destination("in/deep/other").unwrap();
    std::fs::rename(site.path("in/deep/other"), site.path("in/deep/moved")).unwrap();
    std::fs::write(site.path("in/deep/other"), "").unwrap();
    replaced.created.unwrap().remove();
    assert!(site.path("in/deep/other").exists(), "it is somebody else's");
}

#[test]
fn the_descriptor_stays_with_the_file_when_the_path_is_turned_elsewhere() {
    let site = Site::new();
    let opened = site.destination("in/f").unwrap();
    std::fs::remove_file(site.path("in/f")).unwrap();
    symlink(site.path("out/f"), site.path("in/f")).unwrap();
    nix::unistd::write(&opened.file, b"XX").unwrap();
    assert_eq!(std::fs::read_to_string(site.path("out/f")).unwrap(), "out");
}

#[test]
fn every_spelling_of_a_destination_has_the_same_names() {
    let site = Site::new();
    symlink("deep", site.path("in/alias")).unwrap();
    let missing = site.names("in/deep/new").unwrap();
    assert_eq!(missing, site.names("in/alias/new").unwrap());
    assert_eq!(missing.len(), 1);
    site.destination("in/deep/new").unwrap();
    let there = site.names("in/alias/new").unwrap();
    assert!(there[0].starts_with("file:n1:"), "{there:?}");
    assert_eq!(there[1..], missing, "the name by which its creator has claimed it");

    std::fs::hard_link(site.path("in/deep/new"), site.path("in/twin")).unwrap();
    assert_eq!(site.names("in/twin").unwrap()[0], there[0]);
    assert_ne!(site.names("in/f").unwrap()[0], there[0]);
}

#[test]
fn devices_are_named_by_what_they_say_of_themselves() {
    let root = tempfile::tempdir().unwrap();
    let disk = root.path().join("sdx");
    std::fs::create_dir_all(disk.join("device")).unwrap();
    std::fs::create_dir(disk.join("sdx3")).unwrap();
    assert_eq!(claim_names::world_wide_name(&disk), None);
    std::fs::write(disk.join("device/wwid"), "t10.ATA     Some DISK\n").unwrap();
    std::fs::write(disk.join("sdx3/partition"), "3\n").unwrap();
    assert_eq!(claim_names::world_wide_name(&disk).unwrap(), "wwn:t10.ATA_Some_DISK");
    assert_eq!(claim_names::world_wide_name(&disk.join("sdx3")).unwrap(), "wwn:t10.ATA_Some_DISK-part3");
}

#[test]
fn servers_are_allowed_by_host_and_port() {
    let allowed = ["store", "Other:10900", "[::1]:10809"].map(String::from);
    let policy = Policy::new(&[], &allowed).unwrap();
    let judged = |text: &str| {
        let uri = NbdUri::parse(text).unwrap();
        policy.check_server(text, &uri, Side::Source).map_err(|error| error.code)
    };
    for text in ["nbd://store/x", "nbds://STORE:99/x", "nbd://other:10900/", "nbd://[::1]/x"] {
        assert_eq!(judged(text), Ok(()), "{text}");
    }
    for text in ["nbd://store2/x", "nbd://other/x", "nbd://[::1]:7/x", "nbd://h/store"] {
        assert_eq!(judged(text), Err(Code::Permission), "{text}");
    }
    for bad in ["", ":5", "h:x", "a/b", "[::1", "[::1]x"] {
        assert_eq!(Policy::new(&[], &[bad.to_owned()]).unwrap_err().code, Code::BadRequest, "{bad}");
    }
}

#[test]
fn sockets_and_certificates_are_local_paths() {
    let site = Site::new();
    let _listening = std::os::unix::net::UnixListener::bind(site.path("in/sock et")).unwrap();
    let _outside = std::os::unix::net::UnixListener::bind(site.path("out/socket")).unwrap();
    let root = site.root.path().display();
    let judged = |text: &str| {
        let uri = NbdUri::parse(text).unwrap();
        site.policy.check_server(text, &uri, Side::Source).map_err(|error| error.code)
    };
    assert_eq!(judged(&format!("nbd+unix:///x?socket={root}/in/sock%20et")), Ok(()));
    assert_eq!(judged(&format!("nbd+unix:///x?socket={root}/out/socket")), Err(Code::Permission));
    assert_eq!(judged(&format!("nbds://h/x?tls-certificates={root}/out")), Err(Code::Permission));
    assert_eq!(judged(&format!("nbds://h/x?tls-certificates={root}/in/deep")), Ok(()));
    assert_eq!(judged("nbd://h/x"), Ok(()), "every server, as none is listed");
}

#[test]
fn a_device_that_is_not_there_is_not_made_a_file() {
    let policy = Policy::new(&[PathBuf::from("/dev")], &[]).unwrap();
    let path = PathBuf::from(format!("/dev/blockhaul-no-such-device-{}", std::process::id()));
    let error = policy.open_destination(&path, 0o600).unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
    assert!(error.message.contains("no device"), "{error}");
    assert!(!path.exists(), "a file was created in /dev");
}
