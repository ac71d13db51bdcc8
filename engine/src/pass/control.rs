//! Holds the state of one job that its handle, its thread and all workers share.
//!
//! The cancellation token is one atomic that keeps the first reason given. Readers of several counters read the later
//! stage first, so that `issued >= acknowledged >= durable` holds in what they see. Counters grow, with one exception:
//! bytes that a destination may have lost are subtracted from `issued` and `acknowledged` until they are copied again.
//! The counters, the windows and the rate limit are atomics. The durable ranges and their samples have a lock, which no
//! worker takes.

use super::durable_sample::DurableSample;
use super::stop_reason::StopReason;
use crate::extent::{ByteRange, RangeSet};
use crate::limits::DURABLE_RUNS_MAX;
use crate::nbd::connection_revoker::ConnectionRevoker;
use crate::pass::rate_limiter::RateLimiter;
use crate::progress::{Bytes, Progress};
use crate::ring::{Instant, clock};
use crate::supervision::VolumeEvidence;
use crate::sync::lock;
use crate::write_gate::WriteGate;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
    Ordering::Release,
};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::Duration;

/// Requests whose latency is remembered: two ticks' worth on a fast network.
const REQUESTS_KEPT: usize = 64;

/// Bytes of a job by stage and by what was done with them. See [`Progress`] and [`Bytes`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub planned: AtomicU64,
    pub issued: AtomicU64,
    pub acknowledged: AtomicU64,
    pub durable: AtomicU64,
    pub verified: AtomicU64,
    pub read: AtomicU64,
    pub written: AtomicU64,
    pub zeroed: AtomicU64,
    pub skipped: AtomicU64,
    pub cloned: AtomicU64,
    pub resumed: AtomicU64,
    pub rate: AtomicU64,
}

/// Control of a job, with its counters.
#[derive(Debug)]
pub(crate) struct JobControl {
    /// 0, or one more than the position of the first reason in [`StopReason::ALL`].
    reason: AtomicU8,
    /// Time of the stop request, and of the last moment at which the job's thread was between two calls, in ns of the
    /// rings' clock.
    asked_ns: AtomicU64,
    seen_ns: AtomicU64,
    paused: AtomicBool,
    pub rate_limiter: RateLimiter,
    /// Limit of this job and others together.
    shared_limiter: Option<Arc<RateLimiter>>,
    pub counters: Counters,
    /// Bytes that may be in flight; `u64::MAX` unless a protection narrows it.
    window: AtomicU64,
    /// The same, as servers are best served; `u64::MAX` without any.
    server_window: AtomicU64,
    long_path: AtomicBool,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    /// Path of the bytes, once the probes have chosen it.
    pub path: OnceLock<String>,
    /// The journal that a later run can go on from, once there is one.
    pub journal: OnceLock<String>,
    /// Offset of the last written data, plus one; 0: none yet.
    sample: AtomicU64,
    /// Highest values that [`JobControl::progress`] has returned.
    shown_issued: AtomicU64,
    shown_written: AtomicU64,
    /// Latencies of the last requests to servers, in us, and their number: the protection keeps them low.
    requests: [AtomicU32; REQUESTS_KEPT],
    requests_made: AtomicUsize,
    /// The shortest time that a block took lately, in us; `u32::MAX`: none was written.
    quickest_us: AtomicU32,
    moved: AtomicU64,
    /// Holds the gate and the connections to servers.
    revoker: Arc<ConnectionRevoker>,
    /// Durable ranges of the destination.
    durable: Mutex<RangeSet>,
    /// A few durable leaves.
    sampled: Mutex<DurableSample>,
    /// Identity of the source when the job opened it, once it has.
    source: OnceLock<String>,
    /// The job's thread, woken by events that it waits for.
    waiting_thread: OnceLock<Thread>,
}

impl JobControl {
    pub(crate) fn new(limit_bytes_per_second: Option<u64>) -> Self {
        Self::gated(limit_bytes_per_second, None)
    }

