//! Tests journals of earlier copies: refused, discarded, or resumed from.

use super::*;
use crate::pipeline::examine::leaf_digest;

fn append(prepared: &mut PreparedCopy, range: ByteRange) {
    let (sender, receiver) = mpsc::channel();
    prepared
        .journal
        .append(vec![Run { range, content: Content::Undigested }], move |result| sender.send(result).unwrap());
    receiver.recv().unwrap().unwrap();
}

#[test]
fn an_unfinished_journal_needs_a_decision() {
    let (directory, source, destination) = pair();
    let journal = directory.path().join("state/journal");
    let checkpoint = CheckpointLocation::File(journal.clone());
    let first = CopySpec { checkpoint, ..spec(&source, &destination) };
    drop(start(&first).unwrap());
    // The journal thread closes the file after its handle is gone; starting waits for that.
    let name = journal.to_str().unwrap();
    refused(&first, Code::Exists, &["not empty", name, "--resume", "--restart"]);
    let overwriting = CopySpec { overwrite: Overwrite::Yes, ..first.clone() };
    refused(&overwriting, Code::Exists, &["unfinished", name, "--resume", "--restart"]);
    let restarted = start(&CopySpec { resume_policy: ResumePolicy::Restart, ..first.clone() }).unwrap();
    assert_eq!(restarted.known_zero, KnownZero::Everything);
    drop(restarted);
    let resumed = start(&CopySpec { resume_policy: ResumePolicy::Resume, ..first.clone() }).unwrap();
    assert!(resumed.earlier.is_some() && !resumed.created);
    assert_eq!(resumed.known_zero, KnownZero::Nothing);
}

#[test]
fn a_restart_without_a_journal_of_its_own_needs_an_empty_destination() {
    let (directory, source, destination) = pair();
    make_file(&destination, 10, &[(0, 10)]);
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let spec = CopySpec { checkpoint, resume_policy: ResumePolicy::Restart, ..spec(&source, &destination) };
    refused(&spec, Code::Exists, &["--overwrite"]);
}

#[test]
fn a_copy_resumes_with_the_same_volumes_only() {
    let (directory, source, destination) = pair();
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let resume = CopySpec { checkpoint, resume_policy: ResumePolicy::Resume, ..spec(&source, &destination) };
    let mut first = start(&resume).expect("without a journal it is a fresh start");
    let leaf = u64::from(first.leaf_bytes);
    append(&mut first, ByteRange::new(0, leaf));
    first.journal.close().unwrap();
    drop((first.source, first.destination));
    fs::write(&destination, fs::read(&source).unwrap()).unwrap();

    let other = directory.path().join("other");
    let elsewhere = CopySpec { destination: other.as_path().into(), ..resume.clone() };
    refused(&elsewhere, Code::CheckpointMismatch, &["does not exist", "--restart"]);
    assert!(!other.exists());
    make_file(&other, MIB, &[]);
    refused(&elsewhere, Code::CheckpointMismatch, &["another destination", "--restart"]);

    let again = start(&CopySpec { block_size: None, ..resume.clone() }).unwrap();
    assert_eq!(again.durable.iter().collect::<Vec<_>>(), [ByteRange::new(0, leaf)]);
    assert_eq!(u64::from(again.leaf_bytes), leaf);
    drop(again);

    File::options().write(true).open(&source).unwrap().write_all_at(&[1], 0).unwrap();
    refused(&resume, Code::SourceChanged, &["modification time", "--restart"]);
}

#[test]
fn a_destination_cut_below_its_durable_bytes_is_a_mismatch() {
    let (directory, source, destination) = pair();
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let resume = CopySpec { checkpoint, resume_policy: ResumePolicy::Resume, ..spec(&source, &destination) };
    let mut first = start(&resume).unwrap();
    append(&mut first, ByteRange::new(0, MIB));
    first.journal.close().unwrap();
    first.destination.resize(MIB - 1).unwrap();
    drop((first.source, first.destination));
    refused(&resume, Code::CheckpointMismatch, &["1048576 of 1048576 bytes recorded"]);
}

#[test]
fn a_journal_on_one_of_the_volumes_is_refused() {
    let (_directory, source, destination) = pair();
    for end in [&source, &destination] {
        let checkpoint = CheckpointLocation::File(end.clone());
        refused(&CopySpec { checkpoint, ..spec(&source, &destination) }, Code::BadRequest, &["--checkpoint", "itself"]);
        let receipt = Some(end.clone());
        refused(&CopySpec { receipt, ..spec(&source, &destination) }, Code::BadRequest, &["--receipt", "itself"]);
        assert!(!destination.exists());
    }
}

