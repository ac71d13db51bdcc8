//! Builds the targets that show limits: of the device, of a bare ring loop, and of the harness itself.

use super::Workload;
use crate::program::BARE_LOOP;
use crate::results::Kind;
use crate::target::{Invocation, OutputFormat, Target, TrialWork};

/// Builds a target in which fio reads the source and writes a reserved file at the same time, with a flush at the end:
/// the rate of the device without copying any byte from one to the other.
pub(crate) fn fio(workload: &Workload<'_>, block: u64, depth: u32) -> Target {
    let name = format!("fio-{}k-{depth}", block >> 10);
    let target = workload.target(&name, Kind::Limit, "fio", |program, pair| {
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
    target.with_output(OutputFormat::FioJson).unverified()
}

/// Builds the bare ring loop target: one thread per core, 8 blocks in flight for each.
pub(crate) fn bare_loop(workload: &Workload<'_>) -> Target {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let block = workload.block_or(1 << 20);
    // The engine's default: 8 MiB in flight for each core, at most 64 blocks.
    let depth = ((8 << 20) / block).clamp(4, 64) * cores as u64;
    workload.target("bare-loop", Kind::Limit, BARE_LOOP, |program, pair| {
        let (source, destination) = (pair.source.name(), pair.destination.name());
        let numbers = [block, depth, cores as u64].map(|number| number.to_string());
        let [block, depth, threads] = &numbers;
        Invocation::new([program, &source, &destination, "--block", block, "--depth", depth, "--threads", threads])
    })
}

/// Builds a target that does nothing: the cost of starting, waiting for and sampling a program.
pub(crate) fn null(workload: &Workload<'_>) -> Target {
    let work = TrialWork::Commands { commands: vec![Invocation::new(["true"])], format: OutputFormat::Ignored };
    Target::new("null", Kind::Null, work, workload.pairs).unverified()
}
