//! Keeps other users of the same devices fast: measures their latency and narrows the job's window by it.
//!
//! Once a millisecond its thread reads 4 KiB past the page cache, where this job has already read or written, from each
//! local device of the job. The p90 of these probes goes into the [`ProtectionWindow`] every tick, and its window into
//! the job. Devices that cannot be probed (no `O_DIRECT`) are left out. A server is not probed: the latency of the
//! job's own requests to it is used instead. With neither the window stays as it is.

use crate::buffer::Block;
use crate::limits::{DRAIN_LIMIT, TICK};
use crate::pass::control::JobControl;
use crate::pass::protection_window::ProtectionWindow;
use crate::volume::Volume;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two probes of a device.
const PROBE_EVERY: Duration = Duration::from_millis(1);
const PROBE_BYTES: usize = 4096;
/// Places to probe: enough that none stays in a device's cache.
const PLACES: usize = 1024;
/// Latencies of probes that the p90 is taken from: two ticks' worth.
const SAMPLES: usize = 40;

/// Runs while it lives.
#[derive(Debug)]
pub(crate) struct Protection {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Protection {
    /// Keeps the p90 of probes to the devices of both volumes under `target`.
    pub(crate) fn start(
        target: Duration,
        source: &Arc<dyn Volume>,
        destination: &Arc<dyn Volume>,
        block_bytes: u32,
        cap_bytes: u64,
        control: Arc<JobControl>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut controller = ProtectionWindow::new(target, block_bytes, cap_bytes);
        let probes = probes(&[source, destination]);
        let has_server = [source, destination].iter().any(|volume| volume.export().is_some());
        if probes.is_empty() && !has_server {
            tracing::warn!("neither device can be probed past the page cache: the copy is not throttled by --protect");
            return Self { stop, thread: None };
        }
        control.set_window(controller.bytes());
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("protection".to_owned()).spawn(move || {
            let mut prober = Prober {
                probes,
                places: VecDeque::new(),
                next: 0,
                probed: ProbeLatencies::new(),
                requested: ProbeLatencies::new(),
                requests_seen: 0,
                block_bytes,
                block: None,
            };
            while !stopping.load(Relaxed) {
                let until = Instant::now() + TICK;
                let fresh = prober.probe_until(until, &control, &stopping);
                controller.tick(if fresh { prober.p90() } else { None });
                control.set_window(controller.bytes());
            }
        });
        Self {
            stop,
            thread: thread
                .inspect_err(
                    |error| tracing::warn!(%error, "cannot start the thread of --protect: the copy is not throttled"),
                )
                .ok(),
        }
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let Some(thread) = self.thread.take() else { return };
        // A probe that the device never answers must not keep the job from its end. It owns what it reads into.
        let since = Instant::now();
        while !thread.is_finished() && since.elapsed() < DRAIN_LIMIT {
            std::thread::sleep(PROBE_EVERY);
        }
    }
}

/// Opens a descriptor for each device below the volumes.
fn probes(volumes: &[&Arc<dyn Volume>]) -> Vec<OwnedFd> {
    let mut devices = Vec::new();
    volumes
        .iter()
        .filter(|volume| {
            let device = volume.identity().device;
            let fresh = !devices.contains(&device);
            devices.push(device);
            fresh
        })
        .filter_map(|volume| {
            open(volume.name().as_path(), OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_CLOEXEC, Mode::empty()).ok()
        })
        .collect()
}

#[derive(Debug)]
struct Prober {
    probes: Vec<OwnedFd>,
    /// Blocks that hold data on both sides.
    places: VecDeque<u64>,
    next: usize,
    probed: ProbeLatencies,
    requested: ProbeLatencies,
    requests_seen: usize,
    block_bytes: u32,
    block: Option<Block>,
}

impl Prober {
    /// Probes until then. Says whether it got a sample.
    fn probe_until(&mut self, until: Instant, control: &JobControl, stop: &AtomicBool) -> bool {
        let mut fresh = false;
        while Instant::now() < until && !stop.load(Relaxed) {
            self.learn(control);
            let started = Instant::now();
            fresh |= self.probe() | self.look_at_requests(control);
            std::thread::sleep(PROBE_EVERY.saturating_sub(started.elapsed()));
        }
        fresh
    }

    fn look_at_requests(&mut self, control: &JobControl) -> bool {
        let (made, took) = control.requests_after(self.requests_seen);
        took.for_each(|took| self.requested.add(took));
        let fresh = made > self.requests_seen;
        self.requests_seen = made;
        fresh
    }

    fn learn(&mut self, control: &JobControl) {
        let Some(place) = control.sample() else { return };
        if self.places.back() != Some(&place) {
            if self.places.len() == PLACES {
                self.places.pop_front();
            }
            self.places.push_back(place);
        }
    }

    /// Probes every device once, at an offset that was not probed lately.
    fn probe(&mut self) -> bool {
        if self.places.is_empty() {
            return false;
        }
        // A stride that shares no factor with the number of places visits all of them, far apart.
        self.next = self.next.wrapping_add(997);
        let place = self.places[self.next % self.places.len()];
        let within = (self.next as u64 * PROBE_BYTES as u64) % u64::from(self.block_bytes);
        let Some(block) = self.block.take().or_else(|| Block::alone(PROBE_BYTES).ok()) else { return false };
        let block = self.block.insert(block);
        let mut fresh = false;
        for probe in &self.probes {
            let started = Instant::now();
            let offset = i64::try_from(place + within).unwrap_or(0);
            if pread(probe, block, offset).is_ok_and(|bytes| bytes > 0) {
                self.probed.add(started.elapsed());
                fresh = true;
            }
        }
        fresh
    }

    /// Returns the higher p90 of the probes and of the job's own requests.
    fn p90(&self) -> Option<Duration> {
        self.probed.p90().max(self.requested.p90())
    }
}

/// The last latencies of one kind.
#[derive(Debug)]
struct ProbeLatencies(VecDeque<Duration>);

impl ProbeLatencies {
    fn new() -> Self {
        Self(VecDeque::with_capacity(SAMPLES))
    }

    fn add(&mut self, took: Duration) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    fn p90(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 9 / 10).or(sorted.last()).copied()
    }
}
