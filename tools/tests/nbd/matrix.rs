//! Tests every server as source and destination of every other, of a file and of an empty volume; another client
//! verifies.

use crate::support::{
    Export, Kind, MIB, Need, Outcome, Server, TestDirs, allocated, assert_same, assert_whole, content, mixed, need,
    noise, run, text,
};
use std::os::unix::fs::FileExt;

const NEEDS: [Need; 8] = [
    Need::Root,
    Need::Program("nbdkit"),
    Need::Program("nbdcopy"),
    Need::Program("qemu-nbd"),
    Need::Program("qemu-img"),
    Need::Program("nbd-server"),
    Need::Program("unshare"),
    Need::Program("setpriv"),
];
const SIZE: usize = 6 * MIB;
/// A size that is no multiple of a sector, for servers that allow it.
const ODD: usize = 5 * MIB + 777;
/// Flags, distributed over the pairs: each pair runs with some of them.
const FLAGS: [&[&str]; 11] = [
    &[],
    &["--verify"],
    &["--connections", "1"],
    &["--connections", "4"],
    &["--sparse", "never"],
    &["--block-size", "64KiB", "--depth", "8"],
    &["--path", "threads"],
    &["--digest", "none", "--verify"],
    &["--cores", "1", "--depth", "1"],
    &["--path", "threads", "--verify"],
    &["--block-size", "4MiB"],
];

/// Returns the flags of a pair.
fn flags(source: usize, destination: usize) -> &'static [&'static str] {
    FLAGS[(source * 5 + destination * 3) % FLAGS.len()]
}

/// Returns a size that both servers support.
fn common_size(one: Kind, other: Kind) -> usize {
    if one.granule().max(other.granule()) == 1 { ODD } else { SIZE }
}

fn copy(dirs: &TestDirs, source: &str, destination: &str, flags: &[&str]) -> Outcome {
    dirs.blockhaul(&[&["copy", source, destination, "--overwrite"], flags].concat())
}

/// Copies from one server to each of the servers.
fn export_to_exports(test: &str, number: usize) {
    need!(test, &NEEDS);
    let from = Kind::ALL[number];
    for (other, to) in Kind::ALL.into_iter().enumerate() {
        let dirs = TestDirs::new();
        let bytes = mixed(common_size(from, to), number as u64 + 1);
        let source = Export::with(&dirs, "source", from, &bytes);
        // Half of the destinations hold other data, so that zeros must be written.
        let destination = match (number + other) % 2 {
            0 => Export::full_of_old_data(&dirs, "destination", to, bytes.len()),
            _ => Export::empty(&dirs, "destination", to, bytes.len()),
        };
        let flags = flags(number, other);
        let what = format!("{from:?} to {to:?} with {flags:?}");
        assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), flags), bytes.len(), &what);
        assert_same(&destination.content(), &bytes, &what);
        assert_same(&source.content(), &bytes, &format!("the source of {what}"));
    }
}

#[test]
fn nbdkit_file_to_every_server() {
    export_to_exports("nbdkit_file_to_every_server", 0);
}

#[test]
fn nbdkit_file_of_one_connection_to_every_server() {
    export_to_exports("nbdkit_file_of_one_connection_to_every_server", 1);
}

#[test]
fn nbdkit_memory_to_every_server() {
    export_to_exports("nbdkit_memory_to_every_server", 2);
}

#[test]
fn nbdkit_of_strict_blocks_to_every_server() {
    export_to_exports("nbdkit_of_strict_blocks_to_every_server", 3);
}

#[test]
fn qemu_raw_to_every_server() {
    export_to_exports("qemu_raw_to_every_server", 4);
}

#[test]
fn qemu_qcow2_to_every_server() {
    export_to_exports("qemu_qcow2_to_every_server", 5);
}

#[test]
fn nbd_server_to_every_server() {
    export_to_exports("nbd_server_to_every_server", 6);
}

#[test]
fn every_server_to_a_file() {
    need!("every_server_to_a_file", &NEEDS);
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        let dirs = TestDirs::new();
        let bytes = mixed(common_size(kind, kind), number as u64 + 20);
        let source = Export::with(&dirs, "source", kind, &bytes);
        for (round, flags) in [flags(number, 0), flags(number, 1), &["--direct", "no"]].into_iter().enumerate() {
            let what = format!("{kind:?} to a file with {flags:?}");
            let copied = copy(&dirs, &source.uri(), "b", flags);
            assert_whole(&copied, bytes.len(), &what);
            assert_same(&dirs.read("b"), &bytes, &format!("{what}, round {round}"));
        }
    }
}

#[test]
fn a_file_to_every_server() {
    need!("a_file_to_every_server", &NEEDS);
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        let dirs = TestDirs::new();
        let bytes = mixed(common_size(kind, kind), number as u64 + 30);
        dirs.file("a", &bytes);
        let destination = Export::full_of_old_data(&dirs, "destination", kind, bytes.len());
        for flags in [flags(0, number), flags(1, number)] {
            let what = format!("a file to {kind:?} with {flags:?}");
            assert_whole(&copy(&dirs, "a", &destination.uri(), flags), bytes.len(), &what);
            assert_same(&destination.content(), &bytes, &what);
        }
    }
}

