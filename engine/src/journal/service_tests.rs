//! Tests the journal thread on real files, on io_uring where this host has it and without.

use super::disk::Backend;
use super::format::SLOT_OFFSETS;
use super::location::LockedJournal;
use super::samples::{SampleJournal, header, leaves};
use super::*;
use crate::error::{Code, Effect, Result};
use nix::errno::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::mpsc;
use tempfile::TempDir;

/// Each test runs on every backend that this host has.
fn services() -> Vec<JournalService> {
    let has_ring = Backend::probe() == Backend::Ring;
    let backends = if has_ring { vec![Backend::Ring, Backend::Plain] } else { vec![Backend::Plain] };
    backends.into_iter().map(|backend| JournalService::start_on(backend).unwrap()).collect()
}

/// Appends and waits.
fn append(journal: &mut JournalFile, runs: Vec<Run>) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    journal.append(runs, move |result| sender.send(result).unwrap());
    receiver.recv().unwrap()
}

fn whole(reader: &JournalReader) -> Vec<Run> {
    reader.runs(ByteRange::new(0, reader.header().size_bytes)).map(|run| run.unwrap()).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn small() -> Header {
    header(40 * 4096, 4096)
}

const END: FinishRecord = FinishRecord { root: Some([5; 32]), finished_ns: 77 };

#[test]
fn the_file_is_what_the_appender_plans() {
    let home = TempDir::new().unwrap();
    for service in services() {
        for seed in 0..20 {
            let (path, sample) = (home.path().join(format!("{seed}")), SampleJournal::new(seed));
            let mut journal = service.create(JournalLocation::Replace(&path), &sample.header).unwrap();
            for batch in sample.batches.iter().filter(|batch| !batch.is_empty()) {
                append(&mut journal, batch.clone()).unwrap();
            }
            match sample.finish {
                Some(finish) => journal.finish(finish, JournalDisposition::KeepInPlace).unwrap(),
                None => journal.close().unwrap(),
            }
            assert_eq!(fs::read(&path).unwrap(), sample.file(), "seed {seed}");
        }
    }
}

#[test]
fn a_checkpoint_is_appended_to_where_it_stopped() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("deep/er/checkpoint");
        let mut journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
        append(&mut journal, vec![leaves(0, 10, 4096)]).unwrap();
        journal.close().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(names(path.parent().unwrap()), ["checkpoint"]);
        let (mut journal, reader) = service.reopen(&path).unwrap();
        assert_eq!(reader.durable().bytes(), 10 * 4096);
        append(&mut journal, vec![leaves(10, 30, 4096)]).unwrap();
        let reader = journal.reader().unwrap();
        assert_eq!(whole(&reader), [leaves(0, 10, 4096), leaves(10, 30, 4096)]);
        journal
            .finish(FinishRecord { root: reader.root().unwrap(), finished_ns: 1 }, JournalDisposition::KeepInPlace)
            .unwrap();
        let receipt = JournalReader::open(&path).unwrap();
        assert_eq!(receipt.state(), JournalState::Finished);
        assert_eq!(receipt.finish().unwrap().root, receipt.root().unwrap());
        assert_eq!(service.reopen(&path).unwrap_err().code, Code::CheckpointMismatch);
    }
}

#[test]
fn a_dropped_journal_is_closed_and_can_be_reopened_at_once() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        drop(service.create(JournalLocation::Replace(&path), &small()).unwrap());
        for index in 0..30 {
            let (mut journal, reader) = service.reopen(&path).unwrap();
            assert_eq!(reader.records(), index);
            journal.append(vec![leaves(index, 1, 4096)], |result| result.unwrap());
        }
    }
}

#[test]
fn a_torn_end_is_cut_off_before_anything_is_appended() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        let mut journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
        append(&mut journal, vec![leaves(0, 1, 4096)]).unwrap();
        journal.close().unwrap();
        let intact = fs::read(&path).unwrap();
        fs::write(&path, [&intact[..], &[0; 700]].concat()).unwrap();
        let (mut journal, reader) = service.reopen(&path).unwrap();
        assert_eq!(reader.end(), intact.len() as u64);
        assert_eq!(fs::metadata(&path).unwrap().len(), intact.len() as u64);
        append(&mut journal, vec![leaves(1, 1, 4096)]).unwrap();
        journal.close().unwrap();
        assert_eq!(JournalReader::open(&path).unwrap().durable().bytes(), 2 * 4096);
    }
}

