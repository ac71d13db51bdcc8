//! The connections of one worker's share in a pass: some for each side that is an export, none where it is local.
//!
//! The first connection of a side is the one that counts: it waits for a session for as long as the link allows. The
//! others are spare, and only for reading: a flush says what its own connection has made durable. They are taken on a long
//! path and used while the first one is busy; whatever they were doing when they break goes to the first.

use super::Channel;
use super::wire::{Direction, Rank, Wire};
use crate::error::{Result, Side};
use crate::limits::REQUESTS_PER_CONNECTION;
use crate::nbd::link::Link;
use crate::ring::{Completion, Instant, Op, Token};
use std::sync::Arc;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    source: Vec<Wire>,
    destination: Vec<Wire>,
}

/// One of the ring's operations for wires: what tokens carry as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WireOp {
    side: Side,
    index: usize,
    direction: Direction,
}

impl WireOp {
    /// Two bits for side and direction, the wire's place above them.
    pub(crate) fn number(self) -> u64 {
        (self.index as u64) << 2
            | u64::from(self.side == Side::Destination) << 1
            | u64::from(self.direction == Direction::In)
    }

    pub(crate) fn of(number: u64) -> Option<Self> {
        let side = if number & 2 == 0 { Side::Source } else { Side::Destination };
        let direction = if number & 1 == 0 { Direction::Out } else { Direction::In };
        Some(Self { side, index: usize::try_from(number >> 2).ok()?, direction })
    }
}

impl Wires {
    /// Wires for the channels that need them, for at most `slots` operations each, of one of that many workers.
    ///
    /// # Errors
    /// `EOverloaded`: no memory for their buffers.
    pub(crate) fn new(source: &Channel, destination: &Channel, slots: usize, workers: usize) -> Result<Self> {
        let wires = |link: Option<Arc<Link>>| -> Result<Vec<Wire>> {
            let Some(link) = link else { return Ok(Vec::new()) };
            let rank = |index| if index == 0 { Rank::First } else { Rank::Spare };
            (0..link.connections_per_worker(workers))
                .map(|index| Wire::new(Arc::clone(&link), rank(index), slots))
                .collect()
        };
        let (from, to) = (source.link(), destination.link());
        // An export that is compared with a receipt stands for both; its server may let in one client only.
        let from = from.filter(|from| to.as_ref().is_none_or(|to| !Arc::ptr_eq(from, to)));
        Ok(Self { source: wires(from)?, destination: wires(to)? })
    }

    fn of(&mut self, side: Side) -> &mut Vec<Wire> {
        if side == Side::Source { &mut self.source } else { &mut self.destination }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Wire> {
        self.source.iter_mut().chain(&mut self.destination)
    }

    /// See [`Wire::accept`]. Takes the first connection until it is busy, then the one with the least to do.
    pub(crate) fn accept(&mut self, side: Side, token: Token, op: Op) {
        let wires = self.of(side);
        let (first, spare) = wires.split_first_mut().expect("a channel that goes over a wire has one");
        let least = spare.iter_mut().filter(|wire| wire.is_up()).min_by_key(|wire| wire.load());
        match least {
            Some(spare) if first.load() >= REQUESTS_PER_CONNECTION && spare.load() < first.load() => {
                spare.accept(token, op);
            }
            Some(_) | None => first.accept(token, op),
        }
    }

    /// See [`Wire::turn`]. Spare connections are taken only if they are `wanted`.
    pub(crate) fn turn(&mut self, now: Instant, give_up: bool, wanted: bool) {
        for wires in [&mut self.source, &mut self.destination] {
            let Some((first, spare)) = wires.split_first_mut() else { continue };
            for wire in spare.iter_mut().filter(|wire| wanted || wire.is_used()) {
                wire.turn(now, give_up);
                wire.hand_over(first);
            }
            first.turn(now, give_up);
        }
    }

    /// See [`Wire::answer`].
    pub(crate) fn answer(&mut self) -> Option<Completion> {
        self.each().find_map(Wire::answer)
    }

    /// See [`Wire::next_op`].
    pub(crate) fn next_op(&mut self, now: Instant, give_up: bool) -> Option<(WireOp, Op)> {
        [Side::Source, Side::Destination].into_iter().find_map(|side| {
            self.of(side).iter_mut().enumerate().find_map(|(index, wire)| {
                let (direction, op) = wire.next_op(now, give_up)?;
                Some((WireOp { side, index, direction }, op))
            })
        })
    }

    /// See [`Wire::completed`].
    pub(crate) fn completed(&mut self, op: WireOp, completion: Completion) {
        self.of(op.side)[op.index].completed(op.direction, completion);
    }

    /// Whether nothing is under way on any.
    pub(crate) fn are_still(&self) -> bool {
        self.source.iter().chain(&self.destination).all(Wire::is_still)
    }

    /// See [`Wire::abandon`].
    pub(crate) fn abandon(&mut self) {
        self.each().for_each(Wire::abandon);
    }

    /// Gives the sessions back. Call when they [are still](Wires::are_still).
    pub(crate) fn close(&mut self) {
        self.source.drain(..).chain(self.destination.drain(..)).for_each(Wire::close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_own_number() {
        for number in 0..40 {
            assert_eq!(WireOp::of(number).map(WireOp::number), Some(number));
        }
    }
}
