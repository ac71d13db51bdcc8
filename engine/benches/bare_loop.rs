//! Measures the floor: how fast a copy can be that does nothing else.
//!
//! A loop on the bare `io-uring` crate: direct I/O, preallocated destination, registered buffers on huge pages, a ring
//! and a share of the file per thread, one flush at the end. No holes, no checks, no checkpoints, no pleasant errors.
//! The engine is measured against it; what the engine costs more is what safety costs.
//!
//! `cargo bench -p blockhaul-engine --bench bare_loop -- SRC DST [--block BYTES] [--depth N] [--threads N]
//! [--flush-every BYTES]` prints one JSON line. The depth is that of all threads together. Run as a test it copies a
//! small file and compares.

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

const HUGE_PAGE_BYTES: usize = 2 << 20;
const SECTOR_BYTES: u64 = 4096;
/// What the operation of a completion was; the low bits are its slot.
const WRITE: u64 = 1 << 32;
const FLUSH: u64 = 1 << 33;

#[derive(Clone, Copy)]
struct Shape {
    block: u64,
    depth: usize,
    threads: usize,
    /// Bytes written by a thread between two flushes on the way.
    flush_every: u64,
}

fn main() {
    let mut shape = Shape { block: 1 << 20, depth: 8, threads: 1, flush_every: u64::MAX };
    let (mut paths, mut arguments) = (Vec::new(), std::env::args().skip(1));
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("a number follows the flag");
        match argument.as_str() {
            "--block" => shape.block = number(),
            "--depth" => shape.depth = number() as usize,
            "--threads" => shape.threads = number() as usize,
            "--flush-every" => shape.flush_every = number(),
            "--bench" => {}
            _ => paths.push(argument),
        }
    }
    match paths.as_slice() {
        [source, destination] => println!("{}", measure(Path::new(source), Path::new(destination), shape)),
        _ => try_out(shape),
    }
}

