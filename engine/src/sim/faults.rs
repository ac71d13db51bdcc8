//! Decides which operations on a simulated volume fail, and how long they take.

use super::world::NO_SOCKETS;
use crate::ring::Op;
use fastrand::Rng;
use nix::errno::Errno;
use std::time::Duration;

/// Probabilities of faults, from 0 to 1. The engine heals the first three; the others end an attempt.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A short transfer.
    pub short: f64,
    /// EAGAIN and EINTR.
    pub again: f64,
    /// A flush that takes longer than the drain limit.
    pub slow_flush: f64,
    /// EIO of a read or write.
    pub io: f64,
    /// ENOSPC of a write, a request for zeros or a reservation.
    pub space: f64,
    /// A transfer that moves nothing.
    pub stuck: f64,
    /// EIO of a request for zeros.
    pub zero: f64,
    /// EIO of a flush.
    pub flush: f64,
    /// An operation that is never answered.
    pub hang: f64,
    /// An error of the journal's file.
    pub journal: f64,
}

impl Faults {
    /// Draws the error with which this operation fails before it moves a byte, if it does.
    pub(crate) fn strike(&self, op: &Op, rng: &mut Rng) -> Option<Errno> {
        let hit = |chance: f64, rng: &mut Rng| rng.f64() < chance;
        let flush = matches!(op, Op::Flush { .. });
        if !flush && hit(self.again, rng) {
            return Some(if rng.bool() { Errno::EAGAIN } else { Errno::EINTR });
        }
        let (io, space) = match op {
            Op::Read { .. } => (self.io, 0.0),
            Op::Write { .. } => (self.io, self.space),
            Op::Zero { .. } => (self.zero, self.space),
            Op::Flush { .. } => (self.flush, 0.0),
            Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => unreachable!("{NO_SOCKETS}"),
        };
        if hit(io, rng) { Some(Errno::EIO) } else { hit(space, rng).then_some(Errno::ENOSPC) }
    }

    /// Draws the latency of an operation; `None`: it is never answered.
    pub(crate) fn latency(&self, op: &Op, rng: &mut Rng) -> Option<Duration> {
        if rng.f64() < self.hang {
            return None;
        }
        let us = match op {
            Op::Flush { .. } if rng.f64() < self.slow_flush => rng.u64(9_000_000..40_000_000),
            Op::Flush { .. } => rng.u64(100..20_000),
            // Most latencies are short; a few operations are overtaken by many others.
            _ if rng.u8(..) < 8 => rng.u64(1_000..50_000),
            _ => rng.u64(10..400),
        };
        Some(Duration::from_micros(us))
    }

    /// Returns how much of a transfer of `len` bytes is moved.
    pub(crate) fn portion(&self, len: usize, align: usize, rng: &mut Rng) -> usize {
        if rng.f64() < self.stuck {
            return 0;
        }
        let units = len / align;
        if units > 1 && rng.f64() < self.short { rng.usize(1..units) * align } else { len }
    }
}
