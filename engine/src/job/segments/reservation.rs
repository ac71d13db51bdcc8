//! Reserves space ahead of the data, in large pieces.

use crate::error::Result;
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::limits::RESERVE_BYTES_MAX;
use crate::pass::state::DetectedZeros;
use crate::volume::{Allocation, Volume};
use std::collections::VecDeque;
use std::sync::Arc;

/// Whether space for data is reserved before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// Nothing is reserved.
    Nothing,
    /// Space for data is reserved; that of detected zeros is released.
    Data,
    /// Space for every byte is reserved and kept.
    Everything,
}

/// Reserves the space of a destination ahead of its segments.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) destination: Arc<dyn Volume>,
    reserve: Reserve,
    todo: VecDeque<ByteRange>,
    supported: bool,
}

impl Reservation {
    pub(super) fn new(destination: Arc<dyn Volume>, size: u64, reserve: Reserve) -> Self {
        let todo = if reserve == Reserve::Everything && size > 0 {
            VecDeque::from([ByteRange::new(0, size)])
        } else {
            VecDeque::new()
        };
        Self { destination, reserve, todo, supported: true }
    }

    /// Notes data whose space must be reserved.
    pub(super) fn note(&mut self, extents: &[Extent]) {
        if self.reserve == Reserve::Data && self.supported {
            self.todo
                .extend(extents.iter().filter(|extent| extent.kind == ExtentKind::Data).map(|extent| extent.range));
        }
    }

    /// Reserves what was noted up to `end`. Says what becomes of zeros in it.
    pub(super) fn reach(&mut self, end: u64) -> Result<DetectedZeros> {
        while self.supported
            && let Some(range) = self.todo.front().copied().filter(|range| range.start() < end)
        {
            let piece = range.split(RESERVE_BYTES_MAX).next().expect("ranges in the list are not empty");
            self.supported = self.destination.allocate(piece)? == Allocation::Reserved;
            self.todo.pop_front();
            if piece.end() < range.end() {
                self.todo.push_front(ByteRange::new(piece.end(), range.end()));
            }
        }
        Ok(match (self.reserve, self.supported) {
            (Reserve::Data, true) => DetectedZeros::Punch,
            (Reserve::Everything, false) => DetectedZeros::Write,
            (Reserve::Nothing | Reserve::Data | Reserve::Everything, _) => DetectedZeros::Skip,
        })
    }

    /// Returns whether what was promised about allocation holds without writing zeros.
    pub(super) fn holds(&self) -> bool {
        self.reserve != Reserve::Everything || self.supported
    }
}
