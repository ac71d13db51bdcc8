//! Tests routes that are demanded, and the route that is found without a demand.

use super::*;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

#[test]
fn impossible_demands_are_refused_before_anything_is_changed() {
    let test = "impossible_demands_are_refused_before_anything_is_changed";
    let (_directory, source, destination) = pair();
    make_file(&destination, 10, &[(0, 10)]);
    let overwrite = CopySpec { overwrite: Overwrite::Yes, ..spec(&source, &destination) };
    let contradiction = CopySpec { path: PathChoice::Inline, direct: Direct::Yes, ..overwrite.clone() };
    refused(&contradiction, Code::BadRequest, &["--path inline", "--direct yes"]);
    let memory = need!(test, Mounted::fresh("tmpfs", 4));
    let target = memory.path().join("destination");
    make_file(&target, 10, &[(0, 10)]);
    let overwrite = CopySpec { overwrite: Overwrite::Yes, ..spec(&source, &target) };
    refused(&CopySpec { direct: Direct::Yes, ..overwrite.clone() }, Code::Unsupported, &["--direct auto"]);
    refused(&CopySpec { reflink: Reflink::Always, ..overwrite }, Code::Unsupported, &["--reflink auto"]);
}

#[test]
fn routes_follow_the_features_of_the_file_systems() {
    let test = "routes_follow_the_features_of_the_file_systems";
    let with =
        |kind: &str, is_cached: bool, change: &dyn Fn(&mut CopySpec)| -> std::result::Result<(String, u32), String> {
            let mounted = Mounted::fresh(kind, if kind == "xfs" || kind == "btrfs" { 320 } else { 16 })?;
            let (source, destination) = (mounted.path().join("source"), mounted.path().join("destination"));
            let file = make_file(&source, MIB, &[(0, 1 << 20)]);
            file.sync_all().unwrap();
            let mut spec = spec(&source, &destination);
            change(&mut spec);
            if !is_cached {
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            }
            let prepared = start(&spec).map_err(|error| error.to_string())?;
            Ok((prepared.route.to_string(), prepared.leaf_bytes))
        };
    let on = |kind: &str, change: &dyn Fn(&mut CopySpec)| with(kind, false, change);
    let buffered = |spec: &mut CopySpec| (spec.direct, spec.reflink) = (Direct::No, Reflink::Never);
    let copied = |spec: &mut CopySpec| spec.reflink = Reflink::Never;
    let inline = |spec: &mut CopySpec| (spec.path, spec.reflink) = (PathChoice::Inline, Reflink::Never);
    let expect = |path: &str, leaf: u32| (path.to_owned(), leaf);
    assert_eq!(need!(test, on("tmpfs", &|_| {})), expect("inline", BLOCK_BYTES_SMALL));
    assert_eq!(need!(test, on("ext4", &|_| {})), expect("ring-direct", BLOCK_BYTES_DIRECT));
    assert_eq!(need!(test, on("ext4", &buffered)), expect("ring-buffered", BLOCK_BYTES_SMALL));
    assert_eq!(need!(test, on("ext4", &inline)), expect("inline", BLOCK_BYTES_SMALL));
    for kind in ["xfs", "btrfs"] {
        assert_eq!(need!(test, on(kind, &|_| {})).0, "reflink");
        assert_eq!(need!(test, on(kind, &copied)), expect("ring-direct", BLOCK_BYTES_DIRECT));
        assert_eq!(need!(test, on(kind, &buffered)), expect("ring-buffered", BLOCK_BYTES_SMALL));
    }
    // A source that is in memory is not read from its disk again, unless that is demanded.
    let demanded = |spec: &mut CopySpec| (spec.direct, spec.reflink) = (Direct::Yes, Reflink::Never);
    for kind in ["ext4", "xfs", "btrfs"] {
        let cached = expect("ring-buffered>ring-direct", BLOCK_BYTES_SMALL);
        assert_eq!(need!(test, with(kind, true, &copied)), cached, "{kind}");
        assert_eq!(need!(test, with(kind, true, &demanded)), expect("ring-direct", BLOCK_BYTES_DIRECT), "{kind}");
    }
}

#[test]
fn probes_leave_a_new_destination_without_data() {
    let test = "probes_leave_a_new_destination_without_data";
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let mounted = need!(test, Mounted::fresh(kind, if kind == "xfs" || kind == "btrfs" { 320 } else { 16 }));
        let (source, destination) = (mounted.path().join("source"), mounted.path().join("destination"));
        make_file(&source, MIB, &[(0, 4096)]);
        let spec = CopySpec { direct: Direct::No, reflink: Reflink::Never, ..spec(&source, &destination) };
        let prepared = start(&spec).unwrap();
        assert_eq!(fs::metadata(&destination).unwrap().blocks(), 0, "{kind}");
        drop(prepared);
    }
}

/// Returns the version of the kernel, as two numbers.
fn kernel() -> (u32, u32) {
    let release = nix::sys::utsname::uname().unwrap().release().to_str().unwrap().to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn only_writes_through_the_cache_of_a_disk_ask_it_to_drop_them() {
    let test = "only_writes_through_the_cache_of_a_disk_ask_it_to_drop_them";
    let asks = |kind: &str, direct: Direct| -> std::result::Result<bool, String> {
        let mounted = Mounted::fresh(kind, 16)?;
        let (source, destination) = (mounted.path().join("source"), mounted.path().join("destination"));
        make_file(&source, MIB, &[(0, 1 << 20)]);
        let spec = CopySpec { direct, ..spec(&source, &destination) };
        let prepared = start(&spec).map_err(|error| error.to_string())?;
        Ok(prepared.destination.accepts_dont_cache())
    };
    assert_eq!(need!(test, asks("ext4", Direct::No)), kernel() >= (6, 14));
    assert!(!need!(test, asks("ext4", Direct::Auto)), "past the cache");
    assert!(!need!(test, asks("tmpfs", Direct::No)), "there is no disk");
}
