//! Tests the contract of [`Ring`] on every backend.
//!
//! Goal: pipeline and journal can rely on the documentation of [`Ring`] with every backend. Method: every test is a
//! function of a ring, and runs on io_uring, on io_uring with queues of one entry (so that they overflow all the time),
//! and on threads.

use super::setup::{Queues, SetupError};
use super::threads::ThreadRing;
use super::uring::{UringConfig, UringRing};
use super::*;
use crate::buffer::{Arena, Block};
use blockhaul_testkit::unmet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

/// Operations in flight in every test.
const SLOTS: usize = 64;
/// Longest wait; far longer than any operation of these tests takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs each function on each backend, as a test of its own.
macro_rules! on_every_face {
    ($($test:ident)+) => {
        mod uring { $(#[test] fn $test() { super::on_uring(stringify!($test), super::$test, None); })+ }
        mod tiny_uring { $(#[test] fn $test() { super::on_uring(stringify!($test), super::$test, Some(super::TINY)); })+ }
        mod threads { $(#[test] fn $test() { super::$test(&mut super::ThreadRing::new(3, super::SLOTS).unwrap()); })+ }
    };
}

on_every_face! {
    an_idle_ring_has_no_completion_and_does_not_wait
    every_operation_completes_once_and_keeps_its_block
    writes_and_reads_use_the_given_offsets
    a_part_of_a_block_leaves_the_rest_alone
    reads_end_at_the_end_of_the_file
    nothing_starts_before_submission
    a_wait_for_too_much_is_clamped
    a_wait_ends_at_its_limit_or_with_a_completion
    a_failed_operation_returns_its_block
    misaligned_direct_io_is_an_error_of_its_operation_only
    zeroing_keeps_the_size_and_allocates_or_punches
    a_flush_completes_with_0
    slots_are_reused
    a_ring_can_end_before_it_submits
}

mod sockets;

/// Queues that hold one entry each.
const TINY: Queues = Queues { submission: 1, completions_per_entry: 1 };

/// Runs a test on io_uring, if there is one.
fn on_uring(name: &str, test: fn(&mut dyn Ring), queues: Option<Queues>) {
    let config = UringConfig { slots: SLOTS, arena: None };
    let ring = match queues {
        Some(queues) => UringRing::with_queues(config, queues),
        None => UringRing::new(config),
    };
    match ring {
        Ok(mut ring) => test(&mut ring),
        Err(error @ SetupError::Denied(_)) => unmet(name, &error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

fn id(file: &File) -> FileId {
    FileId(file.as_raw_fd())
}

fn whole(block: Block) -> Transfer {
    let len = u32::try_from(block.len()).unwrap();
    Transfer { block, start: 0, len }
}

fn read(file: FileId, offset: u64, block: Block) -> Op {
    Op::Read { file, offset, into: whole(block) }
}

fn write(file: FileId, offset: u64, block: Block) -> Op {
    Op::Write { file, offset, from: whole(block), dont_cache: false }
}

fn block_of(byte: u8) -> Block {
    let mut block = Block::alone(4096).unwrap();
    block.fill(byte);
    block
}

/// Creates an unnamed file with this content, on a disk rather than in memory.
fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
    file.write_all(content).unwrap();
    file
}

/// Submits, and reaps until no operation is in flight.
fn drain(ring: &mut dyn Ring) -> Vec<Completion> {
    let mut completions = Vec::new();
    while ring.in_flight() > 0 {
        ring.submit_and_wait(ring.in_flight(), PATIENCE).unwrap();
        completions.extend(std::iter::from_fn(|| ring.reap()));
    }
    completions
}

/// Submits one operation and returns its completion.
fn complete(ring: &mut dyn Ring, op: Op) -> Completion {
    ring.push(Token(99), op);
    let mut completions = drain(ring);
    assert_eq!(completions.len(), 1);
    completions.pop().unwrap()
}

fn an_idle_ring_has_no_completion_and_does_not_wait(ring: &mut dyn Ring) {
    let before = ring.now();
    ring.submit_and_wait(5, PATIENCE).unwrap();
    assert!(ring.reap().is_none());
    assert_eq!(ring.in_flight(), 0);
    assert!(ring.now() >= before);
    assert_eq!(ring.syscalls(), 0, "an idle ring makes no system call");
}

fn every_operation_completes_once_and_keeps_its_block(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    let blocks = Arc::new(Arena::new(SLOTS * 4096).unwrap()).split(4096, SLOTS);
    let places: Vec<_> = blocks.iter().map(Block::offset_in_arena).collect();
    for (index, block) in blocks.into_iter().enumerate() {
        ring.push(Token(index as u64), read(id(&file), 0, block));
        assert_eq!(ring.in_flight(), index + 1);
    }
    let mut completions = drain(ring);
    completions.sort_by_key(|completion| completion.token.0);
    assert_eq!(completions.len(), SLOTS);
    for (index, completion) in completions.into_iter().enumerate() {
        assert_eq!((completion.token, completion.result), (Token(index as u64), Ok(4096)));
        let block = completion.block.unwrap();
        assert_eq!(block.offset_in_arena(), places[index]);
        assert!(block.iter().all(|&byte| byte == 7));
    }
    assert!(ring.reap().is_none());
    assert!(ring.syscalls() > 0);
}

fn writes_and_reads_use_the_given_offsets(ring: &mut dyn Ring) {
    let file = file_of(&[]);
    for index in (0..SLOTS as u64).rev() {
        ring.push(Token(index), write(id(&file), index * 4096, block_of(index as u8)));
    }
    assert!(drain(ring).iter().all(|completion| completion.result == Ok(4096)));
    let content = content(&file);
    assert_eq!(content.len(), SLOTS * 4096);
    assert!(content.chunks(4096).enumerate().all(|(index, chunk)| chunk.iter().all(|&byte| byte == index as u8)));
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

fn a_part_of_a_block_leaves_the_rest_alone(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    let into = Transfer { block: block_of(1), start: 100, len: 50 };
    let block = complete(ring, Op::Read { file: id(&file), offset: 3, into }).block.unwrap();
    assert!(block[100..150].iter().all(|&byte| byte == 7));
    assert!(block[..100].iter().chain(&block[150..]).all(|&byte| byte == 1));
    let from = Transfer { block, start: 99, len: 2 };
    let completion = complete(ring, Op::Write { file: id(&file), offset: 0, from, dont_cache: false });
    assert_eq!(completion.result, Ok(2));
    assert_eq!(content(&file)[..3], [1, 7, 7]);
}

fn reads_end_at_the_end_of_the_file(ring: &mut dyn Ring) {
    let file = file_of(&[7; 6000]);
    for (offset, expected) in [(0, 4096), (4096, 1904), (5999, 1), (6000, 0), (1 << 40, 0)] {
        let completion = complete(ring, read(id(&file), offset, block_of(1)));
        assert_eq!(completion.result, Ok(expected), "at {offset}");
        let block = completion.block.unwrap();
        assert!(block[..expected as usize].iter().all(|&byte| byte == 7));
        assert!(block[expected as usize..].iter().all(|&byte| byte == 1));
    }
}

fn nothing_starts_before_submission(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    ring.push(Token(1), write(id(&file), 0, block_of(1)));
    assert!(ring.reap().is_none());
    assert_eq!((ring.in_flight(), ring.syscalls()), (1, 0));
    assert_eq!(content(&file), [7; 4096]);
    drain(ring);
    assert_eq!(content(&file), [1; 4096]);
}

fn a_wait_for_too_much_is_clamped(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    ring.push(Token(1), read(id(&file), 0, block_of(1)));
    ring.submit_and_wait(usize::MAX, Duration::MAX).unwrap();
    while ring.reap().is_none() {
        ring.submit_and_wait(usize::MAX, Duration::MAX).unwrap();
    }
    ring.submit_and_wait(usize::MAX, Duration::MAX).unwrap();
    assert_eq!(ring.in_flight(), 0);
}

fn a_wait_ends_at_its_limit_or_with_a_completion(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    for limit in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(2)] {
        ring.push(Token(1), read(id(&file), 0, block_of(1)));
        let mut reaped = 0;
        while ring.in_flight() > 0 {
            ring.submit_and_wait(1, limit).unwrap();
            reaped += std::iter::from_fn(|| ring.reap()).count();
        }
        assert_eq!(reaped, 1);
    }
}

fn a_failed_operation_returns_its_block(ring: &mut dyn Ring) {
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    let cases = [
        (read(FileId(-1), 0, block_of(1)), Errno::EBADF),
        (read(FileId(1 << 20), 0, block_of(2)), Errno::EBADF),
        (write(id(&full), 0, block_of(3)), Errno::ENOSPC),
        (write(id(&read_only), 0, block_of(4)), Errno::EBADF),
        (read(id(&read_only), u64::MAX, block_of(5)), Errno::EINVAL),
    ];
    for (index, (op, errno)) in cases.into_iter().enumerate() {
        let completion = complete(ring, op);
        assert_eq!(completion.result, Err(errno), "case {index}");
        assert!(completion.block.unwrap().iter().all(|&byte| byte == index as u8 + 1));
    }
    assert_eq!(complete(ring, Op::Flush { file: FileId(-1) }).result, Err(Errno::EBADF));
    let zero = Op::Zero { file: FileId(-1), offset: 0, len: 1, mode: ZeroMode::Hole };
    assert_eq!(complete(ring, zero).result, Err(Errno::EBADF));
}

fn misaligned_direct_io_is_an_error_of_its_operation_only(ring: &mut dyn Ring) {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("direct");
    std::fs::write(&path, [7; 8192]).unwrap();
    let file = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_DIRECT).open(&path).unwrap();
    ring.push(Token(0), read(id(&file), 0, block_of(1)));
    ring.push(Token(1), read(id(&file), 1, block_of(1)));
    ring.push(Token(2), read(id(&file), 4096, block_of(1)));
    let mut completions = drain(ring);
    completions.sort_by_key(|completion| completion.token.0);
    let results: Vec<_> = completions.iter().map(|completion| completion.result).collect();
    assert_eq!(results, [Ok(4096), Err(Errno::EINVAL), Ok(4096)]);
}

fn zeroing_keeps_the_size_and_allocates_or_punches(ring: &mut dyn Ring) {
    use std::os::unix::fs::MetadataExt;
    for mode in [ZeroMode::Allocated, ZeroMode::Hole] {
        let file = file_of(&[7; 1 << 20]);
        file.sync_all().unwrap();
        let allocated = file.metadata().unwrap().blocks();
        let zero = Op::Zero { file: id(&file), offset: 4096, len: 8 << 20, mode };
        let completion = complete(ring, zero);
        if completion.result == Err(Errno::EOPNOTSUPP) {
            unmet("zeroing", &format!("the file system of /var/tmp has no {mode:?} zeroing"));
            continue;
        }
        assert_eq!(completion.result, Ok(0));
        assert!(completion.block.is_none());
        let content = content(&file);
        assert_eq!(content.len(), 1 << 20, "the size stays");
        assert!(content[..4096].iter().all(|&byte| byte == 7));
        assert!(content[4096..].iter().all(|&byte| byte == 0));
        let now = file.metadata().unwrap().blocks();
        assert_eq!(mode == ZeroMode::Hole, now < allocated, "{mode:?}: {allocated} sectors, then {now}");
    }
}

fn a_flush_completes_with_0(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    let completion = complete(ring, Op::Flush { file: id(&file) });
    assert_eq!(completion.result, Ok(0));
    assert!(completion.block.is_none());
}

fn slots_are_reused(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    let mut blocks = Arc::new(Arena::new(SLOTS * 4096).unwrap()).split(4096, SLOTS);
    let (mut pushed, mut reaped) = (0, 0);
    while reaped < 20 * SLOTS as u64 {
        while let Some(block) = blocks.pop_if(|_| pushed < 20 * SLOTS as u64) {
            ring.push(Token(pushed), read(id(&file), 0, block));
            pushed += 1;
        }
        ring.submit_and_wait(3, PATIENCE).unwrap();
        while let Some(completion) = ring.reap() {
            assert_eq!(completion.result, Ok(4096));
            blocks.push(completion.block.unwrap());
            reaped += 1;
        }
    }
    assert_eq!((ring.in_flight(), blocks.len(), pushed), (0, SLOTS, reaped));
}

fn a_ring_can_end_before_it_submits(ring: &mut dyn Ring) {
    for token in 0..SLOTS as u64 {
        ring.push(Token(token), Op::Flush { file: FileId(-1) });
    }
}