#[test]
fn sparse_random_to_a_file_and_to_qcow2() {
    need!("sparse_random_to_a_file_and_to_qcow2", &NEEDS);
    let dirs = TestDirs::new();
    let source =
        Server::nbdkit(&dirs, "source", &["sparse-random", "size=48M", "seed=7", "percent=20", "runlength=524288"]);
    let copied = copy(&dirs, &source.uri(), "b", &[]);
    assert_whole(&copied, 48 * MIB, "sparse-random to a file");
    assert!(copied.bytes("read") < 24 * MIB as u64, "holes are not read: {copied:#?}");
    assert!(allocated(&dirs.path("b")) < 24 * MIB as u64, "holes stay holes: {}", allocated(&dirs.path("b")));
    assert_same(&dirs.read("b"), &content(&source.uri()), "sparse-random to a file");

    let destination = Export::empty(&dirs, "destination", Kind::QemuQcow2, 48 * MIB);
    assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), &[]), 48 * MIB, "sparse-random to qcow2");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source.uri(), &destination.uri()]);
}

#[test]
fn a_small_inline_export_of_data_is_copied() {
    need!("a_small_inline_export_of_data_is_copied", &NEEDS);
    let dirs = TestDirs::new();
    // Odd in size, with a hole in the middle.
    let args = ["data", "data= ( 0x55 0xAA 7 )*1000 @70001 1 2 3 @131073 \"end\" "];
    let source = Server::nbdkit(&dirs, "source", &args);
    let bytes = content(&source.uri());
    assert_whole(&copy(&dirs, &source.uri(), "b", &["--verify"]), bytes.len(), "data to a file");
    assert_same(&dirs.read("b"), &bytes, "data to a file");
}

#[test]
fn an_empty_export_and_a_single_byte_are_copied() {
    need!("an_empty_export_and_a_single_byte_are_copied", &NEEDS);
    for size in [0, 1, 511, 4097] {
        let dirs = TestDirs::new();
        let bytes = noise(size, 3);
        let source = Export::with(&dirs, "source", Kind::NbdkitFile, &bytes);
        let destination = Export::empty(&dirs, "destination", Kind::NbdkitMemory, size);
        let what = format!("{size} bytes");
        assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), &["--verify"]), size, &what);
        assert_same(&destination.content(), &bytes, &what);
        assert_whole(&copy(&dirs, &source.uri(), "b", &[]), size, &what);
        assert_same(&dirs.read("b"), &bytes, &what);
    }
}

#[test]
fn verify_finds_one_flipped_byte_on_either_side() {
    need!("verify_finds_one_flipped_byte_on_either_side", &NEEDS);
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        let other = Kind::ALL[(number + 3) % Kind::ALL.len()];
        let dirs = TestDirs::new();
        let bytes = mixed(common_size(kind, other), number as u64 + 40);
        let mut flipped = bytes.clone();
        let at = bytes.len() - 1 - number * 1000;
        flipped[at] ^= 1;
        dirs.file("same", &bytes);
        dirs.file("flipped", &flipped);
        let one = Export::with(&dirs, "one", kind, &bytes);
        let two = Export::with(&dirs, "two", other, &flipped);
        let pairs = [
            (one.uri(), "same".to_owned(), 0),
            (one.uri(), "flipped".to_owned(), 3),
            (one.uri(), two.uri(), 3),
            ("flipped".to_owned(), two.uri(), 0),
        ];
        for (left, right, exit) in pairs {
            let verified = dirs.blockhaul(&["verify", &left, &right]);
            assert_eq!(verified.code, Some(exit), "{kind:?} {other:?}: {left} and {right}: {verified:#?}");
            let status = if exit == 0 { "succeeded" } else { "differs" };
            assert_eq!(verified.report()["status"], status, "{left} and {right}: {verified:#?}");
        }
    }
}

#[test]
fn an_export_is_verified_against_a_receipt() {
    need!("an_export_is_verified_against_a_receipt", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 50);
    dirs.file("a", &bytes);
    let destination = Export::empty(&dirs, "destination", Kind::NbdkitFile, SIZE);
    assert_whole(&copy(&dirs, "a", &destination.uri(), &["--receipt", "receipt"]), SIZE, "with a receipt");
    let same = dirs.blockhaul(&["verify", "--receipt", "receipt", &destination.uri()]);
    assert_eq!(same.code, Some(0), "{same:#?}");
    let backing = std::fs::File::options().write(true).open(destination.backing.as_ref().expect("it is a file"));
    backing.and_then(|file| file.write_all_at(&[!bytes[MIB]], MIB as u64)).expect("it is there");
    let differs = dirs.blockhaul(&["verify", "--receipt", "receipt", &destination.uri()]);
    assert_eq!(differs.code, Some(3), "{differs:#?}");
}

