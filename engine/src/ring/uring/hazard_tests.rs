//! Tests the hazards of an io_uring ring, one test each.
//!
//! Goal: no memory that the kernel may touch is ever used again; denials and limits are reported or worked around; only
//! one thread uses the ring. Method: real pipes, sockets and files; a seccomp filter on a thread of its own; this
//! program run again as a user with a small limit on locked memory.

use super::*;
use crate::buffer::Block;
use crate::ring::ZeroMode;
use blockhaul_testkit::need;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Linger, RcvBuf, SndBuf};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;

/// Longest wait; far longer than any operation of these tests takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Environment variable of the process that runs as a user with a small limit on locked memory.
const POOR: &str = "BLOCKHAUL_TEST_MEMLOCK";

const _: fn() = || {
    /// Has one `check` for every type, and a second one for types that are `Send`.
    trait AmbiguousIfSend<A> {
        fn check() {}
    }
    impl<T: ?Sized> AmbiguousIfSend<()> for T {}
    impl<T: ?Sized + Send> AmbiguousIfSend<u8> for T {}
    // Does not compile if a ring can move to another thread.
    let _ = <UringRing as AmbiguousIfSend<_>>::check;
};

/// Creates a ring; an error on a host that denies io_uring.
fn ring(slots: usize, arena: Option<&Arc<Arena>>) -> Result<UringRing, SetupError> {
    match UringRing::new(UringConfig { slots, arena }) {
        Err(error) if !matches!(error, SetupError::Denied(_)) => panic!("{error}"),
        made_or_denied => made_or_denied,
    }
}

fn read(file: &impl AsRawFd, block: Block) -> Op {
    let len = u32::try_from(block.len()).unwrap();
    Op::Read { file: FileId(file.as_raw_fd()), offset: 0, into: Transfer { block, start: 0, len } }
}

fn one(ring: &mut UringRing) -> Completion {
    ring.submit_and_wait(1, PATIENCE).unwrap();
    ring.reap().expect("a completion")
}

#[test]
fn registered_and_other_blocks_can_be_used() {
    let arena = Arc::new(Arena::new(2 << 20).unwrap());
    let mut ring = need!("registered_and_other_blocks_can_be_used", ring(2, Some(&arena)));
    let pinned = ring.registered_bytes();
    assert!(pinned == 0 || pinned == 2 << 20, "{pinned}");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 4096]).unwrap();
    let block = arena.split(1 << 20, 1).pop().unwrap();
    for block in [block, Block::alone(4096).unwrap()] {
        ring.push(Token(1), read(&file, block));
        let completion = one(&mut ring);
        assert_eq!(completion.result, Ok(4096));
        let mut block = completion.block.unwrap();
        assert!(block[..4096].iter().all(|&byte| byte == 7));
        block[..4096].fill(8);
        let from = Transfer { block, start: 0, len: 4096 };
        ring.push(Token(2), Op::Write { file: FileId(file.as_raw_fd()), offset: 0, from, dont_cache: false });
        assert_eq!(one(&mut ring).result, Ok(4096));
        ring.push(Token(3), read(&file, Block::alone(4096).unwrap()));
        assert!(one(&mut ring).block.unwrap().iter().all(|&byte| byte == 8));
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 0).unwrap();
    }
}

#[test]
fn an_arena_at_the_address_of_the_registered_one_is_not_mistaken_for_it() {
    let arena = Arc::new(Arena::new(2 << 20).unwrap());
    let ring = need!("an_arena_at_the_address_of_the_registered_one_is_not_mistaken_for_it", ring(1, Some(&arena)));
    let whole = |block| Transfer { block, start: 0, len: 4096 };
    let own = whole(arena.split(4096, 1).pop().unwrap());
    assert_eq!(ring.is_registered(&own), ring.registered_bytes() > 0);
    drop(own);
    // Often mapped at the address that was just freed.
    assert!(!ring.is_registered(&whole(Block::alone(4096).unwrap())));
}

