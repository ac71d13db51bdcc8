//! Draws from a seed the engine, its volumes, its jobs, and the faults that will hit them.

use super::disk::{Abilities, Disk};
use super::faults::Faults;
use super::image::PAGE;
use super::journal::SimJournalFile;
use super::operation_audit::OperationAudit;
use super::server::SimServer;
use super::sim_gate::SimGate;
use super::world::TaskWorld;
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::spec::{CheckpointEvery, CheckpointLocation, CopySpec, DigestKind, Durability, Sparse, Verify};
use crate::units::{KIB, MIB};
use crate::volume::VolumeKind;
use fastrand::Rng;
use std::path::PathBuf;
use std::time::Duration;

/// Event that hits the engine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutsideEvent {
    Cancel,
    Pause,
    Limit,
    Change,
    Kill,
    PowerCut,
    Restart,
    /// As soon as a completion has arrived that is not reaped yet.
    RestartUnheard,
    /// The gate closes for a while.
    Shut,
    /// The gate closes in the middle of a worker's turn.
    ShutAmidst,
    /// The process is killed, and another run continues from claimed ranges without a journal.
    TakeOver,
}

/// Plan of one copy.
#[derive(Debug)]
pub(crate) struct Plan {
    pub spec: CopySpec,
    pub size: u64,
    pub leaf: u32,
    pub window: Option<u64>,
    /// Whether a byte is corrupted between the copy and its first verification.
    pub corrupt: bool,
}

/// The scenario of a seed.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub workers: usize,
    pub depth: usize,
    pub plans: Vec<Plan>,
    /// Events by the step at which they occur.
    pub events: Vec<(u64, OutsideEvent)>,
}

/// Number and severity of the faults of a seed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum FaultLevel {
    Low,
    Medium,
    High,
}

impl Scenario {
    /// With `servers`, some volumes are behind one; with `gates`, destinations are.
    pub(crate) fn draw(rng: &mut Rng, servers: bool, gates: bool) -> (Self, Vec<TaskWorld>) {
        let fault_level = [FaultLevel::Low, FaultLevel::Medium, FaultLevel::High][rng.usize(0..3)];
        let (mut plans, mut sites) = (Vec::new(), Vec::new());
        for _ in 0..*pick(rng, &[1, 1, 2, 3]) {
            let mut plan = Plan::draw(rng);
            let mut site = site(rng, &plan, fault_level);
            if servers {
                site.disks.iter_mut().for_each(|disk| serve(rng, disk));
                begin_bitmap(rng, &mut plan, &mut site);
            }
            sites.push(site);
            plans.push(plan);
        }
        let workers = rng.usize(1..=3);
        let depth = rng.usize(1..=8);
        let mut events = events(rng);
        if servers {
            events.extend(restarts(rng));
            events.sort_by_key(|&(step, _)| step);
        }
        if gates {
            sites.iter_mut().for_each(|site| site.sim_gate = Some(SimGate::new()));
            events.extend(shuts(rng));
            events.sort_by_key(|&(step, _)| step);
        }
        (Self { workers, depth, plans, events }, sites)
    }

    /// Returns the bytes of a slot.
    pub(crate) fn block_bytes(&self) -> usize {
        self.plans.iter().map(|plan| plan.leaf).max().unwrap_or(0) as usize
    }
}

impl Plan {
    fn draw(rng: &mut Rng) -> Self {
        // Past 64 KiB a block is written in several runs, around the zeros in it.
        let mut leaf = *pick(rng, &[4_u32, 4, 8, 16, 32, 64, 256]) << 10;
        let size = match rng.u8(0..40) {
            0 => 0,
            1 => 1,
            2..5 => rng.u64(1..=5_000),
            5..15 => rng.u64(1..=16) * u64::from(leaf),
            15 => rng.u64(64 * MIB..140 * MIB),
            16..28 => rng.u64(1..=2 * MIB),
            _ => rng.u64(1..=256 * KIB),
        };
        if size > 4 * MIB {
            // A large leaf keeps the number of blocks low.
            leaf = 64 << 10;
        }
        let path = |name: &str| PathBuf::from(format!("/simulated/{name}"));
        let mut spec = CopySpec::new(path("source").into(), path("destination").into());
        spec.sparse = *pick(rng, &[Sparse::Never, Sparse::Read, Sparse::Auto, Sparse::Auto]);
        spec.digest = if rng.u8(0..4) == 0 { DigestKind::None } else { DigestKind::Xxh3 };
        spec.durability = if rng.u8(0..8) == 0 { Durability::None } else { Durability::Required };
        spec.verify = if rng.u8(0..3) == 0 { Verify::Yes } else { Verify::No };
        // A copy without flushes records nothing to resume from.
        let is_lost = rng.u8(0..6) == 0 || spec.durability == Durability::None;
        spec.checkpoint = if is_lost { CheckpointLocation::None } else { CheckpointLocation::File(path("journal")) };
        spec.checkpoint_every = CheckpointEvery {
            bytes: rng.u64(1..=16) * u64::from(leaf),
            time: Duration::from_millis(*pick(rng, &[1, 20, 1000, 1000])),
        };
        spec.limit_bytes_per_second = (rng.u8(0..6) == 0).then(|| rate(rng, size));
        let window = (rng.u8(0..6) == 0).then(|| rng.u64(1..=8) * u64::from(leaf));
        let corrupt = spec.verify == Verify::Yes && rng.u8(0..3) == 0;
        Self { spec, size, leaf, window, corrupt }
    }
}

