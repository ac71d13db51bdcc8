//! Copies exports of real servers: over unix sockets, over TCP, mostly empty ones, and with added delay.

use super::{PreparedScenario, Scenario, SetupContext};
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::Target;
use crate::target::{Caching, Workload, blockhaul, nbdcopy, qemu_img};
use crate::trial_executor::Failure;
use crate::volume::Volume;
use crate::warning::WarningKind;
use crate::workdir::ScenarioDir;
use crate::workdir::server::Listen;

pub(super) const UNIX: Scenario = Scenario {
    name: "nbd-unix",
    about: "An export to another one over unix sockets, nbdkit pattern to nbdkit null: no disk, only protocol.",
    metric: Metric::BytesPerSecond,
    prepare: unix,
};

pub(super) const TCP_IN: Scenario = Scenario {
    name: "nbd-tcp-in",
    about: "An export of random data over TCP loopback to a new local file.",
    metric: Metric::BytesPerSecond,
    prepare: tcp_in,
};

pub(super) const TCP_OUT: Scenario = Scenario {
    name: "nbd-tcp-out",
    about: "A local file of random data to an export over TCP loopback.",
    metric: Metric::BytesPerSecond,
    prepare: tcp_out,
};

pub(super) const SPARSE: Scenario = Scenario {
    name: "nbd-sparse",
    about: "A large export that is mostly empty to a new local file.",
    metric: Metric::Seconds,
    prepare: sparse,
};

pub(super) const DELAY: Scenario = Scenario {
    name: "nbd-delay",
    about: "An export to another one, with 10 ms added to every request at both ends.",
    metric: Metric::BytesPerSecond,
    prepare: delay,
};

fn unix(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 128 * MIB, 4 * MIB);
    let mut dir = context.scenario_dir(0)?;
    let size = format!("size={bytes}");
    let source = serve(context, &mut dir, Listen::Unix, &["pattern", &size], None)?;
    let destination = serve(context, &mut dir, Listen::Unix, &["null", &size], None)?;
    let pairs = [dir.pair(0, source, destination, bytes)];
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let mut targets = everybody(&workload);
    targets.push(blockhaul::command(&workload, &["--digest", "none"]).with_name("blockhaul-no-digest"));
    let mut prepared = context.prepare(dir, bytes, targets).parameter("servers", "nbdkit pattern, nbdkit null");
    prepared.warnings.push(WarningKind::NotCompared.warning());
    Ok(prepared)
}

fn tcp_in(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 96 * MIB, 4 * MIB);
    let mut dir = context.scenario_dir(3 * bytes)?;
    let file = context.file(&dir, dir.path("source"), bytes, std::iter::once(0..bytes))?;
    let name = file.display().to_string();
    let source = serve(context, &mut dir, Listen::Tcp, &["file", &name], Some(file))?;
    let pairs = [dir.pair(0, source, Volume::File(dir.path("destination")), bytes)];
    let targets = everybody(&context.workload(&pairs, Caching::OwnChoice));
    Ok(context.prepare(dir, bytes, targets).cached(2 * bytes).parameter("server", "nbdkit file"))
}

fn tcp_out(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(2 * GIB, 96 * MIB, 4 * MIB);
    let mut dir = context.scenario_dir(3 * bytes)?;
    let source = context.file(&dir, dir.path("source"), bytes, std::iter::once(0..bytes))?;
    let backing = dir.reserved("backing", bytes)?;
    let name = backing.display().to_string();
    let destination = serve(context, &mut dir, Listen::Tcp, &["file", &name], Some(backing))?;
    let pairs = [dir.pair(0, Volume::File(source), destination, bytes)];
    let targets = everybody(&context.workload(&pairs, Caching::OwnChoice));
    Ok(context.prepare(dir, bytes, targets).cached(2 * bytes).parameter("server", "nbdkit file"))
}

fn sparse(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let (bytes, extents) = context.scale.of((64 * GIB, 256), (8 * GIB, 64), (64 * MIB, 4));
    let mut dir = context.scenario_dir(3 * extents * MIB)?;
    let distance = bytes / extents;
    let data = (0..extents).map(|number| number * distance..number * distance + MIB);
    let file = context.file(&dir, dir.path("source"), bytes, data)?;
    let name = file.display().to_string();
    let source = serve(context, &mut dir, Listen::Unix, &["file", &name], Some(file))?;
    let pairs = [dir.pair(0, source, Volume::File(dir.path("destination")), bytes)];
    let targets = everybody(&context.workload(&pairs, Caching::OwnChoice));
    Ok(context.prepare(dir, bytes, targets).data(extents * MIB).cached(2 * extents * MIB).parameter("extents", extents))
}

fn delay(context: &SetupContext<'_>) -> Result<PreparedScenario, Failure> {
    let bytes = context.scale.of(GIB, 48 * MIB, 4 * MIB);
    let mut dir = context.scenario_dir(0)?;
    let size = format!("size={bytes}");
    // The servers take many requests at a time: the delay must not limit their number.
    let far = ["--filter=delay", "--threads=64"];
    let source =
        serve(context, &mut dir, Listen::Unix, &[&far[..], &["pattern", &size, "rdelay=10ms"]].concat(), None)?;
    let destination =
        serve(context, &mut dir, Listen::Unix, &[&far[..], &["null", &size, "wdelay=10ms"]].concat(), None)?;
    let pairs = [dir.pair(0, source, destination, bytes)];
    let workload = context.workload(&pairs, Caching::OwnChoice);
    let mut targets = everybody(&workload);
    // Depths that suit the delay.
    for (name, flags) in [
        ("nbdcopy-1m", ["--requests=64", "--request-size=1048576", "--queue-size=67108864"]),
        ("nbdcopy-256", ["--requests=256", "--request-size=262144", "--queue-size=67108864"]),
        ("nbdcopy-4m", ["--requests=64", "--request-size=4194304", "--queue-size=268435456"]),
    ] {
        targets.push(nbdcopy::tuned(&workload, name, &flags));
    }
    let mut prepared = context.prepare(dir, bytes, targets).parameter("delay", "10 ms per read and per write");
    prepared.warnings.push(WarningKind::NotCompared.warning());
    Ok(prepared)
}

/// Returns our targets with their defaults, and the rivals that support NBD.
fn everybody(workload: &Workload<'_>) -> Vec<Target> {
    vec![
        blockhaul::engine(workload, |_| ()),
        blockhaul::command(workload, &[]),
        nbdcopy::copy(workload),
        qemu_img::convert(workload),
    ]
}

/// Serves an export with `nbdkit WORDS`.
fn serve(
    context: &SetupContext<'_>,
    dir: &mut ScenarioDir,
    listen: Listen,
    words: &[&str],
    backing: Option<std::path::PathBuf>,
) -> Result<Volume, Failure> {
    let program = context.programs.path("nbdkit").map_err(Failure::Failed)?;
    Ok(Volume::Export { uri: dir.nbdkit(&program, listen, words)?, backing })
}