#[test]
fn a_wait_ends_at_its_limit_and_the_operation_goes_on() {
    let mut ring = need!("a_wait_ends_at_its_limit_and_the_operation_goes_on", ring(1, None));
    let (reader, mut writer) = std::io::pipe().unwrap();
    ring.push(Token(1), read(&reader, Block::alone(4096).unwrap()));
    for limit in [Duration::ZERO, Duration::from_millis(1)] {
        ring.submit_and_wait(1, limit).unwrap();
        assert!(ring.reap().is_none());
        assert_eq!(ring.in_flight(), 1);
    }
    writer.write_all(&[9; 10]).unwrap();
    let completion = one(&mut ring);
    assert_eq!(completion.result, Ok(10));
    assert!(completion.block.unwrap()[..10].iter().all(|&byte| byte == 9));
}

#[test]
fn a_poll_without_a_wait_sees_what_arrived() {
    let mut ring = need!("a_poll_without_a_wait_sees_what_arrived", ring(1, None));
    let (reader, mut writer) = std::io::pipe().unwrap();
    ring.push(Token(1), read(&reader, Block::alone(4096).unwrap()));
    ring.submit_and_wait(0, PATIENCE).unwrap();
    writer.write_all(&[9; 10]).unwrap();
    let completion = loop {
        ring.submit_and_wait(0, PATIENCE).unwrap();
        if let Some(completion) = ring.reap() {
            break completion;
        }
        std::thread::yield_now();
    };
    assert_eq!(completion.result, Ok(10));
}

#[test]
fn a_ring_dropped_early_never_frees_memory_in_use() {
    let arena = Arc::new(Arena::new(4096).unwrap());
    let mut ring = need!("a_ring_dropped_early_never_frees_memory_in_use", ring(2, Some(&arena)));
    let mut blocks = arena.split(4096, 3);
    let witness = blocks.pop().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    ring.push(Token(1), read(&reader, blocks.pop().unwrap()));
    ring.submit_and_wait(0, PATIENCE).unwrap();
    ring.push(Token(2), read(&reader, blocks.pop().unwrap()));
    drop(ring);
    assert_eq!(witness.arena_users(), 2, "the block in flight is leaked, the block of the unstarted operation is free");
    let place = witness.as_ptr() as usize;
    drop(witness);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_mapped = maps.lines().any(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).unwrap());
        (start..end).contains(&place)
    });
    assert!(is_mapped, "an operation in flight keeps its arena mapped");
}

#[test]
fn buffers_poisoned_after_teardown_reach_no_disk() {
    const BLOCK_BYTES: usize = 1 << 20;
    const BLOCKS: usize = 16;
    let arena = Arc::new(Arena::new(BLOCKS * BLOCK_BYTES).unwrap());
    let mut ring = need!("buffers_poisoned_after_teardown_reach_no_disk", ring(BLOCKS, Some(&arena)));
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("late");
    // Written first, so that the kernel starts the writes itself instead of handing them to a worker.
    std::fs::write(&path, vec![0x11; BLOCKS * BLOCK_BYTES]).unwrap();
    let mut options = File::options();
    options.read(true).write(true);
    let direct = std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT).open(&path);
    let file = direct.unwrap_or_else(|_| File::options().read(true).write(true).open(&path).unwrap());
    file.sync_all().unwrap();
    for (index, mut block) in arena.split(BLOCK_BYTES, BLOCKS).into_iter().enumerate() {
        block.fill(0xAA);
        let from = Transfer { block, start: 0, len: BLOCK_BYTES as u32 };
        let offset = (index * BLOCK_BYTES) as u64;
        ring.push(Token(index as u64), Op::Write { file: FileId(file.as_raw_fd()), offset, from, dont_cache: false });
    }
    ring.submit_and_wait(0, PATIENCE).unwrap();
    drop(ring);
    let poisoned = Arc::new(Arena::new(BLOCKS * BLOCK_BYTES).unwrap()).split(BLOCK_BYTES, BLOCKS);
    poisoned.into_iter().for_each(|mut block| block.fill(0x55));
    // Shrinking a file waits for the direct writes to it.
    file.set_len((BLOCKS * BLOCK_BYTES - 4096) as u64).unwrap();
    let content = std::fs::read(&path).unwrap();
    assert!(content.iter().all(|&byte| byte == 0x11 || byte == 0xAA), "a new owner's bytes were written");
}