    /// Gate of a job that writes only while it is open.
    pub(crate) fn gated(limit_bytes_per_second: Option<u64>, gate: Option<Arc<WriteGate>>) -> Self {
        Self {
            reason: AtomicU8::new(0),
            asked_ns: AtomicU64::new(0),
            seen_ns: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            rate_limiter: RateLimiter::new(limit_bytes_per_second),
            shared_limiter: None,
            counters: Counters::default(),
            window: AtomicU64::new(u64::MAX),
            server_window: AtomicU64::new(u64::MAX),
            long_path: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            in_flight_max: AtomicU64::new(0),
            path: OnceLock::new(),
            journal: OnceLock::new(),
            sample: AtomicU64::new(0),
            requests: std::array::from_fn(|_| AtomicU32::new(0)),
            requests_made: AtomicUsize::new(0),
            quickest_us: AtomicU32::new(u32::MAX),
            moved: AtomicU64::new(0),
            shown_issued: AtomicU64::new(0),
            shown_written: AtomicU64::new(0),
            revoker: Arc::new(ConnectionRevoker::new(gate)),
            durable: Mutex::default(),
            sampled: Mutex::default(),
            source: OnceLock::new(),
            waiting_thread: OnceLock::new(),
        }
    }

    /// Control of a job that shares a limit with others.
    pub(crate) fn sharing(self, limiter: Arc<RateLimiter>) -> Self {
        Self { shared_limiter: Some(limiter), ..self }
    }

    /// Admits `bytes` by the limits of this job and of all, or returns how long to wait before the next attempt.
    pub(crate) fn take_rate(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        self.rate_limiter.take(bytes, now)?;
        let Some(shared) = &self.shared_limiter else { return Ok(()) };
        shared.take(bytes, now).inspect_err(|_| self.rate_limiter.give_back(bytes))
    }

    /// Gate of changes to the destination.
    pub(crate) fn gate(&self) -> Option<&Arc<WriteGate>> {
        self.revoker.gate()
    }

    /// Revokes the connections of the job.
    pub(crate) fn revoker(&self) -> &Arc<ConnectionRevoker> {
        &self.revoker
    }

    /// See [`crate::job::JobHandle::revoke_connections`].
    pub(crate) fn revoke_connections(&self) {
        self.revoker.revoke();
        self.notify();
    }

    /// Counts ranges as durable.
    pub(crate) fn make_durable(&self, ranges: impl IntoIterator<Item = ByteRange>) {
        let mut durable = lock(&self.durable);
        ranges.into_iter().for_each(|range| durable.insert(range));
    }

    /// Returns the durable ranges, as at most [`DURABLE_RUNS_MAX`] runs.
    pub(crate) fn durable(&self) -> RangeSet {
        lock(&self.durable).longest(DURABLE_RUNS_MAX)
    }

    /// Returns sampled leaves that are durable.
    pub(crate) fn add_durable_sample(&self, sample: &DurableSample) {
        lock(&self.sampled).absorb(sample);
    }

    /// Sets the identity of the source.
    pub(crate) fn set_source_identity(&self, source: String) {
        let _ = self.source.set(source);
    }

    /// See [`crate::job::JobHandle::evidence`].
    pub(crate) fn evidence(&self) -> VolumeEvidence {
        VolumeEvidence { source: self.source.get().cloned(), leaves: lock(&self.sampled).leaves() }
    }

    /// Makes the calling thread the one that [`JobControl::notify`] wakes.
    pub(crate) fn notify_this_thread(&self) {
        let _ = self.waiting_thread.set(std::thread::current());
    }

    /// Wakes the job's thread.
    pub(crate) fn notify(&self) {
        if let Some(thread) = self.waiting_thread.get() {
            thread.unpark();
        }
    }

    /// Requests a stop. The first reason holds.
    pub(crate) fn cancel(&self, reason: StopReason) {
        let position = StopReason::ALL.iter().position(|&each| each == reason).expect("every reason is listed");
        let code = u8::try_from(position + 1).expect("there are few reasons");
        // Stored before the reason: a thread that sees the reason also sees its time.
        let _ = self.asked_ns.compare_exchange(0, nanos(clock()).max(1), AcqRel, Acquire);
        let _ = self.reason.compare_exchange(0, code, AcqRel, Acquire);
        self.notify();
    }

    /// Notes that the job's thread is not in a call that may never return.
    pub(crate) fn note_alive(&self) {
        self.seen_ns.store(nanos(clock()), Relaxed);
    }

    /// Returns for how long the job's thread has been in one call since the stop request; `None` without a stop.
    pub(crate) fn silent_after_stop(&self, now: Instant) -> Option<Duration> {
        self.cancelled()?;
        let since = self.asked_ns.load(Acquire).max(self.seen_ns.load(Relaxed));
        Some(now.saturating_sub(Duration::from_nanos(since)))
    }

