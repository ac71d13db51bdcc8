//! Spreads the operations of one worker over its connections to the exports of a pass.
//!
//! A local volume has none. The first connection of a side is the primary one: it waits for a session for as long as
//! the export allows. The others are spare, and only for reading: a flush covers only what its own connection has
//! written. Spare connections are opened on a long path and used while the primary one is busy. When one breaks, the
//! primary one takes over its requests.

use super::Channel;
use super::nbd_connection::{ConnectionRank, Direction, NbdConnection};
use crate::error::{Result, Side};
use crate::limits::REQUESTS_PER_CONNECTION;
use crate::nbd::export_connections::ExportConnections;
use crate::ring::{Completion, Instant, Op, Token};
use std::sync::Arc;

/// Connections of one worker for a pass.
#[derive(Debug, Default)]
pub(crate) struct NbdConnections {
    source: Vec<NbdConnection>,
    destination: Vec<NbdConnection>,
}

/// A ring operation of a connection, encoded in tokens as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionOp {
    side: Side,
    index: usize,
    direction: Direction,
}

impl ConnectionOp {
    /// Encodes side and direction in two bits, and the index of the connection above them.
    pub(crate) fn number(self) -> u64 {
        (self.index as u64) << 2
            | u64::from(self.side == Side::Destination) << 1
            | u64::from(self.direction == Direction::Receive)
    }

    pub(crate) fn of(number: u64) -> Option<Self> {
        let side = if number & 2 == 0 { Side::Source } else { Side::Destination };
        let direction = if number & 1 == 0 { Direction::Send } else { Direction::Receive };
        Some(Self { side, index: usize::try_from(number >> 2).ok()?, direction })
    }
}

impl NbdConnections {
    /// Creates connections for channels to exports, for at most `slots` operations each, of one of that many workers.
    ///
    /// # Errors
    /// `EOverloaded`: no memory for their buffers.
    pub(crate) fn new(source: &Channel, destination: &Channel, slots: usize, workers: usize) -> Result<Self> {
        let connections = |export: Option<Arc<ExportConnections>>| -> Result<Vec<NbdConnection>> {
            let Some(export) = export else { return Ok(Vec::new()) };
            let rank = |index| if index == 0 { ConnectionRank::Primary } else { ConnectionRank::Spare };
            (0..export.connections_per_worker(workers))
                .map(|index| NbdConnection::new(Arc::clone(&export), rank(index), slots))
                .collect()
        };
        let (from, to) = (source.export(), destination.export());
        // In a comparison with a receipt both channels are the same export; its server may accept one client only.
        let from = from.filter(|from| to.as_ref().is_none_or(|to| !Arc::ptr_eq(from, to)));
        Ok(Self { source: connections(from)?, destination: connections(to)? })
    }

    fn of(&mut self, side: Side) -> &mut Vec<NbdConnection> {
        if side == Side::Source { &mut self.source } else { &mut self.destination }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut NbdConnection> {
        self.source.iter_mut().chain(&mut self.destination)
    }

    /// See [`NbdConnection::accept`]. Takes the first connection until it is busy, then the one with the least to do.
    pub(crate) fn accept(&mut self, side: Side, token: Token, op: Op) {
        let connections = self.of(side);
        let (first, spare) = connections.split_first_mut().expect("a channel to an export has a connection");
        let least = spare.iter_mut().filter(|connection| connection.is_up()).min_by_key(|connection| connection.load());
        match least {
            Some(spare) if first.load() >= REQUESTS_PER_CONNECTION && spare.load() < first.load() => {
                spare.accept(token, op);
            }
            Some(_) | None => first.accept(token, op),
        }
    }

    /// See [`NbdConnection::turn`]. Spare connections are taken only if they are `wanted`.
    pub(crate) fn turn(&mut self, now: Instant, give_up: bool, wanted: bool) {
        for connections in [&mut self.source, &mut self.destination] {
            let Some((first, spare)) = connections.split_first_mut() else { continue };
            for connection in spare.iter_mut().filter(|connection| wanted || connection.is_used()) {
                connection.turn(now, give_up);
                connection.hand_over(first);
            }
            first.turn(now, give_up);
        }
    }

    /// See [`NbdConnection::answer`].
    pub(crate) fn answer(&mut self) -> Option<Completion> {
        self.each().find_map(NbdConnection::answer)
    }

    /// See [`NbdConnection::next_op`].
    pub(crate) fn next_op(&mut self, now: Instant, give_up: bool) -> Option<(ConnectionOp, Op)> {
        [Side::Source, Side::Destination].into_iter().find_map(|side| {
            self.of(side).iter_mut().enumerate().find_map(|(index, connection)| {
                let (direction, op) = connection.next_op(now, give_up)?;
                Some((ConnectionOp { side, index, direction }, op))
            })
        })
    }

    /// See [`NbdConnection::completed`].
    pub(crate) fn completed(&mut self, op: ConnectionOp, completion: Completion) {
        self.of(op.side)[op.index].completed(op.direction, completion);
    }

    /// Returns whether all connections are idle.
    pub(crate) fn are_idle(&self) -> bool {
        self.source.iter().chain(&self.destination).all(NbdConnection::is_idle)
    }

    /// See [`NbdConnection::abandon`].
    pub(crate) fn abandon(&mut self) {
        self.each().for_each(NbdConnection::abandon);
    }

    /// Returns the sessions to their exports. Call when they [are idle](NbdConnections::are_idle).
    pub(crate) fn close(&mut self) {
        self.source.drain(..).chain(self.destination.drain(..)).for_each(NbdConnection::close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_own_number() {
        for number in 0..40 {
            assert_eq!(ConnectionOp::of(number).map(ConnectionOp::number), Some(number));
        }
    }
}