#[test]
fn completions_that_overflow_their_queue_arrive() {
    const OPERATIONS: usize = 64;
    need!("completions_that_overflow_their_queue_arrive", ring(1, None));
    let queues = Queues { submission: 1, completions_per_entry: 1 };
    let mut ring = UringRing::with_queues(UringConfig { slots: OPERATIONS, arena: None }, queues).unwrap();
    let zeros = File::open("/dev/zero").unwrap();
    let blocks = Arc::new(Arena::new(OPERATIONS * 4096).unwrap()).split(4096, OPERATIONS);
    for (token, block) in blocks.into_iter().enumerate() {
        ring.push(Token(token as u64), read(&zeros, block));
    }
    ring.submit_and_wait(OPERATIONS, PATIENCE).unwrap();
    assert!(ring.ring.0.submission().cq_overflow(), "64 completions do not fit into a queue of one");
    let mut tokens = Vec::new();
    while ring.in_flight() > 0 {
        ring.submit_and_wait(1, PATIENCE).unwrap();
        tokens.extend(std::iter::from_fn(|| ring.reap()).map(|completion| completion.token.0));
    }
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..OPERATIONS as u64));
}

#[test]
fn the_kernel_refuses_another_thread() {
    let ring = need!("the_kernel_refuses_another_thread", ring(1, None));
    let has_it = ring.ring.0.params().is_setup_single_issuer();
    need!("the_kernel_refuses_another_thread", has_it.then_some(()).ok_or("no IORING_SETUP_SINGLE_ISSUER"));
    let inner = &ring.ring.0;
    let refusal = std::thread::scope(|scope| scope.spawn(|| inner.submitter().submit_and_wait(1)).join().unwrap());
    assert_eq!(refusal.unwrap_err().raw_os_error(), Some(libc::EEXIST));
}

#[test]
fn a_denial_by_seccomp_is_named() {
    let denied = std::thread::spawn(|| {
        deny_io_uring();
        UringRing::new(UringConfig { slots: 8, arena: None }).map(drop)
    });
    assert_eq!(denied.join().unwrap(), Err(SetupError::Denied(Errno::EPERM)));
}

