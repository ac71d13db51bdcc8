//! Exports of real servers: over a socket of this host, over TCP, mostly empty, and far away.

use super::{Scenario, Setting, Stage};
use crate::contestant::Contestant;
use crate::doubt::Reason;
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::site::Room;
use crate::site::server::Listen;
use crate::target::{Caching, Task, blockhaul, nbdcopy, qemu_img};
use crate::volume::Volume;

pub(super) const UNIX: Scenario = Scenario {
    name: "nbd-unix",
    about: "An export to another one over unix sockets, nbdkit pattern to nbdkit null: no disk, only protocol.",
    metric: Metric::BytesPerSecond,
    stage: unix,
};

pub(super) const TCP_IN: Scenario = Scenario {
    name: "nbd-tcp-in",
    about: "An export of random data over TCP loopback to a new local file.",
    metric: Metric::BytesPerSecond,
    stage: tcp_in,
};

pub(super) const TCP_OUT: Scenario = Scenario {
    name: "nbd-tcp-out",
    about: "A local file of random data to an export over TCP loopback.",
    metric: Metric::BytesPerSecond,
    stage: tcp_out,
};

pub(super) const SPARSE: Scenario = Scenario {
    name: "nbd-sparse",
    about: "A large export that is mostly empty to a new local file.",
    metric: Metric::Seconds,
    stage: sparse,
};

pub(super) const DELAY: Scenario = Scenario {
    name: "nbd-delay",
    about: "An export to another one, with 10 ms added to every request at both ends.",
    metric: Metric::BytesPerSecond,
    stage: delay,
};

fn unix(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 128 * MIB, 4 * MIB);
    let mut room = setting.room(0)?;
    let size = format!("size={bytes}");
    let source = serve(setting, &mut room, Listen::Unix, &["pattern", &size], None)?;
    let destination = serve(setting, &mut room, Listen::Unix, &["null", &size], None)?;
    let pairs = [room.pair(0, source, destination, bytes)];
    let task = setting.task(&pairs, Caching::Direct);
    let mut contestants = everybody(&task);
    contestants.push(blockhaul::command(&task, &["--digest", "none"]).named("blockhaul-no-digest"));
    let mut stage = setting.stage(room, bytes, contestants).parameter("servers", "nbdkit pattern, nbdkit null");
    stage.doubts.push(Reason::NotCompared.doubt());
    Ok(stage)
}

fn tcp_in(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 96 * MIB, 4 * MIB);
    let mut room = setting.room(3 * bytes)?;
    let file = setting.file(&room, room.path("source"), bytes, std::iter::once(0..bytes))?;
    let name = file.display().to_string();
    let source = serve(setting, &mut room, Listen::Tcp, &["file", &name], Some(file))?;
    let pairs = [room.pair(0, source, Volume::File(room.path("destination")), bytes)];
    let contestants = everybody(&setting.task(&pairs, Caching::Direct));
    Ok(setting.stage(room, bytes, contestants).cached(2 * bytes).parameter("server", "nbdkit file"))
}

fn tcp_out(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 96 * MIB, 4 * MIB);
    let mut room = setting.room(3 * bytes)?;
    let source = setting.file(&room, room.path("source"), bytes, std::iter::once(0..bytes))?;
    let backing = room.reserved("backing", bytes)?;
    let name = backing.display().to_string();
    let destination = serve(setting, &mut room, Listen::Tcp, &["file", &name], Some(backing))?;
    let pairs = [room.pair(0, Volume::File(source), destination, bytes)];
    let contestants = everybody(&setting.task(&pairs, Caching::Direct));
    Ok(setting.stage(room, bytes, contestants).cached(2 * bytes).parameter("server", "nbdkit file"))
}

fn sparse(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let (bytes, extents) = setting.scale.of((64 * GIB, 256), (8 * GIB, 64), (64 * MIB, 4));
    let mut room = setting.room(3 * extents * MIB)?;
    let distance = bytes / extents;
    let data = (0..extents).map(|number| number * distance..number * distance + MIB);
    let file = setting.file(&room, room.path("source"), bytes, data)?;
    let name = file.display().to_string();
    let source = serve(setting, &mut room, Listen::Unix, &["file", &name], Some(file))?;
    let pairs = [room.pair(0, source, Volume::File(room.path("destination")), bytes)];
    let contestants = everybody(&setting.task(&pairs, Caching::Direct));
    Ok(setting
        .stage(room, bytes, contestants)
        .data(extents * MIB)
        .cached(2 * extents * MIB)
        .parameter("extents", extents))
}

fn delay(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(GIB, 48 * MIB, 4 * MIB);
    let mut room = setting.room(0)?;
    let size = format!("size={bytes}");
    // As many requests of a client at a time as the client wants: the path is long, not narrow.
    let far = ["--filter=delay", "--threads=64"];
    let source =
        serve(setting, &mut room, Listen::Unix, &[&far[..], &["pattern", &size, "rdelay=10ms"]].concat(), None)?;
    let destination =
        serve(setting, &mut room, Listen::Unix, &[&far[..], &["null", &size, "wdelay=10ms"]].concat(), None)?;
    let pairs = [room.pair(0, source, destination, bytes)];
    let task = setting.task(&pairs, Caching::Direct);
    let mut contestants = everybody(&task);
    // Depths that somebody who knows the path would try.
    for (name, flags) in [
        ("nbdcopy-1m", ["--requests=64", "--request-size=1048576", "--queue-size=67108864"]),
        ("nbdcopy-256", ["--requests=256", "--request-size=262144", "--queue-size=67108864"]),
        ("nbdcopy-4m", ["--requests=64", "--request-size=4194304", "--queue-size=268435456"]),
    ] {
        contestants.push(nbdcopy::tuned(&task, name, &flags));
    }
    let mut stage = setting.stage(room, bytes, contestants).parameter("delay", "10 ms per read and per write");
    stage.doubts.push(Reason::NotCompared.doubt());
    Ok(stage)
}

/// Ours with their defaults, and the rivals that speak the protocol.
fn everybody(task: &Task<'_>) -> Vec<Contestant> {
    vec![blockhaul::engine(task, |_| ()), blockhaul::command(task, &[]), nbdcopy::copy(task), qemu_img::convert(task)]
}

/// An export of `nbdkit WORDS`.
fn serve(
    setting: &Setting<'_>,
    room: &mut Room,
    listen: Listen,
    words: &[&str],
    backing: Option<std::path::PathBuf>,
) -> Result<Volume, Failure> {
    let program = setting.programs.path("nbdkit").map_err(Failure::Failed)?;
    Ok(Volume::Export { uri: room.nbdkit(&program, listen, words)?, backing })
}
