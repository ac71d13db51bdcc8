//! The limits: what the device can do, what a loop that does nothing else takes, and what the harness itself costs.

use super::Workload;
use crate::program::BARE_LOOP;
use crate::results::Kind;
use crate::target::{Invocation, OutputFormat, Target, Verification, Work};

/// fio reads the source and writes another file at the same time, its space reserved, flushed at the end: the rate of
/// the device, with no byte going from one to the other.
pub(crate) fn fio(workload: &Workload<'_>, block: u64, depth: u32) -> Target {
    let name = format!("fio-{}k-{depth}", block >> 10);
    let mut target = workload.target(&name, Kind::Limit, "fio", |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let mut words = vec![program.to_owned()];
        words.extend(
            ["--output-format=json", "--ioengine=io_uring", "--direct=1", "--thread", "--fixedbufs"].map(str::to_owned),
        );
        words.extend([format!("--bs={block}"), format!("--iodepth={depth}"), format!("--size={}", pair.bytes)]);
        words.extend(["--name=read", "--rw=read"].map(str::to_owned));
        words.push(format!("--filename={source}"));
        words.extend(["--name=write", "--rw=write", "--fallocate=native", "--end_fsync=1"].map(str::to_owned));
        words.push(format!("--filename={destination}"));
        Invocation::new(words)
    });
    if let Work::Commands { format, .. } = &mut target.work {
        *format = OutputFormat::FioJson;
    }
    target.unverified()
}

/// The bare ring loop: as many threads as cores, 8 blocks in flight for each.
pub(crate) fn bare_loop(workload: &Workload<'_>) -> Target {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let block = workload.block_or(1 << 20);
    // As the engine by default: 8 MiB in flight for each core, 64 blocks at most.
    let depth = ((8 << 20) / block).clamp(4, 64) * cores as u64;
    workload.target("bare-loop", Kind::Limit, BARE_LOOP, |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let numbers = [block, depth, cores as u64].map(|number| number.to_string());
        let [block, depth, threads] = &numbers;
        Invocation::new([program, &source, &destination, "--block", block, "--depth", depth, "--threads", threads])
    })
}

/// Does nothing: what starting a program, waiting for it and looking around cost.
pub(crate) fn null(workload: &Workload<'_>) -> Target {
    Target {
        name: "null".to_owned(),
        kind: Kind::Null,
        step: None,
        work: Work::Commands { commands: vec![Invocation::new(["true"])], format: OutputFormat::Ignored },
        pairs: workload.pairs.to_vec(),
        verification: Verification::None,
        warnings: Vec::new(),
    }
}
