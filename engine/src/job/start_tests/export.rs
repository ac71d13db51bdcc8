//! Tests exports on either side: what is refused, in which order, and what the first block finds.

use super::*;
use crate::volume::support::Server;

fn between(source: Locator, destination: Locator) -> CopySpec {
    CopySpec::new(source, destination)
}

#[track_caller]
fn refused_with(spec: &CopySpec, code: Code, words: &[&str]) -> Error {
    let error = start(spec).expect_err("a refusal");
    assert_eq!(error.code, code, "{error}");
    for word in words {
        assert!(error.message.contains(word), "'{word}' is missing in: {error}");
    }
    error
}

/// An image of `size` bytes with data in its first 64 KiB, served by nbdkit with more words in front and behind.
fn image(size: u64, filters: &[&str], settings: &[&str]) -> Result<(Server, tempfile::TempDir), String> {
    let directory = scratch();
    let path = directory.path().join("image");
    make_file(&path, size, &[(0, 65536)]);
    let words = [filters, &["file", path.to_str().expect("a plain path")], settings].concat();
    Ok((Server::nbdkit(&words)?, directory))
}

#[test]
fn an_export_can_be_source_and_destination() {
    let test = "an_export_can_be_source_and_destination";
    let (source, _image) = need!(test, image(MIB, &[], &[]));
    let blank = Server::nbdkit(&["memory", "2M"]).unwrap();
    let (directory, local, _) = pair();
    let new = directory.path().join("new");
    let out = start(&between(source.export(""), new.as_path().into())).unwrap();
    assert_eq!((out.created, out.known_zero, out.leaf_bytes), (true, KnownZero::Everything, BLOCK_BYTES_SMALL));
    assert!(out.route.to_string().starts_with("nbd>"), "{}", out.route);
    assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o600, "no more readable than its owner says");
    let back = start(&between(local.as_path().into(), blank.export(""))).unwrap();
    assert_eq!((back.created, back.known_zero, back.tail.len()), (false, KnownZero::Nothing, 0));
    assert!(back.route.to_string().ends_with(">nbd"), "{}", back.route);
    assert_eq!((back.destination.size_bytes(), back.destination.file().0), (2 * MIB, -1));
    let through = start(&between(source.export(""), blank.export(""))).unwrap();
    assert_eq!((through.route.to_string().as_str(), through.leaf_bytes), ("nbd", BLOCK_BYTES_SMALL));
    assert!(through.source.export().is_some() && through.destination.export().is_some());
}

#[test]
fn a_larger_export_keeps_what_follows_an_unaligned_end() {
    let test = "a_larger_export_keeps_what_follows_an_unaligned_end";
    let directory = scratch();
    let image = directory.path().join("image");
    let rest: Vec<u8> = (0..8192_u32).map(|at| at as u8).collect();
    make_file(&image, 2 * MIB, &[]).write_all_at(&rest, MIB).unwrap();
    let words = ["--filter=blocksize-policy", "file", image.to_str().unwrap(), "blocksize-minimum=4096"];
    let server = need!(test, Server::nbdkit(&[&words[..], &["blocksize-error-policy=error"]].concat()));
    let (_directory, source, _) = pair();
    make_file(&source, MIB + 5000, &[(0, 4096)]);
    let fresh = between(source.as_path().into(), server.export(""));
    refused_with(&fresh, Code::Exists, &["data at byte 1048577"]);
    let prepared = start(&CopySpec { overwrite: Overwrite::Yes, ..fresh }).unwrap();
    assert_eq!((prepared.destination.align_bytes(), &prepared.tail[..]), (4096, &rest[5000..8192]));
}

#[test]
fn an_export_with_data_anywhere_needs_consent() {
    let test = "an_export_with_data_anywhere_needs_consent";
    let (_directory, source, _) = pair();
    for (at, len, filter) in [(50 * MIB + 512, 512, &[][..]), (77 * MIB + 5000, 1 << 20, &["--filter=noextents"])] {
        let directory = scratch();
        let image = directory.path().join("image");
        make_file(&image, 256 * MIB, &[]);
        let server = need!(test, Server::nbdkit(&[filter, &["file", image.to_str().unwrap()]].concat()));
        drop(start(&between(source.as_path().into(), server.export(""))).unwrap());
        make_file(&image, 256 * MIB, &[(at, len)]);
        refused_with(
            &between(source.as_path().into(), server.export("")),
            Code::Exists,
            &["holds data", "--overwrite"],
        );
    }
}

