//! Caches the extents of an export: one window at a time, asked for ahead of the planner.
//!
//! The planner looks here first. What is not known becomes a question, which a worker (or the planner itself, while
//! there are no workers) takes to the server. An answer that is no longer wanted is dropped.

use super::MetaContexts;
use crate::error::{Error, Result};
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::limits::{STATUS_WINDOW_MAX, STATUS_WINDOW_MIN};
use std::collections::VecDeque;
use std::thread::Thread;

/// Descriptors of one context, from the start of a window on: length and flags.
pub(crate) type StatusDescriptors = Vec<(u64, u64)>;

/// More than so many extents in one answer: the next window is smaller.
const CROWDED: usize = 2048;
/// `base:allocation`.
const HOLE: u64 = 1;
const ZERO: u64 = 2;
/// `qemu:dirty-bitmap`.
const DIRTY: u64 = 1;

/// The answer to one question: extents from the start of the window on, at least one, or why there are none.
pub(crate) type StatusAnswer = Result<Vec<Extent>>;

/// Cache of the block status of an export.
#[derive(Debug)]
pub(crate) struct BlockStatusCache {
    contexts: MetaContexts,
    state: StatusState,
    /// Bytes asked for at a time.
    window: u64,
    /// Thread that waits for the answer.
    asker: Option<Thread>,
}

#[derive(Debug)]
enum StatusState {
    Empty,
    /// To be asked.
    Wanted(ByteRange),
    /// Being asked.
    Asked(ByteRange),
    /// Contiguous; not empty.
    Known(VecDeque<Extent>),
    Failed(Error),
}

impl BlockStatusCache {
    pub(crate) fn new(contexts: MetaContexts) -> Self {
        Self { contexts, state: StatusState::Empty, window: STATUS_WINDOW_MIN, asker: None }
    }

    /// Returns whether the server tells anything.
    pub(crate) fn is_useful(&self) -> bool {
        self.contexts.allocation.is_some() || self.contexts.dirty.is_some()
    }

    /// Returns whether another session tells the same things.
    pub(crate) fn fits(&self, other: MetaContexts) -> bool {
        (self.contexts.allocation.is_some(), self.contexts.dirty.is_some())
            == (other.allocation.is_some(), other.dirty.is_some())
    }

    /// Returns at most `max` extents from the start of `within` on; `None` if they are not known yet.
    pub(crate) fn look(&mut self, within: ByteRange, max: usize) -> Option<StatusAnswer> {
        let start = within.start();
        if let StatusState::Known(extents) = &mut self.state
            && extents.front().is_some_and(|first| first.range.start() == start)
        {
            let taken = take(extents, within.end(), max);
            let reached = taken.last().map_or(start, |last| last.range.end());
            if extents.is_empty() && reached < within.end() {
                // Asked for ahead: the planner will need it next.
                self.want(ByteRange::new(reached, within.end()));
            }
            return Some(Ok(taken));
        }
        if matches!(self.state, StatusState::Failed(_))
            && let StatusState::Failed(error) = std::mem::replace(&mut self.state, StatusState::Empty)
        {
            return Some(Err(error));
        }
        let is_asked =
            matches!(&self.state, StatusState::Wanted(range) | StatusState::Asked(range) if range.start() == start);
        if !is_asked {
            self.want(within);
        }
        self.asker = Some(std::thread::current());
        None
    }

    pub(crate) fn has_question(&self) -> bool {
        matches!(self.state, StatusState::Wanted(_))
    }

    /// The range to ask about.
    pub(crate) fn take_question(&mut self) -> Option<ByteRange> {
        let StatusState::Wanted(range) = self.state else { return None };
        self.state = StatusState::Asked(range);
        Some(range)
    }

    /// Reply of a server to a request that a worker has taken.
    pub(crate) fn answer(&mut self, question: ByteRange, scan: StatusAnswer) {
        if !matches!(self.state, StatusState::Asked(range) if range == question) {
            return;
        }
        self.state = match scan {
            Ok(extents) => {
                let crowded = extents.len() > CROWDED;
                let window = if crowded { self.window / 2 } else { self.window * 2 };
                self.window = window.clamp(STATUS_WINDOW_MIN, STATUS_WINDOW_MAX);
                StatusState::Known(extents.into())
            }
            Err(error) => StatusState::Failed(error),
        };
        if let Some(asker) = self.asker.take() {
            asker.unpark();
        }
    }

    /// A question that was taken could not be asked.
    pub(crate) fn retract(&mut self, question: ByteRange) {
        if matches!(self.state, StatusState::Asked(range) if range == question) {
            self.state = StatusState::Wanted(question);
        }
    }

    /// Drops unused answers, as the server may have been restarted since.
    pub(crate) fn forget(&mut self) {
        if matches!(self.state, StatusState::Known(_)) {
            self.state = StatusState::Empty;
        }
    }

    fn want(&mut self, within: ByteRange) {
        let len = within.len().min(self.window);
        self.state = StatusState::Wanted(ByteRange::at(within.start(), len));
    }
}

/// Removes up to `max` extents from the front, none past `end`.
fn take(extents: &mut VecDeque<Extent>, end: u64, max: usize) -> Vec<Extent> {
    let mut taken = Vec::with_capacity(max.min(extents.len()));
    while taken.len() < max.max(1)
        && let Some(first) = extents.front_mut()
        && let Some(range) = first.range.intersect(ByteRange::new(first.range.start(), end.max(first.range.start())))
    {
        taken.push(Extent { range, kind: first.kind });
        if range == first.range {
            extents.pop_front();
        } else {
            first.range = ByteRange::new(range.end(), first.range.end());
        }
    }
    taken
}

