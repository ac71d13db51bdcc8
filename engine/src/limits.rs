//! Lists every bound of the engine, with its reason, and the relations that must hold between them.

use crate::backoff::ExponentialBackoff;
use std::time::Duration;

/// The smallest block: the largest sector size of the volumes that are supported.
pub(crate) const BLOCK_BYTES_MIN: u32 = 4 << 10;
/// The largest block. A cancel waits for whole blocks, so this also bounds how long one takes.
pub(crate) const BLOCK_BYTES_MAX: u32 = 64 << 20;
/// Block for direct I/O: past it the rate no longer grows on the devices measured, and a cancel gets slower.
pub(crate) const BLOCK_BYTES_DIRECT: u32 = 1 << 20;
/// Block for cached copies and protected jobs: it stays in the second-level cache, and makes a finer window.
pub(crate) const BLOCK_BYTES_SMALL: u32 = 256 << 10;
/// Block for copies of changes: as fine as bitmaps usually are, so that little else is copied along.
pub(crate) const BLOCK_BYTES_CHANGES: u32 = 64 << 10;

/// Memory, file offsets and lengths of direct I/O are multiples of this where the volume does not say less is enough.
pub(crate) const DIRECT_ALIGN_BYTES: u32 = 4 << 10;

/// Buffers start at a multiple of this so that they are made of huge pages: direct I/O on small pages costs five
/// times the CPU.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Page size of buffers for headers and probes.
pub(crate) const SMALL_PAGE_BYTES: usize = 4 << 10;

/// Bytes of buffers per core by default. Deeper queues raise latency without raising the rate.
pub(crate) const ARENA_BYTES_PER_CORE: u64 = 8 << 20;
/// Slots per core. A slot's index must fit the token of an operation; 256 in flight saturate any device known.
pub(crate) const SLOTS_PER_CORE_MAX: usize = 256;

/// The smallest segment: below it cores would meet at the queue of segments too often.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 8 << 20;
/// The largest segment, which is also the largest single request to zero a range: such a request cannot be
/// cancelled, so it must stay short.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Segments queued ahead of the workers, per core: enough to hide a slow extent scan, small enough to stay cheap.
pub(crate) const SEGMENTS_AHEAD_PER_CORE: usize = 8;
/// Extents taken from a source in one scan.
pub(crate) const EXTENTS_PER_SCAN: usize = 256;
/// Space reserved by one call: it cannot be cancelled, but large pieces are laid out better.
pub(crate) const RESERVE_BYTES_MAX: u64 = 4 << 30;
/// The largest piece cloned by one call, which cannot be cancelled either.
pub(crate) const CLONE_BYTES_MAX: u64 = 1 << 30;

/// Most bytes between checkpoints: at most this much is copied again after a crash.
pub(crate) const CHECKPOINT_BYTES: u64 = 256 << 20;
/// Written leaves that are not recorded at which a record is made, whatever their bytes; at twice this number no
/// further segments are planned. About 4 MiB.
pub(crate) const WRITTEN_RANGES_MAX: usize = 32 << 10;
/// Most runs of durable ranges that a job reports; shorter ones are left out. Small enough to be sent and stored; a
/// copy rarely has more runs than segments in progress.
pub(crate) const DURABLE_RUNS_MAX: usize = 256;
/// Longest time between checkpoints.
pub(crate) const CHECKPOINT_TIME: Duration = Duration::from_secs(1);

/// Bytes of each volume that are read again before a copy resumes: few enough to be read quickly from anywhere,
pub(crate) const SAMPLE_BYTES: u64 = 8 << 20;
/// but so many leaves at least, however large,
pub(crate) const SAMPLE_LEAVES_MIN: usize = 2;
/// and so many at most, however small.
pub(crate) const SAMPLE_LEAVES_MAX: usize = 16;
/// Of them read at a time: what has no room for a leaf of 64 MiB.
pub(crate) const SAMPLE_READ_BYTES: u64 = 1 << 20;