#[test]
fn a_reader_sees_appended_runs_while_the_thread_continues() {
    let home = TempDir::new().unwrap();
    for service in services() {
        for place in [JournalLocation::Replace(&home.path().join("checkpoint")), JournalLocation::Scratch] {
            let mut journal = service.create(place, &small()).unwrap();
            for index in 0..20 {
                journal.append(vec![leaves(index, 1, 4096)], |result| result.unwrap());
            }
            let reader = journal.reader().unwrap();
            append(&mut journal, vec![leaves(20, 20, 4096)]).unwrap();
            assert_eq!(whole(&reader), (0..20).map(|index| leaves(index, 1, 4096)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn batches_are_recorded_in_order_and_each_is_answered() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        let mut journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
        let (sender, receiver) = mpsc::channel();
        for index in 0..40 {
            let sender = sender.clone();
            journal.append(vec![leaves(index, 1, 4096)], move |result| sender.send((index, result)).unwrap());
        }
        drop((journal, sender));
        assert_eq!(receiver.into_iter().collect::<Vec<_>>(), (0..40).map(|index| (index, Ok(()))).collect::<Vec<_>>());
        drop(service);
        assert_eq!(JournalReader::open(&path).unwrap().records(), 40);
    }
}

#[test]
fn after_an_error_everything_fails_with_it() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        let mut journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
        append(&mut journal, vec![leaves(0, 1, 4096)]).unwrap();
        let error = append(&mut journal, vec![leaves(39, 2, 4096)]).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert_eq!(append(&mut journal, vec![leaves(1, 1, 4096)]), Err(error.clone()));
        assert_eq!(journal.reader().unwrap().durable().bytes(), 4096);
        assert_eq!(journal.finish(END, JournalDisposition::Remove), Err(error));
        assert_eq!(JournalReader::open(&path).unwrap().durable().bytes(), 4096);
    }
}

#[test]
fn a_failed_write_is_reported_and_sticks() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let (appender, start) = append::Appender::create(&small()).unwrap();
        let path = home.path().join("checkpoint");
        fs::write(&path, start.bytes).unwrap();
        let read_only = LockedJournal::alone(fs::File::open(&path).unwrap());
        let mut journal = service.open(read_only, Some(path.clone()), appender).unwrap();
        let error = append(&mut journal, vec![leaves(0, 1, 4096)]).unwrap_err();
        assert_eq!((error.errno, error.effect), (Some(Errno::EBADF as i32), Effect::Unknown));
        assert!(error.message.contains(path.to_str().unwrap()), "{error}");
        assert_eq!(append(&mut journal, vec![leaves(0, 1, 4096)]), Err(error.clone()));
        assert!(journal.reader().unwrap().durable().is_empty());
        assert_eq!(journal.close(), Err(error));
    }
}

#[test]
fn a_journal_in_use_is_busy() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        let journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
        let busy = [
            service.reopen(&path).map(drop),
            service.create(JournalLocation::File(&path), &small()).map(drop),
            service.create(JournalLocation::Replace(&path), &small()).map(drop),
        ];
        for error in busy.map(Result::unwrap_err) {
            assert_eq!(error.code, Code::Busy);
            assert!(error.message.contains("another copy uses this journal"), "{error}");
        }
        assert_eq!(names(home.path()), ["checkpoint"]);
        journal.close().unwrap();
        service.reopen(&path).unwrap().0.close().unwrap();
    }
}

#[test]
fn a_file_is_replaced_only_on_request_and_only_if_it_is_a_journal() {
    let home = TempDir::new().unwrap();
    let service = JournalService::start().unwrap();
    let path = home.path().join("checkpoint");
    for leftover in [vec![], vec![0; 100], vec![0; 1536]] {
        fs::write(&path, leftover).unwrap();
        service.create(JournalLocation::File(&path), &small()).unwrap().close().unwrap();
        let error = service.create(JournalLocation::File(&path), &small()).unwrap_err();
        assert_eq!(error.code, Code::Exists);
        assert!(error.message.contains("--resume") && error.message.contains("checkpoint"), "{error}");
    }
    let inode = fs::metadata(&path).unwrap().ino();
    let fresh = home.path().join("checkpoint.new");
    fs::write(&fresh, "another file").unwrap();
    assert_eq!(service.create(JournalLocation::Replace(&path), &small()).unwrap_err().code, Code::Exists);
    assert_eq!(fs::read(&fresh).unwrap(), b"another file");
    // Left by a crash.
    fs::write(&fresh, &fs::read(&path).unwrap()[..700]).unwrap();
    service.create(JournalLocation::Replace(&path), &small()).unwrap().close().unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
    let mut damaged = fs::read(&path).unwrap();
    damaged[3] ^= 8;
    fs::write(&path, damaged).unwrap();
    service.create(JournalLocation::Replace(&path), &small()).unwrap().close().unwrap();
    for precious in [b"my thesis".to_vec(), vec![0; 20_000]] {
        fs::write(&path, &precious).unwrap();
        for place in [JournalLocation::File(&path), JournalLocation::Replace(&path)] {
            assert_eq!(service.create(place, &small()).unwrap_err().code, Code::Exists);
        }
        assert_eq!(fs::read(&path).unwrap(), precious);
    }
    assert_eq!(names(home.path()), ["checkpoint"]);
}