#[test]
fn a_journal_below_a_volume_is_refused() {
    let (directory, source, destination) = pair();
    let (image, link) = (directory.path().join("image"), directory.path().join("link"));
    make_file(&image, MIB, &[]);
    symlink(&image, &link).unwrap();
    let device = need!("a_journal_below_a_volume_is_refused", LoopDevice::attach(&image, &[]));
    for (from, to) in [(device.path.clone(), destination.clone()), (source, device.path.clone())] {
        for file in [&image, &link] {
            let receipt = Some(file.clone());
            refused(&CopySpec { receipt, ..spec(&from, &to) }, Code::BadRequest, &["--receipt", "holds its bytes"]);
            let checkpoint = CheckpointLocation::File(file.clone());
            refused(&CopySpec { checkpoint, ..spec(&from, &to) }, Code::BadRequest, &["--checkpoint"]);
        }
    }
    assert_eq!(fs::metadata(&image).unwrap().len(), MIB);
    assert!(!destination.exists());
}

#[test]
fn a_receipt_replaces_nothing_but_an_older_receipt() {
    let (directory, source, destination) = pair();
    let file = directory.path().join("file");
    let with = |receipt: &Path| CopySpec { receipt: Some(receipt.to_owned()), ..spec(&source, &destination) };
    for (path, words) in [(directory.path(), "not a regular file"), (Path::new("/dev/null"), "not a regular file")] {
        refused(&with(path), Code::BadRequest, &[words]);
    }
    fs::write(&file, "my thesis").unwrap();
    refused(&with(&file), Code::Exists, &["is no journal", "another file"]);
    assert_eq!(fs::read(&file).unwrap(), b"my thesis");
    fs::remove_file(&file).unwrap();
    // The checkpoint of another copy.
    let other = spec(&source, &directory.path().join("other"));
    drop(start(&CopySpec { checkpoint: CheckpointLocation::File(file.clone()), ..other }).unwrap());
    refused(&with(&file), Code::Exists, &["unfinished copy", "--receipt"]);
    assert!(!destination.exists());
    // Its own, on the other hand, becomes the receipt.
    let checkpoint = CheckpointLocation::File(directory.path().join("own"));
    start(&CopySpec { checkpoint, ..with(&directory.path().join("own")) }).unwrap();
}

#[test]
fn a_resumed_copy_counts_its_written_bytes_as_free_space() {
    let mounted = need!("a_resumed_copy_counts_its_written_bytes_as_free_space", Mounted::fresh("tmpfs", 4));
    let (directory, source, _) = pair();
    make_file(&source, 3 * MIB, &[(0, 3 << 20)]);
    let destination = mounted.path().join("destination");
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let resume = CopySpec { checkpoint, resume_policy: ResumePolicy::Resume, ..spec(&source, &destination) };
    let first = start(&resume).unwrap();
    first.destination.allocate(ByteRange::new(0, 3 * MIB)).unwrap();
    first.journal.close().unwrap();
    drop((first.source, first.destination));
    start(&resume).unwrap();
    make_file(&mounted.path().join("other"), MIB, &[(0, 1 << 20)]);
    start(&resume).expect("it holds all that it needs");
}

#[test]
fn without_identities_only_data_that_is_equal_proves_a_volume() {
    let unproven = UnprovenIdentity { source: true, destination: true };
    let zeros = || Content::Zeros;
    let data = || Content::Leaves(vec![leaf_digest(&[0xa5; 65536])]);
    let none = || Content::Undigested;
    for (content, at, proves) in [(zeros(), 1, false), (data(), 0, true), (none(), 0, true), (none(), 1, false)] {
        let (directory, source, destination) = pair();
        let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
        let block_size = Some(crate::spec::BlockSize::new(65536).unwrap());
        let mut first = start(&CopySpec { checkpoint, block_size, ..spec(&source, &destination) }).unwrap();
        fs::write(&destination, fs::read(&source).unwrap()).unwrap();
        let (sender, receiver) = mpsc::channel();
        let run = Run { range: ByteRange::at(at * 65536, 65536), content };
        first.journal.append(vec![run.clone()], move |result| sender.send(result).unwrap());
        receiver.recv().unwrap().unwrap();
        let journal = first.journal.reader().unwrap();
        let [from, to] = [(&source, Side::Source), (&destination, Side::Destination)].map(|(path, side)| {
            let reading = crate::volume::ReadOptions::new(Direct::No);
            crate::volume::open_verified_end(&path.as_path().into(), side, &reading, &Default::default()).unwrap()
        });
        let check = ContentCheck::of(&journal, &|| false).unwrap();
        assert_eq!(check.refuse_others(&from, &to, UnprovenIdentity::default()), Ok(()), "{run:?}");
        let refused = check.refuse_others(&from, &to, unproven);
        assert_eq!(refused.as_ref().err().map(|error| error.code), (!proves).then_some(Code::CheckpointMismatch));
        // A difference is one whatever the identities say.
        File::options().write(true).open(&destination).unwrap().write_all_at(&[1], at * 65536 + 9).unwrap();
        let error = check.refuse_others(&from, &to, UnprovenIdentity::default()).unwrap_err();
        assert_eq!(error.code, Code::CheckpointMismatch, "{run:?}");
        let cancelled = ContentCheck::of(&journal, &|| true).unwrap();
        let error = cancelled.refuse_others(&from, &to, UnprovenIdentity::default()).unwrap_err();
        assert_eq!(error.code, Code::Cancelled);
    }
}