/// Longest wait for a destination that is held by another copy.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for operations in flight at the end, before the job reports `quiesced: false` and leaks their memory.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Longest time of the job's thread in one call after a stop request, before it is reported as blocked: a little more
/// than the drain limit, which most calls keep themselves.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(11);
/// Interval in which a caller that waits for a job checks whether its thread is blocked.
pub(crate) const LOOK_AT_THREAD: Duration = Duration::from_millis(250);

/// Longest time of an operation before its device counts as one that does not answer: longer than a busy disk takes for
/// a block. Until then it may cost other jobs slots and threads, afterwards only its own job.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Requests for zeros of one job that a worker has in flight: as many as the kernel carries out side by side.
pub(crate) const ZEROS_PER_JOB: usize = 4;

/// Blocks in flight at least, between servers: enough for two workers to read one while another one is written.
pub(crate) const SERVER_WINDOW_BLOCKS_MIN: u64 = 4;
/// Requests on a worker's first connection to a server from which on it uses its other ones as well: servers work on so
/// many of one client's at a time.
pub(crate) const REQUESTS_PER_CONNECTION: usize = 8;
/// Slots per core where servers are reached: what a long path holds. A short one touches only a few of them.
pub(crate) const SLOTS_FOR_SERVERS: usize = 64;
/// Connections to one export at most, by default: past it the servers measured get no faster.
pub(crate) const CONNECTIONS_MAX: usize = 4;
/// Connections to one export that may be asked for: each takes descriptors and memory on both ends.
pub(crate) const CONNECTIONS_ASKED_MAX: usize = 256;
/// Longest time of one attempt to connect and negotiate.
pub(crate) const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// As above for connections beyond the first: a server without room may let them wait.
pub(crate) const FURTHER_DIAL_LIMIT: Duration = Duration::from_secs(2);
/// Waits between attempts to connect again.
pub(crate) const REDIAL_BACKOFF: ExponentialBackoff =
    ExponentialBackoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };
/// Longest lifetime of a request in network and server after its sender has abandoned it.
pub(crate) const REQUEST_LIFE: Duration = Duration::from_secs(30);
/// Longest time that TCP keeps unacknowledged bytes of a gated job: shorter than any write lease.
pub(crate) const GATED_USER_TIMEOUT: Duration = Duration::from_millis(2500);
/// Bytes that one request for block status covers: from this, doubled while the replies are short,
pub(crate) const STATUS_WINDOW_MIN: u64 = 256 << 20;
/// to this. Lengths have 32 bits.
pub(crate) const STATUS_WINDOW_MAX: u64 = 2 << 30;
/// Largest request for zeros where the server is no faster than with data: such a request must stay short.
pub(crate) const SLOW_ZERO_BYTES: u64 = 8 << 20;
/// Payloads from this size on are sent without a copy, where the kernel can.
pub(crate) const ZERO_COPY_BYTES_MIN: u32 = 64 << 10;
/// Time for retries of a lost connection: long enough for a restart of a server or a switch.
pub(crate) const RETRY_FOR: Duration = Duration::from_secs(60);
/// Longest time of a request before its connection counts as lost: longer than a busy disk behind a server takes.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time until a volume with pending block status is called again, unless it signals earlier.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Deepest burst of a limited job: long enough to hide timer jitter, too short to be felt by others.
pub(crate) const BURST: Duration = Duration::from_millis(20);
/// Interval in which workers wake up, windows adjust and jobs do their bookkeeping.
pub(crate) const TICK: Duration = Duration::from_millis(20);

const _: () = assert!(BLOCK_BYTES_MAX as u64 <= SEGMENT_BYTES_MAX, "a segment holds at least one block");
const _: () = assert!(BLOCK_BYTES_DIRECT.is_power_of_two() && BLOCK_BYTES_SMALL.is_power_of_two());
const _: () = assert!(CALL_LIMIT.as_millis() > DRAIN_LIMIT.as_millis(), "a drain ends by itself");
const _: () = assert!(DIRECT_ALIGN_BYTES <= BLOCK_BYTES_MIN, "a block is a whole number of aligned units");