/// Draws a rate at which a copy takes seconds at most.
pub(crate) fn rate(rng: &mut Rng, size: u64) -> u64 {
    (size.min(4 * MIB) / 2).max(100 * KIB) * rng.u64(1..=20)
}

fn site(rng: &mut Rng, plan: &Plan, fault_level: FaultLevel) -> TaskWorld {
    let source = source(rng, plan.size);
    let destination = destination(rng, plan, source.kind);
    TaskWorld {
        expected: source.cached.clone(),
        expected_changes: 0,
        beyond: destination.cached.clone(),
        disks: [source, destination],
        faults: faults(rng, fault_level, plan.size),
        audit: OperationAudit::default(),
        journal: SimJournalFile::default(),
        flushes: plan.spec.durability == Durability::Required,
        checkpoints: plan.spec.checkpoint != CheckpointLocation::None,
        sim_gate: None,
        has_claims: false,
    }
}

fn abilities(rng: &mut Rng) -> Abilities {
    Abilities {
        align: *pick(rng, &[1, 512, 4096]),
        zero_hole: rng.u8(0..3) > 0,
        zero_allocated: rng.u8(0..3) > 0,
        allocates: rng.u8(0..4) > 0,
        clones: false,
    }
}

/// Puts a device behind a server, at random.
fn serve(rng: &mut Rng, disk: &mut Disk) {
    if disk.kind == VolumeKind::Device && rng.u8(0..4) > 0 {
        disk.server = Some(SimServer::new(rng.bool()));
    }
}

/// Makes the copy incremental, at random and only if a server can report the changes.
fn begin_bitmap(rng: &mut Rng, plan: &mut Plan, site: &mut TaskWorld) {
    let [source, destination] = &mut site.disks;
    let is_small = plan.size <= 4 * MIB && destination.kind == VolumeKind::Device;
    if source.server.is_none() || !is_small || rng.bool() {
        return;
    }
    plan.spec.changed_since = Some(String::from("bitmap"));
    // An incremental copy would not repair a corrupted byte in an unchanged range.
    plan.corrupt = false;
    for extent in source.extents.iter_mut().flatten().filter(|_| rng.bool()) {
        extent.kind = ExtentKind::Unchanged;
        let (start, end) = (extent.range.start(), extent.range.end());
        destination.preload(start, &source.cached.copy(start, end));
    }
    site.beyond = destination.cached.clone();
}

fn source(rng: &mut Rng, size: u64) -> Disk {
    let mut abilities = abilities(rng);
    let is_device = size.is_multiple_of(512) && rng.bool();
    if !size.is_multiple_of(4096) && is_device {
        abilities.align = abilities.align.min(512);
    }
    let kind = if is_device { VolumeKind::Device } else { VolumeKind::File };
    let mut disk = Disk::new(kind, size + 2 * PAGE, size, abilities);
    let mut extents = Vec::new();
    let unit = *pick(rng, &[1, 512, 4096, 16 * KIB, 64 * KIB]);
    let (mut at, mut budget) = (0, 2 * MIB);
    while at < size {
        let longest = if unit == 1 { 9_000 } else { 24 };
        let kind = if budget == 0 { ExtentKind::Hole } else { *pick(rng, &KINDS) };
        let scale = if kind != ExtentKind::Data && size > 4 * MIB { 1 << 12 } else { 1 };
        let end = at.saturating_add(rng.u64(1..=longest) * unit * scale).min(size);
        if kind == ExtentKind::Data {
            fill(rng, &mut disk, at, end);
            budget = u64::saturating_sub(budget, end - at);
        }
        extents.push(Extent { range: ByteRange::new(at, end), kind });
        at = end;
    }
    if size > 0 && size <= 4 * MIB && rng.u8(0..5) == 0 {
        // A volume without a map.
        extents = vec![Extent { range: ByteRange::new(0, size), kind: ExtentKind::Data }];
    }
    disk.extents = Some(extents);
    disk
}