    /// Returns the reason to stop, if there is one.
    pub(crate) fn cancelled(&self) -> Option<StopReason> {
        match self.reason.load(Acquire) {
            0 => None,
            code => Some(StopReason::ALL[usize::from(code) - 1]),
        }
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Release);
        self.notify();
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Acquire)
    }

    pub(crate) fn set_window(&self, bytes: u64) {
        self.window.store(bytes, Relaxed);
    }

    pub(crate) fn set_server_window(&self, bytes: u64, is_long: bool) {
        self.server_window.store(bytes, Relaxed);
        self.long_path.store(is_long, Relaxed);
    }

    /// Returns whether spare connections help. On a short path they would only keep a server from working in order.
    pub(crate) fn is_long_path(&self) -> bool {
        self.long_path.load(Relaxed)
    }

    /// Returns the bytes that may be in flight by the server windows. Shared evenly: a worker without a share would
    /// sleep.
    pub(crate) fn server_window(&self) -> u64 {
        self.server_window.load(Relaxed)
    }

    /// Notes how long a block of this size took from its start to its completion.
    pub(crate) fn note_block(&self, bytes: u64, took: Duration) {
        self.moved.fetch_add(bytes, Relaxed);
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX - 1);
        if us < self.quickest_us.load(Relaxed) {
            self.quickest_us.fetch_min(us, Relaxed);
        }
    }

    /// Returns the bytes of blocks that were written, without skipped ones.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// Returns the time of the quickest block since the last call, if any was written.
    pub(crate) fn take_quickest(&self) -> Option<Duration> {
        let us = self.quickest_us.swap(u32::MAX, Relaxed);
        (us != u32::MAX).then(|| Duration::from_micros(us.into()))
    }

    /// Reserves `bytes` of the window; the first block always fits, so that a copy never starves.
    pub(crate) fn enter_window(&self, bytes: u64) -> bool {
        let window = self.window.load(Relaxed);
        let entered = self.in_flight.fetch_update(Relaxed, Relaxed, |before| {
            (before == 0 || before.saturating_add(bytes) <= window).then_some(before + bytes)
        });
        if let Ok(before) = entered {
            self.in_flight_max.fetch_max(before + bytes, Relaxed);
        }
        entered.is_ok()
    }

    /// Releases reserved bytes of the window.
    pub(crate) fn leave_window(&self, bytes: u64) {
        self.in_flight.fetch_sub(bytes, Relaxed);
    }

    pub(crate) fn window_max(&self) -> u64 {
        self.in_flight_max.load(Relaxed)
    }

    /// Notes the offset of a block of data, for probes.
    pub(crate) fn note_data(&self, offset: u64) {
        self.sample.store(offset + 1, Relaxed);
    }

    /// Returns the offset of a block with data on both sides.
    pub(crate) fn sample(&self) -> Option<u64> {
        self.sample.load(Relaxed).checked_sub(1)
    }

    /// Subtracts bytes that were counted up to `acknowledged` and must be copied again. [`JobControl::progress`] still
    /// shows the maximum.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.counters.acknowledged.fetch_sub(bytes, Release);
        self.counters.issued.fetch_sub(bytes, Release);
    }

    /// Notes the latency of an answered request.
    pub(crate) fn note_request(&self, took: Duration) {
        let at = self.requests_made.fetch_add(1, Relaxed) % REQUESTS_KEPT;
        self.requests[at].store(u32::try_from(took.as_micros()).unwrap_or(u32::MAX), Relaxed);
    }

    /// Returns the latencies of the last requests after the first `seen`, and the number of requests in all.
    pub(crate) fn requests_after(&self, seen: usize) -> (usize, impl Iterator<Item = Duration>) {
        let made = self.requests_made.load(Relaxed);
        let first = seen.max(made.saturating_sub(REQUESTS_KEPT));
        let took = |at: usize| Duration::from_micros(self.requests[at % REQUESTS_KEPT].load(Relaxed).into());
        (made, (first..made).map(took))
    }

    /// Counts bytes that need no I/O through all stages up to `acknowledged`.
    pub(crate) fn count_without_io(&self, bytes: u64) {
        self.counters.issued.fetch_add(bytes, Release);
        self.counters.acknowledged.fetch_add(bytes, Release);
    }

    /// Returns the progress of the job.
    pub(crate) fn progress(&self) -> Progress {
        let counters = &self.counters;
        let (durable, verified) = (counters.durable.load(Acquire), counters.verified.load(Acquire));
        let written = most(&self.shown_written, counters.acknowledged.load(Acquire));
        let issued = most(&self.shown_issued, counters.issued.load(Acquire).max(written));
        let planned = counters.planned.load(Acquire);
        let rate = counters.rate.load(Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let eta_seconds = (rate > 0).then(|| planned.saturating_sub(written) as f64 / rate as f64);
        Progress { planned, issued, written, durable, verified, rate_bytes_per_second: rate, eta_seconds }
    }

    /// Returns the bytes by what was done with them.
    pub(crate) fn bytes(&self) -> Bytes {
        let counters = &self.counters;
        let of = |counter: &AtomicU64| counter.load(Acquire);
        Bytes {
            planned: of(&counters.planned),
            read: of(&counters.read),
            written: of(&counters.written),
            zeroed: of(&counters.zeroed),
            skipped: of(&counters.skipped),
            cloned: of(&counters.cloned),
            resumed: of(&counters.resumed),
            durable: of(&counters.durable),
            verified: of(&counters.verified),
        }
    }
}