#[test]
fn little_locked_memory_only_leaves_buffers_unregistered() {
    if std::env::var_os(POOR).is_some() {
        return reads_work_with_almost_no_locked_memory();
    }
    let directory = tempfile::tempdir().unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), everybody).unwrap();
    let program = directory.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let name = "ring::uring::hazard_tests::little_locked_memory_only_leaves_buffers_unregistered";
    let mut child = std::process::Command::new("sh");
    child.args(["-c", "ulimit -l 64 && exec \"$@\"", "sh"]).arg(&program).args([name, "--exact", "--nocapture"]);
    child.env(POOR, "1").current_dir("/");
    if nix::unistd::geteuid().is_root() {
        // A user of its own, as the limit counts per user: another run of this test must not use it up.
        child.uid(100_000 + std::process::id()).gid(65534);
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn reads_work_with_almost_no_locked_memory() {
    let arena = Arc::new(Arena::new(2 << 20).unwrap());
    let mut ring = need!("reads_work_with_almost_no_locked_memory", ring(256, Some(&arena)));
    assert_eq!(ring.registered_bytes(), 0);
    let mut others = Vec::new();
    let refused = loop {
        match UringRing::new(UringConfig { slots: 256, arena: None }) {
            Ok(other) if others.len() < 16 => others.push(other),
            Ok(_) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(matches!(refused, None | Some(SetupError::Exhausted(Errno::ENOMEM))), "{refused:?}");
    let block = arena.split(1 << 20, 1).pop().unwrap();
    ring.push(Token(1), read(&File::open("/proc/self/exe").unwrap(), block));
    assert_eq!(one(&mut ring).token, Token(1));
    ring.push(Token(2), Op::Zero { file: FileId(-1), offset: 0, len: 1, mode: ZeroMode::Hole });
    assert_eq!(one(&mut ring).result, Err(Errno::EBADF));
}

/// A unix connection, and the name of its first end.
fn connection() -> (FileId, UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    (FileId(near.as_raw_fd()), near, far)
}

fn transfer(block: Block) -> Transfer {
    let len = u32::try_from(block.len()).unwrap();
    Transfer { block, start: 0, len }
}

#[test]
fn a_ring_dropped_before_its_receive_completes_leaks_blocks_and_messages() {
    let arena = Arc::new(Arena::new(3 * 4096).unwrap());
    let mut ring =
        need!("a_ring_dropped_before_its_receive_completes_leaks_blocks_and_messages", ring(2, Some(&arena)));
    let mut blocks = arena.split(4096, 3);
    let witness = blocks.pop().unwrap();
    let (file, _near, _far) = connection();
    let (head, body) = (blocks.pop().map(transfer), blocks.pop().map(transfer));
    ring.push(Token(1), Op::Receive { file, head, body, all: true });
    ring.submit_and_wait(1, Duration::from_millis(1)).unwrap();
    let messages = ring.messages.witness();
    drop(ring);
    assert_eq!(witness.arena_users(), 3, "both blocks");
    assert_eq!(messages.strong_count(), 1, "and the message that names them");
}

#[test]
fn a_ring_dropped_after_its_receive_leaks_nothing() {
    let mut ring = need!("a_ring_dropped_after_its_receive_leaks_nothing", ring(2, None));
    let (file, near, far) = connection();
    let block = || transfer(Block::alone(4096).unwrap());
    ring.push(Token(1), Op::Receive { file, head: Some(block()), body: Some(block()), all: true });
    ring.submit_and_wait(1, Duration::from_millis(1)).unwrap();
    near.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(one(&mut ring).result, Ok(0));
    let file = FileId(far.as_raw_fd());
    ring.push(Token(2), Op::Receive { file, head: Some(block()), body: Some(block()), all: true });
    let messages = ring.messages.witness();
    drop(ring);
    assert_eq!(messages.strong_count(), 0, "one was answered, the other never started");
}

/// Bytes of a send that the kernel accepts entirely although the peer receives almost nothing.
const LENT_BYTES: usize = 256 << 10;

/// Makes a zero-copy send whose memory the network still uses, as the peer has not received it. An error if the kernel
/// always makes a copy.
fn lend(ring: &mut UringRing, near: &TcpStream) -> Result<(), &'static str> {
    let mut body = Block::alone(LENT_BYTES).unwrap();
    body.fill(7);
    let head = Transfer { block: Block::alone(28).unwrap(), start: 0, len: 28 };
    let file = FileId(near.as_raw_fd());
    ring.push(Token(1), Op::Send { file, head, body: Some(transfer(body)), zero_copy: true, waits: true });
    let first = at_last(ring);
    if !first.more {
        assert!(first.copied, "returned while the network reads it");
        return Err("the kernel cannot send without a copy");
    }
    assert_eq!(first.result, Ok(28 + LENT_BYTES as u32));
    assert!(first.head.is_none() && first.block.is_none(), "returned while the network reads it");
    is_still_lent(ring);
    Ok(())
}

fn is_still_lent(ring: &mut UringRing) {
    ring.submit_and_wait(1, Duration::from_millis(20)).unwrap();
    assert!(ring.reap().is_none(), "returned while the network reads it");
    assert_eq!(ring.in_flight(), 1);
}

/// Waits for a completion that may take more than one answer.
fn at_last(ring: &mut UringRing) -> Completion {
    loop {
        ring.submit_and_wait(1, PATIENCE).unwrap();
        if let Some(completion) = ring.reap() {
            return completion;
        }
    }
}

#[test]
fn memory_of_a_zero_copy_send_is_returned_when_the_network_releases_it() {
    let mut ring = need!("memory_of_a_zero_copy_send_is_returned_when_the_network_releases_it", ring(1, None));
    let (near, mut far) = narrow_connection();
    need!("memory_of_a_zero_copy_send_is_returned_when_the_network_releases_it", lend(&mut ring, &near));
    let mut arrived = vec![0; 28 + LENT_BYTES];
    far.read_exact(&mut arrived).unwrap();
    assert!(arrived[28..].iter().all(|&byte| byte == 7));
    let completion = at_last(&mut ring);
    assert_eq!(completion.result, Ok(28 + LENT_BYTES as u32));
    assert!(completion.head.is_some() && completion.block.is_some());
}

#[test]
fn only_a_reset_releases_memory_that_the_peer_never_receives() {
    let mut ring = need!("only_a_reset_releases_memory_that_the_peer_never_receives", ring(1, None));
    let (near, _far) = narrow_connection();
    need!("only_a_reset_releases_memory_that_the_peer_never_receives", lend(&mut ring, &near));
    near.shutdown(std::net::Shutdown::Both).unwrap();
    is_still_lent(&mut ring);
    setsockopt(&near, Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(near);
    let completion = at_last(&mut ring);
    assert!(completion.head.is_some() && completion.block.is_some());
}

#[test]
fn a_ring_dropped_during_a_zero_copy_send_never_frees_its_memory() {
    let mut ring = need!("a_ring_dropped_during_a_zero_copy_send_never_frees_its_memory", ring(1, None));
    let (near, _far) = narrow_connection();
    need!("a_ring_dropped_during_a_zero_copy_send_never_frees_its_memory", lend(&mut ring, &near));
    let messages = ring.messages.witness();
    drop(ring);
    assert_eq!(messages.strong_count(), 1);
}

/// A TCP connection with a send buffer of a megabyte and a tiny receive buffer.
fn narrow_connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    setsockopt(&listener, RcvBuf, &(32 << 10)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    setsockopt(&near, SndBuf, &(1 << 20)).unwrap();
    (near, listener.accept().unwrap().0)
}

#[test]
fn a_refused_zero_copy_send_is_sent_with_a_copy() {
    let mut ring = need!("a_refused_zero_copy_send_is_sent_with_a_copy", ring(1, None));
    let (file, _near, mut far) = connection();
    for round in 0..3 {
        let mut head = Block::alone(4096).unwrap();
        head.fill(round);
        ring.push(Token(1), Op::Send { file, head: transfer(head), body: None, zero_copy: true, waits: true });
        let completion = loop {
            let completion = at_last(&mut ring);
            if !completion.more {
                break completion;
            }
        };
        assert_eq!((completion.result, completion.copied), (Ok(4096), true));
        let mut arrived = [9; 4096];
        far.read_exact(&mut arrived).unwrap();
        assert_eq!(arrived, [round; 4096]);
    }
}

#[test]
fn a_ring_dropped_with_a_refused_send_leaks_no_memory() {
    let arena = Arc::new(Arena::new(3 * 4096).unwrap());
    let mut ring = need!("a_ring_dropped_with_a_refused_send_leaks_no_memory", ring(1, None));
    let mut blocks = arena.split(4096, 3);
    let witness = blocks.pop().unwrap();
    let (file, _near, _far) = connection();
    let (head, body) = (transfer(blocks.pop().unwrap()), blocks.pop().map(transfer));
    ring.push(Token(1), Op::Send { file, head, body, zero_copy: true, waits: true });
    // Refused at once on unix sockets; it would be sent again at the next submission, which never comes.
    loop {
        ring.submit_and_wait(1, PATIENCE).unwrap();
        assert!(ring.reap().is_none(), "the send was refused");
        if !ring.queued.is_empty() {
            break;
        }
    }
    drop(ring);
    assert_eq!(witness.arena_users(), 1);
}
