//! Reads 4 KiB blocks at random places of a disk and records the latency of each read.
//!
//! Reads are due at fixed times, however long the last one took: a reader that waited for slow reads would read less
//! often exactly when the disk is slow. A late start counts as latency.

use crate::content::{ALIGN_BYTES, AlignedBuffer, open};
use crate::histogram;
use hdrhistogram::Histogram;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two reads.
const SAMPLE_INTERVAL: Duration = Duration::from_micros(500);

/// Start of each read in seconds since the first one, and its latency in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForegroundLatency(Vec<(f64, u64)>);

/// Reads from the first `bytes` of a file until `stop` is set.
///
/// # Errors
/// As reading a file.
pub(crate) fn read(path: &Path, bytes: u64, seed: u64, stop: &AtomicBool) -> io::Result<ForegroundLatency> {
    let file = open(path, OpenOptions::new().read(true))?;
    let (mut random, mut buffer) = (fastrand::Rng::with_seed(seed), AlignedBuffer::new(ALIGN_BYTES));
    let blocks = (bytes / ALIGN_BYTES as u64).max(1);
    let start = Instant::now();
    let (mut due, mut latency) = (start, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < due {
            std::thread::sleep(due - now);
        }
        // A late wake-up is due to the timer; a read that is already overdue is due to the disk.
        let begun = if now < due { Instant::now() } else { due };
        file.read_exact_at(buffer.bytes(), random.u64(..blocks) * ALIGN_BYTES as u64)?;
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        latency.push(((begun - start).as_secs_f64(), took));
        due += SAMPLE_INTERVAL;
    }
    Ok(ForegroundLatency(latency))
}

/// Reads for `span`.
///
/// # Errors
/// As reading a file.
pub(crate) fn read_for(path: &Path, bytes: u64, seed: u64, span: Duration) -> io::Result<ForegroundLatency> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(path, bytes, seed, &stop));
        std::thread::sleep(span);
        stop.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| io::Error::other("the reader panicked"))?
    })
}

impl ForegroundLatency {
    pub(crate) fn histogram(&self) -> Histogram<u64> {
        let mut all = histogram::empty();
        self.0.iter().for_each(|(_, us)| all.saturating_record(*us));
        all
    }

    /// Returns the p90 of reads started in this span of seconds; `None` if there were none.
    pub(crate) fn p90_between(&self, from: f64, to: f64) -> Option<f64> {
        let within: Vec<_> = self.0.iter().filter(|(at, _)| (from..to).contains(at)).copied().collect();
        (!within.is_empty()).then(|| Self(within).p90())
    }

    /// Returns the p90 in microseconds; 0 if nothing was read.
    pub(crate) fn p90(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "microseconds of a latency")]
        let p90 = self.histogram().value_at_quantile(0.9) as f64;
        p90
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_is_recorded() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![0; 64 << 10]).unwrap();
        let latency = read_for(&path, 64 << 10, 1, Duration::from_millis(50)).unwrap();
        assert_eq!(latency.histogram().len(), latency.0.len() as u64);
        assert!(!latency.0.is_empty() && latency.p90_between(-1.0, 0.0).is_none());
        assert!(read_for(&folder.path().join("none"), 1, 1, Duration::ZERO).is_err());
    }

    #[test]
    fn reads_are_selected_by_time() {
        let latency = ForegroundLatency(vec![(0.1, 10), (0.2, 20), (1.5, 500)]);
        assert_eq!((latency.p90_between(0.0, 1.0), latency.p90_between(1.0, 2.0)), (Some(20.0), Some(501.0)));
        assert_eq!(latency.p90_between(2.0, 3.0), None);
    }
}