#[test]
fn sparse_never_allocates_everything_and_auto_leaves_holes() {
    need!("sparse_never_allocates_everything_and_auto_leaves_holes", &NEEDS);
    const LARGE: usize = 16 * MIB;
    for kind in [Kind::QemuRaw, Kind::NbdkitFile] {
        let dirs = TestDirs::new();
        let mut bytes = vec![0; LARGE];
        bytes[5 * MIB..6 * MIB].copy_from_slice(&noise(MIB, 60));
        let source = Export::with(&dirs, "source", Kind::NbdkitFile, &bytes);
        let destination = Export::empty(&dirs, "destination", kind, LARGE);
        let backing = destination.backing.as_ref().expect("it is a file");

        assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), &[]), LARGE, "sparse");
        assert_same(&destination.content(), &bytes, "sparse");
        assert!(allocated(backing) <= 2 * MIB as u64, "{kind:?}: holes stay holes: {}", allocated(backing));

        let never = copy(&dirs, &source.uri(), &destination.uri(), &["--sparse", "never"]);
        assert_whole(&never, LARGE, "not sparse");
        assert_same(&destination.content(), &bytes, "not sparse");
        assert!(allocated(backing) >= LARGE as u64, "{kind:?}: everything is allocated: {}", allocated(backing));
    }
}

#[test]
fn a_larger_export_keeps_its_rest() {
    need!("a_larger_export_keeps_its_rest", &NEEDS);
    for kind in [Kind::NbdkitFile, Kind::NbdkitBlocks, Kind::QemuQcow2] {
        let dirs = TestDirs::new();
        // The blocks of the server are larger than what is left at the end.
        let bytes = mixed(ODD, 61);
        let old = noise(SIZE, 99);
        dirs.file("a", &bytes);
        let destination = Export::full_of_old_data(&dirs, "destination", kind, SIZE);
        let what = format!("a shorter file to {kind:?}");
        let copied = copy(&dirs, "a", &destination.uri(), &["--verify"]);
        assert_whole(&copied, ODD, &what);
        assert_same(&destination.content(), &[&bytes[..], &old[ODD..]].concat(), &what);
    }
}

#[test]
fn an_export_that_is_too_small_or_not_empty_is_refused_before_a_write() {
    let test = "an_export_that_is_too_small_or_not_empty_is_refused_before_a_write";
    need!(test, &NEEDS);
    let dirs = TestDirs::new();
    let old = noise(SIZE, 99);
    dirs.file("a", &noise(SIZE, 62));
    dirs.file("large", &noise(SIZE + 1, 63));
    let full = Export::full_of_old_data(&dirs, "full", Kind::NbdkitFile, SIZE);
    dirs.blockhaul(&["copy", "large", &full.uri(), "--overwrite"]).assert_failed(1, "ESizeMismatch");
    dirs.blockhaul(&["copy", "a", &full.uri()]).assert_failed(1, "EExists");
    assert_same(&full.content(), &old, "the destination of the refused copy");

    // Data behind leading zeros is found as well.
    let mut behind = vec![0; SIZE];
    behind[2 * MIB..].copy_from_slice(&old[2 * MIB..]);
    let started = Export::with(&dirs, "started", Kind::QemuRaw, &behind);
    dirs.blockhaul(&["copy", "a", &started.uri()]).assert_failed(1, "EExists");
    assert_same(&started.content(), &behind, "the export that begins with zeros");
    let copied = dirs.blockhaul(&["copy", "a", &started.uri(), "--overwrite"]);
    assert_whole(&copied, SIZE, "to an export that begins with zeros");
    assert_same(&started.content(), &dirs.read("a"), "to an export that begins with zeros");
}

#[test]
fn a_copy_over_tcp_is_equal() {
    need!("a_copy_over_tcp_is_equal", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(24 * MIB + 5, 64);
    let image = dirs.file("image", &bytes);
    let file = format!("file={}", text(&image));
    let source = Server::nbdkit_at(&dirs, "source", crate::support::Address::free_port(), &["file", &file]);
    let size = format!("size={}", bytes.len());
    let destination = Server::nbdkit_at(&dirs, "destination", crate::support::Address::free_port(), &["memory", &size]);
    assert_whole(&copy(&dirs, &source.uri(), &destination.uri(), &["--verify"]), bytes.len(), "over TCP");
    assert_same(&content(&destination.uri()), &bytes, "over TCP");
}

#[test]
fn an_export_is_not_copied_to_itself() {
    need!("an_export_is_not_copied_to_itself", &NEEDS);
    let dirs = TestDirs::new();
    let export = Export::full_of_old_data(&dirs, "one", Kind::NbdkitFile, MIB);
    let refused = dirs.blockhaul(&["copy", &export.uri(), &export.uri(), "--overwrite"]);
    refused.assert_failed(1, "ESameVolume");
}