#[test]
fn a_file_that_is_not_regular_is_left_alone() {
    let home = TempDir::new().unwrap();
    let service = JournalService::start().unwrap();
    let (fifo, path) = (home.path().join("fifo"), home.path().join("checkpoint"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = [
        service.create(JournalLocation::Replace(&fifo), &small()).map(drop),
        service.reopen(&fifo).map(drop),
        JournalReader::open(&fifo).map(drop),
        JournalReader::open(home.path()).map(drop),
        service.create(JournalLocation::File(&path), &small()).unwrap().finish(END, JournalDisposition::MoveTo(&fifo)),
        check_place(home.path()),
    ];
    assert!(refused.into_iter().all(|refused| refused.unwrap_err().code == Code::BadRequest));
    assert_eq!(names(home.path()), ["checkpoint", "fifo"]);
}

#[test]
fn a_journal_in_use_can_be_inspected() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        let mut journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
        let (sender, receiver) = mpsc::channel();
        for index in 0..200 {
            let sender = sender.clone();
            journal.append(vec![leaves(index % 40, 1, 4096)], move |_| sender.send(index).unwrap());
        }
        drop(sender);
        while let Ok(index) = receiver.recv() {
            assert!(JournalReader::open(&path).unwrap().records() > index);
        }
    }
}

#[test]
fn a_finished_journal_is_removed_kept_or_moved() {
    let home = TempDir::new().unwrap();
    // Another file system, so that a rename cannot do it, where this host has one that is.
    let elsewhere = TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap());
    for service in services() {
        let path = home.path().join("checkpoint");
        for to in [home.path().join("kept/receipt"), elsewhere.path().join("receipt")] {
            for _ in 0..2 {
                let journal = service.create(JournalLocation::File(&path), &small()).unwrap();
                journal.finish(END, JournalDisposition::MoveTo(&to)).unwrap();
                assert!(!path.exists());
                assert_eq!(JournalReader::open(&to).unwrap().finish(), Some(&END));
                assert_eq!(names(to.parent().unwrap()), ["receipt"]);
            }
        }
        service
            .create(JournalLocation::File(&path), &small())
            .unwrap()
            .finish(END, JournalDisposition::Remove)
            .unwrap();
        assert!(!path.exists());
        let to = home.path().join("from-scratch");
        let mut journal = service.create(JournalLocation::Scratch, &small()).unwrap();
        append(&mut journal, vec![leaves(0, 40, 4096)]).unwrap();
        journal.finish(END, JournalDisposition::MoveTo(&to)).unwrap();
        assert_eq!(JournalReader::open(&to).unwrap().durable().bytes(), 40 * 4096);
        service.create(JournalLocation::Scratch, &small()).unwrap().finish(END, JournalDisposition::Remove).unwrap();
    }
}

#[test]
fn a_receipt_does_not_replace_a_file_that_appeared_meanwhile() {
    let home = TempDir::new().unwrap();
    let elsewhere = TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap());
    let service = JournalService::start().unwrap();
    let path = home.path().join("checkpoint");
    let unfinished = || {
        let other = home.path().join("other");
        service.create(JournalLocation::Replace(&other), &small()).unwrap().close().unwrap();
        fs::read(other).unwrap()
    };
    for to in [home.path().join("receipt"), elsewhere.path().join("receipt")] {
        for precious in [b"my thesis".to_vec(), unfinished()] {
            assert_eq!(refuse_receipt(&to), Ok(()));
            let journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
            fs::write(&to, &precious).unwrap();
            assert_eq!(refuse_receipt(&to).unwrap_err().code, Code::Exists);
            let error = journal.finish(END, JournalDisposition::MoveTo(&to)).unwrap_err();
            assert_eq!((error.code, fs::read(&to).unwrap()), (Code::Exists, precious));
            assert_eq!(JournalReader::open(&path).unwrap().finish(), Some(&END), "the receipt is not lost");
            let fresh = to.with_extension("new");
            assert!(!fresh.exists());
            fs::write(&fresh, "my notes").unwrap();
            fs::remove_file(&to).unwrap();
            assert_eq!(refuse_receipt(&to).unwrap_err().code, Code::Exists);
            fs::remove_file(fresh).unwrap();
        }
        symlink(home.path().join("nowhere"), &to).unwrap();
        assert_eq!(refuse_receipt(&to).unwrap_err().code, Code::BadRequest);
        fs::remove_file(to).unwrap();
    }
}

