//! Simulates a server in front of a disk: it may be killed and restarted, and loses acknowledged writes that were not
//! flushed.
//!
//! Its clients reconnect by themselves: operations that were in flight are sent once more and answered later. The
//! generation has grown before anything is answered after the loss, at once or at the last moment.

use super::disk::Disk;
use super::world::{SharedWorld, World};
use crate::extent::ExtentKind;
use crate::ring::{FileId, Instant, Op, Transfer, ZeroMode};
use std::time::Duration;

/// A server in front of a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SimServer {
    generation: u64,
    /// Whether the generation must still grow.
    lost: bool,
    /// Time before which the server answers no operation.
    back: Instant,
    /// Whether the server reports block status.
    pub tells: bool,
}

impl SimServer {
    pub(crate) fn new(tells: bool) -> Self {
        Self { tells, ..Self::default() }
    }

    /// Notes an answer, before which the generation grows.
    pub(crate) fn answers(&mut self) {
        self.generation += u64::from(std::mem::take(&mut self.lost));
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns when a request that is sent now starts.
    pub(crate) fn starts(&self, now: Instant) -> Instant {
        self.back.max(now)
    }

    fn is_restarted(&mut self, back: Instant, at_once: bool) {
        // An earlier loss that is not noticed yet is noticed with this one.
        self.answers();
        (self.lost, self.back) = (true, back);
        if at_once {
            self.answers();
        }
    }
}

impl SharedWorld {
    /// Kills and restarts the server in front of a volume. Returns whether there is one.
    pub(crate) fn restart(&self, file: FileId) -> bool {
        let world = &mut *self.lock();
        let is_served = world.disk(file).server.is_some();
        if is_served {
            world.note(format_args!("the server of volume {} is killed", file.0));
            world.lose(file);
        }
        is_served
    }
}

impl World {
    fn lose(&mut self, file: FileId) {
        let outage = Duration::from_micros(if self.rng.u8(0..8) == 0 { 1_000_000 } else { 20_000 });
        let back = self.now + outage.mul_f64(self.rng.f64());
        let survives = [0.0, 0.5, 1.0][self.rng.usize(0..3)];
        let at_once = self.rng.bool();
        let Self { rng, sites, in_flight, .. } = self;
        let site = &mut sites[file.0 as usize / 2];
        site.audit.restarts += 1;
        let disk = &mut site.disks[file.0 as usize % 2];
        for in_flight in in_flight.iter().filter(|in_flight| in_flight.is_on(file)) {
            // An operation may have taken effect without an answer.
            if rng.bool() {
                take_effect(disk, &in_flight.op);
            }
        }
        disk.power_cut(survives, rng);
        disk.server.as_mut().expect("looked at before").is_restarted(back, at_once);
        for in_flight in in_flight.iter_mut().filter(|in_flight| in_flight.is_on(file)) {
            in_flight.send_again(disk, back + Duration::from_micros(rng.u64(10..20_000)));
        }
    }
}

fn take_effect(disk: &mut Disk, op: &Op) {
    match op {
        Op::Write { offset, from: Transfer { block, start, len }, .. } => {
            disk.write(*offset, &block[*start as usize..(*start + *len) as usize]);
        }
        Op::Zero { offset, len, mode: ZeroMode::Hole, .. } if disk.abilities.zero_hole => {
            disk.zero(*offset, *offset + *len, ExtentKind::Hole);
        }
        Op::Read { .. }
        | Op::Zero { .. }
        | Op::Flush { .. }
        | Op::Send { .. }
        | Op::Receive { .. }
        | Op::Writable { .. } => {}
    }
}