const KINDS: [ExtentKind; 4] = [ExtentKind::Data, ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole];

/// Fills a range with data that may contain zeros.
fn fill(rng: &mut Rng, disk: &mut Disk, start: u64, end: u64) {
    let zeros = *pick(rng, &[0, 0, 4, 20]);
    let mut at = start;
    while at < end {
        let stop = at.saturating_add(rng.u64(1..=128 * KIB)).min(end);
        if rng.u8(0..20) >= zeros {
            let mut bytes = vec![0; (stop - at) as usize];
            rng.fill(&mut bytes);
            disk.preload(at, &bytes);
        }
        at = stop;
    }
}

fn destination(rng: &mut Rng, plan: &Plan, source: VolumeKind) -> Disk {
    let mut abilities = abilities(rng);
    let device = rng.bool();
    let unit = u64::from(abilities.align).max(512);
    let size = match device {
        true => plan.size.next_multiple_of(unit) + rng.u64(0..4) * unit * rng.u64(0..20),
        // Content of an earlier file of that name.
        false => rng.u64(0..=3) * plan.size.min(MIB) / 2,
    };
    abilities.clones = !device && source == VolumeKind::File && plan.spec.sparse == Sparse::Auto && rng.u8(0..10) == 0;
    let kind = if device { VolumeKind::Device } else { VolumeKind::File };
    let capacity = size.max(plan.size) + 2 * PAGE;
    let mut disk = Disk::new(kind, capacity, size, abilities);
    let mut page = vec![0; PAGE as usize];
    let dirt = *pick(rng, &[0, 1, 4]);
    for at in (0..size).step_by(PAGE as usize).filter(|at| *at < 4 * MIB || *at + 4 * MIB > size) {
        if rng.u8(0..4) < dirt {
            rng.fill(&mut page[..64]);
            disk.preload(at, &page[..PAGE.min(size - at) as usize]);
        }
    }
    disk
}

fn faults(rng: &mut Rng, fault_level: FaultLevel, size: u64) -> Faults {
    let mut faults = Faults::default();
    // The estimated number of operations: faults should be rare.
    let rare = 1.0 / (4.0 + size.min(2 * MIB) as f64 / 16_384.0);
    if fault_level >= FaultLevel::Medium {
        faults.short = *pick(rng, &[0.0, 0.1, 0.5]);
        faults.again = *pick(rng, &[0.0, 0.1, 0.3]);
        faults.slow_flush = *pick(rng, &[0.0, 0.0, 0.0, 0.3]);
    }
    if fault_level == FaultLevel::High {
        let each = |rng: &mut Rng| if rng.u8(0..4) == 0 { rare } else { 0.0 };
        faults.io = each(rng);
        faults.space = each(rng);
        faults.stuck = each(rng);
        faults.zero = each(rng);
        faults.hang = each(rng) / 4.0;
        faults.flush = if rng.u8(0..3) == 0 { 0.3 } else { 0.0 };
        faults.journal = if rng.u8(0..6) == 0 { 0.1 } else { 0.0 };
    }
    faults
}

fn events(rng: &mut Rng) -> Vec<(u64, OutsideEvent)> {
    let kinds = [
        OutsideEvent::Cancel,
        OutsideEvent::Pause,
        OutsideEvent::Limit,
        OutsideEvent::Change,
        OutsideEvent::Kill,
        OutsideEvent::PowerCut,
        OutsideEvent::PowerCut,
    ];
    let count = *pick(rng, &[0, 1, 2, 3, 6]);
    let horizon = *pick(rng, &[30, 100, 400, 2_000]);
    let mut events: Vec<_> = (0..count).map(|_| (rng.u64(1..horizon), *pick(rng, &kinds))).collect();
    events.sort_unstable_by_key(|&(step, _)| step);
    events
}

fn restarts(rng: &mut Rng) -> Vec<(u64, OutsideEvent)> {
    let count = *pick(rng, &[0, 1, 1, 2, 4]);
    let horizon = *pick(rng, &[100, 400, 2_000]);
    (0..count)
        .map(|_| (rng.u64(1..horizon), *pick(rng, &[OutsideEvent::Restart, OutsideEvent::RestartUnheard])))
        .collect()
}

fn shuts(rng: &mut Rng) -> Vec<(u64, OutsideEvent)> {
    let kinds = [OutsideEvent::Shut, OutsideEvent::ShutAmidst, OutsideEvent::ShutAmidst, OutsideEvent::TakeOver];
    let count = *pick(rng, &[1, 2, 4, 12]);
    let horizon = *pick(rng, &[30, 100, 400, 2_000]);
    (0..count).map(|_| (rng.u64(1..horizon), *pick(rng, &kinds))).collect()
}

pub(crate) fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(0..from.len())]
}