#[test]
fn a_receipt_by_another_name_of_its_checkpoint_stays_where_it_is() {
    let home = TempDir::new().unwrap();
    let service = JournalService::start().unwrap();
    let path = home.path().join("checkpoint");
    let same = home.path().join("../").join(home.path().file_name().unwrap()).join("checkpoint");
    service
        .create(JournalLocation::File(&path), &small())
        .unwrap()
        .finish(END, JournalDisposition::MoveTo(&same))
        .unwrap();
    assert_eq!(JournalReader::open(&path).unwrap().finish(), Some(&END));
}

#[test]
fn the_lock_is_free_once_a_journal_is_closed() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        service.create(JournalLocation::Replace(&path), &small()).unwrap().close().unwrap();
        for _ in 0..50 {
            let (mut journal, _) = service.reopen(&path).unwrap();
            append(&mut journal, vec![leaves(3, 1, 4096)]).unwrap();
            journal.close().unwrap();
        }
        let slots = SLOT_OFFSETS.map(|offset| fs::read(&path).unwrap()[offset as usize]);
        assert!(slots.iter().all(|&byte| byte == b'B'), "both slots are in use");
    }
}

#[test]
fn a_kill_between_finish_and_move_leaves_a_receipt_to_move() {
    let home = TempDir::new().unwrap();
    let service = JournalService::start().unwrap();
    let (path, to) = (home.path().join("checkpoint"), home.path().join("receipt"));
    service.create(JournalLocation::File(&path), &small()).unwrap().close().unwrap();
    let error = service.finish_again(&path, JournalDisposition::MoveTo(&to)).unwrap_err();
    assert_eq!((error.code, to.exists()), (Code::CheckpointMismatch, false));
    service.reopen(&path).unwrap().0.finish(END, JournalDisposition::KeepInPlace).unwrap();
    assert_eq!(service.reopen(&path).unwrap_err().code, Code::CheckpointMismatch);
    assert_eq!(service.finish_again(&path, JournalDisposition::MoveTo(&to)), Ok(END));
    assert_eq!(names(home.path()), ["receipt"]);
    assert_eq!(service.finish_again(&to, JournalDisposition::Remove), Ok(END));
    assert_eq!(names(home.path()), Vec::<String>::new());
}

#[test]
fn a_name_replaced_meanwhile_is_not_removed() {
    let home = TempDir::new().unwrap();
    for service in services() {
        let path = home.path().join("checkpoint");
        let journal = service.create(JournalLocation::Replace(&path), &small()).unwrap();
        fs::rename(&path, home.path().join("moved")).unwrap();
        fs::write(&path, "another owner's").unwrap();
        journal.finish(END, JournalDisposition::Remove).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"another owner's");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn two_creators_of_one_name_never_both_win() {
    let home = TempDir::new().unwrap();
    for service in services() {
        for pass in 0..20 {
            let path = home.path().join(format!("{pass}"));
            let create = || service.create(JournalLocation::File(&path), &small());
            let won: Vec<_> = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
                racers.into_iter().filter_map(|racer| racer.join().unwrap().ok()).collect()
            });
            assert_eq!(won.len(), 1, "pass {pass}");
            assert_eq!(JournalReader::open(&path).unwrap().header(), &small());
            won.into_iter().for_each(|journal| journal.finish(END, JournalDisposition::Remove).unwrap());
        }
        assert_eq!(names(home.path()), Vec::<String>::new());
    }
}

#[test]
fn the_thread_ends_with_its_last_user() {
    for service in services() {
        let mut journal = service.create(JournalLocation::Scratch, &small()).unwrap();
        let (sender, receiver) = mpsc::channel::<()>();
        let last = service.clone();
        drop(service);
        // The callback holds the last handle but for the journal: the thread must not wait for itself.
        journal.append(vec![leaves(0, 1, 4096)], move |_| drop((last, sender)));
        drop(journal);
        assert!(receiver.recv().is_err());
    }
}

#[test]
fn the_default_name_is_stable_readable_and_its_own() {
    let path = |name: &str| default_checkpoint_path(Path::new("/state"), &name.into()).display().to_string();
    assert_eq!(path("/dev/sdb"), path("/dev/sdb"));
    assert!(path("/dev/sdb").starts_with("/state/sdb-") && path("/dev/sdb").ends_with(".journal"));
    assert_ne!(path("/a/disk.img"), path("/b/disk.img"));
    assert!(path("nbd://host:10809/größe ../x y").starts_with("/state/x_y-"));
    assert!(!path("/dev/..").contains(".."));
    assert!(path(&format!("/{}", "n".repeat(5000))).len() < 100);
    assert!(path("").starts_with("/state/-"));
}