/// A small copy with an odd tail, compared: keeps the loop from rotting.
fn try_out(shape: Shape) {
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let [source, destination] = ["source", "destination"].map(|name| directory.path().join(name));
    let content: Vec<u8> = (0..(5 << 20) + 777_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(&source, &content).expect("write the source");
    for threads in [1, 2] {
        let line = measure(&source, &destination, Shape { threads, block: 256 << 10, flush_every: 1 << 20, ..shape });
        assert!(std::fs::read(&destination).expect("read the destination") == content, "the copy differs");
        println!("{line}");
    }
}

/// Copies, and says in JSON what it took.
fn measure(source: &Path, destination: &Path, shape: Shape) -> serde_json::Value {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let (bytes, syscalls) = copy(source, destination, shape);
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    serde_json::json!({
        "block_bytes": shape.block, "depth": shape.depth, "threads": shape.threads, "bytes": bytes,
        "seconds": seconds, "mib_per_second": bytes as f64 / seconds / f64::from(1 << 20),
        "cpu_seconds": cpu, "syscalls": syscalls,
    })
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("own usage");
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}

/// Opens direct where the file system can.
fn open(path: &Path, write: bool) -> File {
    let open = |flags| OpenOptions::new().read(true).write(write).create(write).custom_flags(flags).open(path);
    open(libc::O_DIRECT).or_else(|_| open(0)).expect("open the file")
}

fn copy(source: &Path, destination: &Path, shape: Shape) -> (u64, u64) {
    let (from, to) = (open(source, false), open(destination, true));
    let size = from.metadata().expect("the source's size").len();
    let aligned = size.next_multiple_of(SECTOR_BYTES);
    // A file system without it merely makes a slower copy.
    let _ = fallocate(&to, FallocateFlags::empty(), 0, aligned as i64);
    let share = size.div_ceil(shape.threads as u64).next_multiple_of(shape.block);
    let syscalls = std::thread::scope(|scope| {
        let start = |index: u64| {
            let range = (index * share).min(size)..((index + 1) * share).min(size);
            let (from, to) = (&from, &to);
            scope.spawn(move || copy_range(from, to, range, shape))
        };
        let threads: Vec<_> = (0..shape.threads as u64).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread copied")).sum()
    });
    to.set_len(size).expect("cut off the padding");
    to.sync_data().expect("flush");
    (size, syscalls)
}

/// The loop of one thread: a slot reads its block, writes it, and takes the next one.
fn copy_range(from: &File, to: &File, range: std::ops::Range<u64>, shape: Shape) -> u64 {
    let (block, slots) = (shape.block as usize, (shape.depth / shape.threads).max(1));
    let len = NonZeroUsize::new((block * slots).next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES).expect("not 0");
    // SAFETY: a fresh private mapping that is never unmapped: it outlives every operation.
    let buffers = unsafe {
        let raw = mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        let raw = raw.expect("map buffers").cast::<u8>();
        let _ = madvise(raw.cast(), len.get(), MmapAdvise::MADV_HUGEPAGE);
        raw.as_ptr().wrapping_add(raw.as_ptr().align_offset(HUGE_PAGE_BYTES))
    };
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(1024)
        .build(256)
        .expect("a kernel with io_uring and deferred task work (6.1)");
    let all = libc::iovec { iov_base: buffers.cast(), iov_len: block * slots };
    // SAFETY: the range lies in the mapping above.
    let registered = unsafe { ring.submitter().register_buffers(&[all]) }.is_ok();
    let (from, to) = (Fd(from.as_raw_fd()), Fd(to.as_raw_fd()));
    let entry = |name: u64, offset: u64, len: u32| {
        let start = buffers.wrapping_add((name & !WRITE) as usize * block);
        let entry = match (name & WRITE != 0, registered) {
            (false, true) => opcode::ReadFixed::new(from, start, len, 0).offset(offset).build(),
            (false, false) => opcode::Read::new(from, start, len).offset(offset).build(),
            (true, true) => opcode::WriteFixed::new(to, start, len, 0).offset(offset).build(),
            (true, false) => opcode::Write::new(to, start, len).offset(offset).build(),
        };
        entry.user_data(name)
    };
    let mut offsets = vec![0; slots];
    let (mut next, mut busy, mut syscalls, mut unflushed) = (range.start, 0, 0, 0);
    let mut free: Vec<u64> = (0..slots as u64).collect();
    let mut queue = Vec::with_capacity(2 * slots + 1);
    while busy > 0 || next < range.end {
        while next < range.end && !free.is_empty() {
            let slot = free.pop().expect("one is free");
            offsets[slot as usize] = next;
            queue.push(entry(slot, next, block as u32));
            next += shape.block;
            busy += 1;
        }
        if unflushed >= shape.flush_every {
            queue.push(opcode::Fsync::new(to).flags(FsyncFlags::DATASYNC).build().user_data(FLUSH));
            unflushed = 0;
            busy += 1;
        }
        // SAFETY: slots own their part of the mapping until their write has completed.
        unsafe { ring.submission().push_multiple(&queue) }.expect("the queue is larger than the slots");
        queue.clear();
        ring.submit_and_wait((busy / 4).clamp(1, 8)).expect("enter");
        syscalls += 1;
        for completion in ring.completion() {
            assert!(completion.result() >= 0, "errno {}", -completion.result());
            let (name, slot) = (completion.user_data(), completion.user_data() & !WRITE);
            if name & (WRITE | FLUSH) == 0 {
                // The end of the file is padded to a sector and cut off afterwards.
                let len = u64::from(completion.result() as u32).next_multiple_of(SECTOR_BYTES);
                let offset = offsets[slot as usize];
                assert!(len == shape.block || offset + len >= range.end, "a short read");
                queue.push(entry(slot | WRITE, offset, len as u32));
                continue;
            }
            busy -= 1;
            if name & WRITE != 0 {
                unflushed += completion.result() as u64;
                free.push(slot);
            }
        }
    }
    syscalls
}