#[test]
fn an_earlier_rule_wins_over_a_later_one_with_exports() {
    let test = "an_earlier_rule_wins_over_a_later_one_with_exports";
    let (full, full_image) = need!(test, image(MIB, &[], &[]));
    let (read_only, _image) = image(MIB / 2, &["--readonly"], &[]).unwrap();
    let (directory, local, _) = pair();
    let missing = directory.path().join("missing");
    let gone = |name: &str| Locator::parse(&format!("nbd+unix:///{name}?socket={}", missing.display())).unwrap();
    let error = refused_with(&between(gone("a"), directory.path().into()), Code::BadRequest, &["is a directory"]);
    assert_eq!(error.side, Side::Destination);
    let error = refused_with(&between(gone("a"), gone("a")), Code::NotFound, &["missing"]);
    assert_eq!(error.side, Side::Source);
    let error = refused_with(&between(local.as_path().into(), gone("a")), Code::NotFound, &["missing"]);
    assert_eq!(error.side, Side::Destination);
    refused_with(&between(read_only.export(""), read_only.export("")), Code::SameVolume, &["same volume"]);
    // Read-only, and too small besides; too small, and not empty besides.
    refused_with(&between(local.as_path().into(), read_only.export("")), Code::ReadOnly, &["read-only export"]);
    make_file(&local, 2 * MIB, &[]);
    let into_full = between(local.as_path().into(), full.export(""));
    refused_with(&into_full, Code::SizeMismatch, &["1048576 bytes, 1048576 less", "at least as large"]);
    make_file(&local, MIB, &[]);
    let into_full = CopySpec { checkpoint: CheckpointLocation::File(directory.path().join("journal")), ..into_full };
    let before = fs::read(full_image.path().join("image")).unwrap();
    refused_with(&into_full, Code::Exists, &["holds data at byte", "--overwrite"]);
    let overwrite = CopySpec { overwrite: Overwrite::Yes, ..into_full };
    drop(start(&overwrite).unwrap());
    refused_with(&overwrite, Code::Exists, &["unfinished", "--resume"]);
    assert_eq!(fs::read(full_image.path().join("image")).unwrap(), before, "preparing writes nothing to an export");
}

#[test]
fn a_server_that_does_not_listen_is_unreachable_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let (_directory, source, _) = pair();
    let destination = Locator::parse(&format!("nbd://{closed}/x")).unwrap();
    let error = refused_with(&between(source.as_path().into(), destination), Code::Unreachable, &["refused"]);
    assert!(error.retryable && error.side == Side::Destination);
}

#[test]
fn a_silent_server_does_not_delay_a_cancel() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let destination = Locator::parse(&format!("nbd://{}/x", silent.local_addr().unwrap())).unwrap();
    let (_directory, source, _) = pair();
    let looks = std::sync::atomic::AtomicUsize::new(0);
    let cancelled = || looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0;
    let network = crate::spec::NetworkTerms { request_timeout: Duration::from_secs(3600), ..Default::default() };
    let copy = CopySpec { network, ..between(source.into(), destination) };
    let error =
        prepare(&copy, &ResolvedSupervision::default(), &JournalService::start().unwrap(), &cancelled).unwrap_err();
    assert_eq!(error.code, Code::Cancelled, "{error}");
}

#[test]
fn a_mounted_source_is_busy_for_every_destination() {
    let test = "a_mounted_source_is_busy_for_every_destination";
    let mounted = need!(test, Mounted::fresh("ext4", 16));
    let small = need!(test, Server::nbdkit(&["--readonly", "memory", "1M"]));
    // Too small and read-only besides.
    let copy = between(one_of(&mounted).into(), small.export(""));
    let error = refused_with(&copy, Code::Busy, &["mounted read-write", "--allow-live-source"]);
    assert_eq!(error.side, Side::Source);
    refused_with(&CopySpec { live_source: LiveSource::Allow, ..copy }, Code::ReadOnly, &[]);
}