fn nanos(time: Instant) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Raises the shown value to `now`, and returns the maximum.
fn most(shown: &AtomicU64, now: u64) -> u64 {
    shown.fetch_max(now, AcqRel).max(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_with_a_shared_limit_stay_within_it_and_within_their_own() {
        let (shared, now) = (Arc::new(RateLimiter::new(Some(8 << 20))), Duration::from_secs(9));
        let control = |limit| JobControl::new(limit).sharing(Arc::clone(&shared));
        let (slow, fast) = (control(Some(1 << 20)), control(None));
        let admitted =
            |control: &JobControl, now| (0..100).take_while(|_| control.take_rate(1 << 20, now).is_ok()).count();
        assert_eq!((admitted(&slow, now), admitted(&fast, now)), (1, 0));
        // What the shared limit refuses does not count for the job's own.
        let later = now + Duration::from_secs(1);
        assert_eq!((admitted(&fast, later), admitted(&slow, later)), (1, 0));
        let wait = fast.take_rate(1 << 20, later).unwrap_err();
        assert!(slow.take_rate(1 << 20, later + wait).is_ok());
        shared.set(None);
        assert_eq!(admitted(&fast, later), 100);
    }

    #[test]
    fn the_first_reason_holds() {
        let control = JobControl::new(None);
        assert_eq!(control.cancelled(), None);
        control.cancel(StopReason::LeaseLost);
        control.cancel(StopReason::UserCancel);
        assert_eq!(control.cancelled(), Some(StopReason::LeaseLost));
    }

    #[test]
    fn a_thread_is_silent_from_the_stop_or_its_last_sign_on() {
        let control = JobControl::new(None);
        let late = clock() + Duration::from_secs(100);
        assert_eq!(control.silent_after_stop(late), None, "no stop was requested");
        control.cancel(StopReason::UserCancel);
        let silent = control.silent_after_stop(late).expect("a stop was asked for");
        std::thread::sleep(Duration::from_millis(2));
        control.cancel(StopReason::LeaseLost);
        assert_eq!(control.silent_after_stop(late), Some(silent), "the first stop counts");
        control.note_alive();
        assert!(control.silent_after_stop(late).expect("as before") < silent);
        assert_eq!(control.silent_after_stop(Duration::ZERO), Some(Duration::ZERO));
    }

    #[test]
    fn the_last_requests_are_remembered() {
        let control = JobControl::new(None);
        let us = Duration::from_micros;
        (0..5).for_each(|took| control.note_request(us(took)));
        let (made, took) = control.requests_after(3);
        assert_eq!((made, took.collect::<Vec<_>>()), (5, vec![us(3), us(4)]));
        (0..1000).for_each(|took| control.note_request(us(took)));
        assert_eq!(control.requests_after(0).1.count(), REQUESTS_KEPT);
    }

    #[test]
    fn a_window_smaller_than_a_block_lets_one_through() {
        let control = JobControl::new(None);
        control.set_window(10);
        assert!(control.enter_window(100));
        assert!(!control.enter_window(1));
        control.leave_window(100);
        assert!(control.enter_window(5) && control.enter_window(5) && !control.enter_window(1));
        assert_eq!(control.window_max(), 100);
    }
}