/// Merges the contexts of one answer, as far as all of them reach. `allocation` is missing where the
/// server was not asked for it, or did not answer it: then everything is data.
pub(crate) fn merge(
    window: ByteRange,
    allocation: Option<StatusDescriptors>,
    dirty: Option<StatusDescriptors>,
) -> Vec<Extent> {
    let everything = |flags| vec![(window.len(), flags)];
    let mut allocation = VecDeque::from(allocation.unwrap_or_else(|| everything(0)));
    let mut dirty = VecDeque::from(dirty.unwrap_or_else(|| everything(DIRTY)));
    let mut extents: Vec<Extent> = Vec::with_capacity(allocation.len().max(dirty.len()));
    let mut at = window.start();
    while let (Some(a), Some(d)) = (allocation.front_mut(), dirty.front_mut())
        && at < window.end()
    {
        let len = a.0.min(d.0).min(window.end() - at);
        let kind = kind(a.1, d.1);
        let range = ByteRange::at(at, len);
        match extents.last_mut() {
            Some(last) if last.kind == kind => last.range = ByteRange::new(last.range.start(), range.end()),
            _ => extents.push(Extent { range, kind }),
        }
        at += len;
        (a.0, d.0) = (a.0 - len, d.0 - len);
        if a.0 == 0 {
            allocation.pop_front();
        }
        if d.0 == 0 {
            dirty.pop_front();
        }
    }
    extents
}

fn kind(allocation: u64, dirty: u64) -> ExtentKind {
    match (dirty & DIRTY != 0, allocation & ZERO != 0, allocation & HOLE != 0) {
        (false, ..) => ExtentKind::Unchanged,
        (true, true, true) => ExtentKind::Hole,
        (true, true, false) => ExtentKind::Zero,
        // A hole that does not promise zeros may hold anything.
        (true, false, _) => ExtentKind::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64, kind: ExtentKind) -> Extent {
        Extent { range: ByteRange::new(start, end), kind }
    }

    fn block_status() -> BlockStatusCache {
        BlockStatusCache::new(MetaContexts { allocation: Some(1), dirty: None })
    }

    #[test]
    fn a_range_is_requested_sent_and_answered_once() {
        let mut block_status = block_status();
        let all = ByteRange::new(0, 100);
        assert!(block_status.look(all, 10).is_none() && block_status.has_question());
        let question = block_status.take_question().unwrap();
        assert!(block_status.take_question().is_none() && block_status.look(all, 10).is_none());
        block_status.answer(question, Ok(vec![extent(0, 40, ExtentKind::Data), extent(40, 60, ExtentKind::Hole)]));
        assert_eq!(block_status.look(all, 1), Some(Ok(vec![extent(0, 40, ExtentKind::Data)])));
        assert!(!block_status.has_question(), "the rest is known");
        assert_eq!(block_status.look(ByteRange::new(40, 100), 9), Some(Ok(vec![extent(40, 60, ExtentKind::Hole)])));
        assert_eq!(block_status.take_question(), Some(ByteRange::new(60, 100)), "asked for ahead");
    }

    #[test]
    fn a_reply_to_an_older_request_is_dropped_and_a_returned_request_is_sent_again() {
        let mut block_status = block_status();
        assert!(block_status.look(ByteRange::new(0, 100), 10).is_none());
        let old = block_status.take_question().unwrap();
        assert!(block_status.look(ByteRange::new(50, 100), 10).is_none());
        block_status.answer(old, Ok(vec![extent(0, 100, ExtentKind::Data)]));
        let new = block_status.take_question().unwrap();
        assert_eq!(new, ByteRange::new(50, 100));
        block_status.retract(new);
        assert_eq!(block_status.take_question(), Some(new));
        block_status.answer(new, Err(Error::bad_request("x")));
        assert!(block_status.look(new, 10).unwrap().is_err());
    }

    #[test]
    fn an_extent_longer_than_the_request_is_cut() {
        let mut block_status = block_status();
        assert!(block_status.look(ByteRange::new(0, 100), 10).is_none());
        let question = block_status.take_question().unwrap();
        block_status.answer(question, Ok(vec![extent(0, 100, ExtentKind::Zero)]));
        assert_eq!(block_status.look(ByteRange::new(0, 30), 10), Some(Ok(vec![extent(0, 30, ExtentKind::Zero)])));
        assert_eq!(block_status.look(ByteRange::new(30, 100), 10), Some(Ok(vec![extent(30, 100, ExtentKind::Zero)])));
    }

    #[test]
    fn contexts_are_combined_as_far_as_both_reach() {
        let window = ByteRange::new(1000, 2000);
        let allocation = vec![(100, 0), (200, HOLE | ZERO), (700, ZERO), (5000, 0)];
        let dirty = vec![(150, DIRTY), (350, 0), (100, DIRTY)];
        assert_eq!(
            merge(window, Some(allocation), Some(dirty)),
            [
                extent(1000, 1100, ExtentKind::Data),
                extent(1100, 1150, ExtentKind::Hole),
                extent(1150, 1500, ExtentKind::Unchanged),
                extent(1500, 1600, ExtentKind::Zero),
            ]
        );
        assert_eq!(merge(window, None, None), [extent(1000, 2000, ExtentKind::Data)]);
        assert_eq!(merge(window, Some(vec![(3000, HOLE)]), None), [extent(1000, 2000, ExtentKind::Data)]);
    }
}