#[test]
fn the_block_size_fits_both_servers() {
    let test = "the_block_size_fits_both_servers";
    let bounded = |least: &str, most: &str| {
        let (least, most) = (format!("blocksize-minimum={least}"), format!("blocksize-maximum={most}"));
        Server::nbdkit(&["--filter=blocksize-policy", "memory", "1M", &least, "blocksize-preferred=64K", &most])
    };
    let (narrow, coarse) = (need!(test, bounded("1", "128K")), bounded("64K", "32M").unwrap());
    let (_directory, local, _) = pair();
    let block = |source: &Locator, destination: &Locator, wish: Option<u64>| {
        let block_size = wish.map(|bytes| crate::spec::BlockSize::new(bytes).unwrap());
        start(&CopySpec { block_size, ..between(source.clone(), destination.clone()) }).map(|copy| copy.leaf_bytes)
    };
    let local = Locator::from(local);
    for wish in [None, Some(MIB)] {
        assert_eq!(block(&local, &narrow.export(""), wish).unwrap(), 128 << 10, "cut to what the server takes");
    }
    assert_eq!(block(&narrow.export(""), &coarse.export(""), Some(65536)).unwrap(), 65536);
    let error = block(&local, &coarse.export(""), Some(4096)).unwrap_err();
    assert!(error.code == Code::BadRequest && error.message.contains("--block-size 65536"), "{error}");
    let tiny = Server::nbdkit(&["--filter=blocksize-policy", "memory", "1M", "blocksize-maximum=32K"]).unwrap();
    let error = block(&tiny.export(""), &coarse.export(""), None).unwrap_err();
    assert_eq!(error.code, Code::Unsupported, "{error}");
}

#[test]
fn free_space_is_checked_where_a_server_reports_block_status() {
    let test = "free_space_is_checked_where_a_server_reports_block_status";
    let mounted = need!(test, Mounted::fresh("tmpfs", 4));
    let directory = scratch();
    let path = directory.path().join("image");
    make_file(&path, 64 * MIB, &[(0, 8 << 20)]);
    let server = need!(test, Server::nbdkit(&["file", path.to_str().unwrap()]));
    let copy = between(server.export(""), mounted.path().join("destination").into());
    refused(&copy, Code::NoSpace, &["room for"]);
    make_file(&path, 64 * MIB, &[(32 << 20, 1 << 20)]);
    start(&copy).unwrap();
}

#[test]
fn a_copy_resumes_with_the_same_export_only() {
    let test = "a_copy_resumes_with_the_same_export_only";
    let server = need!(test, Server::nbdkit(&["memory", "1M"]));
    let other = Server::nbdkit(&["memory", "1M"]).unwrap();
    let (directory, local, _) = pair();
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let resume_policy = ResumePolicy::Resume;
    let resume = CopySpec { checkpoint, resume_policy, ..between(local.as_path().into(), server.export("")) };
    drop(start(&resume).expect("without a journal it is a fresh start"));
    let again = start(&resume).unwrap();
    assert!(again.earlier.is_some_and(|earlier| earlier.header().destination.kind == VolumeKind::Export));
    drop((again.source, again.destination, again.journal));
    let elsewhere = CopySpec { destination: other.export(""), ..resume.clone() };
    refused_with(&elsewhere, Code::CheckpointMismatch, &["another destination", "--restart"]);
    let restarted = CopySpec { resume_policy: ResumePolicy::Restart, ..resume };
    assert!(start(&restarted).unwrap().earlier.is_none());
}

/// An image of 1 MiB whose bitmap `monday` calls everything clean, served by qemu-nbd.
fn with_bitmap() -> Result<(Server, tempfile::TempDir), String> {
    let directory = scratch();
    let path = directory.path().join("image.qcow2");
    let name = path.to_str().expect("a plain path");
    run(&["qemu-img", "create", "-q", "-f", "qcow2", name, "1M"])?;
    run(&["qemu-img", "bitmap", "--add", name, "monday"])?;
    let server = Server::qemu(&["--read-only", "--format=qcow2", "--bitmap=monday", name])?;
    Ok((server, directory))
}

#[test]
fn changes_are_copied_over_an_older_copy_only() {
    let (server, _image) = need!("changes_are_copied_over_an_older_copy_only", with_bitmap());
    let (directory, _, destination) = pair();
    let changes = |bitmap: &str, destination: &Path| CopySpec {
        changed_since: Some(bitmap.to_owned()),
        ..between(server.export(""), destination.into())
    };
    refused(&changes("tuesday", &destination), Code::NotFound, &["tuesday"]);
    refused(&changes("monday", &destination), Code::NotFound, &["no older copy", "--changed-since"]);
    make_file(&destination, MIB - 1, &[(0, 4096)]);
    refused(&changes("monday", &destination), Code::SizeMismatch, &["no older copy"]);
    let older = make_file(&destination, MIB + 4097, &[(0, 4096), (MIB, 4097)]);
    let before = fs::read(&destination).unwrap();
    let prepared = start(&changes("monday", &destination)).expect("data is what is expected");
    assert_eq!((prepared.known_zero, prepared.leaf_bytes), (KnownZero::Nothing, 64 << 10));
    assert_eq!(prepared.destination.size_bytes(), MIB + 4097);
    prepared.destination.resize(MIB).unwrap();
    assert_eq!(older.metadata().unwrap().len(), MIB + 4097, "the end of the copy cuts nothing off either");
    drop(prepared);
    assert_eq!(fs::read(&destination).unwrap(), before);
    drop(directory);
}

