//! Measures how fast a pass moves, and sizes the window towards servers by it.

use crate::limits::{SERVER_WINDOW_BLOCKS_MIN, TICK};
use crate::pass::server_window::ServerWindow;
use crate::pass::state::PassState;
use crate::ring::Instant;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The rate over the last second.
#[derive(Debug, Default)]
pub(crate) struct RateMeter {
    samples: VecDeque<(Instant, u64)>,
}

impl RateMeter {
    const WINDOW: Duration = Duration::from_secs(1);

    /// Reads the counters, and stores the rate in the control.
    pub(crate) fn sample(&mut self, now: Instant, pass: &PassState) {
        let counters = &pass.control.counters;
        let bytes = counters.acknowledged.load(Relaxed) + counters.verified.load(Relaxed);
        if self.samples.back().is_some_and(|&(last, _)| now.saturating_sub(last) < TICK / 2) {
            return;
        }
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2
            && self.samples.get(1).is_some_and(|&(at, _)| now.saturating_sub(at) >= Self::WINDOW)
        {
            self.samples.pop_front();
        }
        if let Some(&(since, before)) = self.samples.front() {
            let took = now.saturating_sub(since).as_micros();
            let rate = (u128::from(bytes.saturating_sub(before)) * 1_000_000).checked_div(took).unwrap_or(0);
            counters.rate.store(u64::try_from(rate).unwrap_or(u64::MAX), Relaxed);
        }
    }
}

/// Keeps what is on its way to and from servers as little as it can be: see [`ServerWindow`].
#[derive(Debug)]
pub(crate) struct ServerWindowController {
    window: ServerWindow,
    last: Instant,
    /// Bytes of blocks that had been written by then.
    moved: u64,
}

impl ServerWindowController {
    /// Creates the controller of a pass that reaches servers; `None` for other passes.
    pub(crate) fn of(pass: &PassState, now: Instant) -> Option<Self> {
        let servers =
            [&pass.source, &pass.destination].into_iter().filter(|channel| channel.export().is_some()).count();
        let blocks = match servers {
            0 => return None,
            // A disk wants more than what a server on this host does.
            1 => SERVER_WINDOW_BLOCKS_MIN * 2,
            _ => SERVER_WINDOW_BLOCKS_MIN,
        };
        let window = ServerWindow::new(blocks * u64::from(pass.params.block_bytes));
        pass.control.set_server_window(window.bytes(), false);
        Some(Self { window, last: now, moved: pass.control.moved() })
    }

    /// Updates the windows by the written bytes, once a tick.
    pub(crate) fn tick(&mut self, now: Instant, pass: &PassState) {
        let elapsed = now.saturating_sub(self.last);
        if elapsed < TICK {
            return;
        }
        let (moved, quickest) = (pass.control.moved(), pass.control.take_quickest());
        self.window.tick(moved - self.moved, elapsed, quickest);
        tracing::trace!(moved = moved - self.moved, ?elapsed, ?quickest, window = self.window.bytes(), "paced");
        (self.last, self.moved) = (now, moved);
        pass.control.set_server_window(self.window.bytes(), self.window.is_long());
    }
}
