//! Reads when writes reach the server of a destination, from the log of the server as it grows.

use blockhaul_testkit::test_cluster::ExportPair;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two reads of the log: the resolution of the times.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Longest wait; more than twice of what any wait takes.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Writes by their connections with the times at which they were seen, oldest first.
type Seen = Arc<Mutex<Vec<(Instant, u64)>>>;

/// Follows a destination's log until it is dropped.
#[derive(Debug)]
pub(crate) struct Traffic {
    seen: Seen,
    over: Arc<AtomicBool>,
    follower: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Follows the log of a pair from its start.
    pub(crate) fn of(pair: &ExportPair) -> Self {
        let (seen, over) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let (log, into, until) = (pair.log.clone(), Arc::clone(&seen), Arc::clone(&over));
        let follower = std::thread::spawn(move || {
            let mut file = loop {
                match File::open(&log) {
                    Ok(file) => break file,
                    Err(_) if until.load(Relaxed) => return,
                    Err(_) => std::thread::sleep(POLL_INTERVAL),
                }
            };
            let mut text = String::new();
            while !until.load(Relaxed) {
                file.read_to_string(&mut text).expect("the log is text");
                let whole = text.rfind('\n').map_or(0, |end| end + 1);
                let (now, lines) = (Instant::now(), text.drain(..whole).collect::<String>());
                let writes = lines.lines().filter_map(writer_of).map(|connection| (now, connection));
                into.lock().unwrap_or_else(PoisonError::into_inner).extend(writes);
                std::thread::sleep(POLL_INTERVAL);
            }
        });
        Self { seen, over, follower: Some(follower) }
    }

    fn with_seen<T>(&self, read: impl FnOnce(&[(Instant, u64)]) -> T) -> T {
        read(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the connections that have written so far.
    pub(crate) fn writers(&self) -> BTreeSet<u64> {
        self.with_seen(|seen| seen.iter().map(|(_, connection)| *connection).collect())
    }

    /// Returns when each connection wrote for the first time, oldest first.
    pub(crate) fn first_writes(&self) -> Vec<Instant> {
        self.with_seen(|seen| {
            let mut known = BTreeSet::new();
            seen.iter().filter(|(_, connection)| known.insert(*connection)).map(|(at, _)| *at).collect()
        })
    }

    /// Waits for the first write of a connection other than `known`; returns its time.
    pub(crate) fn first_write_of_others(&self, known: &BTreeSet<u64>) -> Instant {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let first = self.with_seen(|seen| seen.iter().find(|(_, connection)| !known.contains(connection)).copied());
            if let Some((at, _)) = first {
                return at;
            }
            assert!(Instant::now() < until, "no other connection has written in {} s", WAIT_MAX.as_secs());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the longest time without a write between `since` and `until`.
    pub(crate) fn longest_pause(&self, since: Instant, until: Instant) -> Duration {
        self.with_seen(|seen| {
            let within = seen.iter().map(|(at, _)| *at).filter(|at| (since..until).contains(at));
            let times: Vec<Instant> = std::iter::once(since).chain(within).chain([until]).collect();
            times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(follower) = self.follower.take() {
            let _ = follower.join();
        }
    }
}

/// Returns the connection of a request that changes the volume, from a line of the log such as `DATE TIME connection=1
/// Write id=7 offset=0x0 ...`; the line of the reply has no offset.
fn writer_of(line: &str) -> Option<u64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_change = words.iter().any(|word| matches!(*word, "Write" | "Zero" | "Trim"));
    let is_request = words.iter().any(|word| word.starts_with("offset="));
    let connection = words.iter().find_map(|word| word.strip_prefix("connection="))?.parse().ok()?;
    (is_change && is_request).then_some(connection)
}