#[test]
fn the_destination_of_an_unfinished_copy_is_no_older_copy() {
    let (server, _image) = need!("the_destination_of_an_unfinished_copy_is_no_older_copy", with_bitmap());
    let (directory, _, destination) = pair();
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let full = CopySpec { checkpoint, ..between(server.export(""), destination.as_path().into()) };
    let changes = CopySpec { changed_since: Some("monday".to_owned()), ..full.clone() };
    let resumed = |spec: &CopySpec| CopySpec { resume_policy: ResumePolicy::Resume, ..spec.clone() };
    let restarted = |spec: &CopySpec| CopySpec { resume_policy: ResumePolicy::Restart, ..spec.clone() };
    drop(start(&full).unwrap());
    refused(&changes, Code::Exists, &["unfinished", "--resume"]);
    refused(&resumed(&changes), Code::SourceChanged, &["the checkpoint is about", "--restart"]);
    refused(&restarted(&changes), Code::CheckpointMismatch, &["no older copy", "without --changed-since"]);
    drop(start(&restarted(&full)).unwrap());
    fs::remove_file(directory.path().join("journal")).unwrap();
    drop(start(&changes).unwrap());
    refused(&resumed(&full), Code::SourceChanged, &["#changed-since=monday"]);
    drop(start(&resumed(&changes)).unwrap());
    let restarted = start(&restarted(&changes)).unwrap();
    assert_eq!(restarted.known_zero, KnownZero::Nothing, "a restart of changes empties nothing");
}

#[test]
fn changed_since_is_accepted_for_exports_only() {
    let (_directory, source, destination) = pair();
    let changes = |bitmap: &str| CopySpec { changed_since: Some(bitmap.to_owned()), ..spec(&source, &destination) };
    assert_eq!(changes("monday").check().unwrap_err().code, Code::BadRequest);
    let unnamed = CopySpec { source: Locator::parse("nbd://host/a").unwrap(), ..changes("") };
    assert_eq!(unnamed.check().unwrap_err().code, Code::BadRequest);
}

#[test]
fn a_copy_does_not_resume_with_an_export_of_another_file() {
    let test = "a_copy_does_not_resume_with_an_export_of_another_file";
    let (server, image) = need!(test, image(MIB, &[], &[]));
    let (directory, local, _) = pair();
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let block_size = Some(crate::spec::BlockSize::new(65536).unwrap());
    let destination = directory.path().join("destination");
    for (source, destination, code) in [
        (server.export(""), destination.as_path().into(), Code::SourceChanged),
        (local.as_path().into(), server.export(""), Code::CheckpointMismatch),
    ] {
        let copy = CopySpec { checkpoint: checkpoint.clone(), block_size, ..between(source, destination) };
        let again = CopySpec { resume_policy: ResumePolicy::Restart, overwrite: Overwrite::Yes, ..copy.clone() };
        let mut first = start(&again).unwrap();
        let content = Content::Leaves(vec![crate::pipeline::examine::leaf_digest(&[0xa5; 65536])]);
        let (sender, receiver) = mpsc::channel();
        let run = Run { range: ByteRange::new(0, 65536), content };
        first.journal.append(vec![run], move |result| sender.send(result).unwrap());
        receiver.recv().unwrap().unwrap();
        first.journal.close().unwrap();
        if let Some(path) = copy.destination.path() {
            File::options().write(true).open(path).unwrap().write_all_at(&[0xa5; 65536], 0).unwrap();
        }
        drop((first.source, first.destination));
        let resume = CopySpec { resume_policy: ResumePolicy::Resume, ..copy };
        drop(start(&resume).expect("nothing has changed"));
        let other = image.path().join("other");
        make_file(&other, MIB, &[(4096, 65536)]);
        fs::rename(&other, image.path().join("image")).unwrap();
        refused_with(&resume, code, &["written to since"]);
        make_file(&other, MIB, &[(0, 65536)]);
        fs::rename(&other, image.path().join("image")).unwrap();
    }
}
