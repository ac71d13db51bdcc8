//! Where the file system can share extents, a copy is a matter of metadata.

use super::{Scenario, Setting, Stage};
use crate::executor::Failure;
use crate::results::Metric;
use crate::scale::{GIB, MIB};
use crate::target::{Caching, blockhaul, cp};
use crate::volume::Volume;

pub(super) const REFLINK: Scenario = Scenario {
    name: "reflink",
    about: "A file of random data to a new file on xfs, by sharing its extents.",
    metric: Metric::Seconds,
    stage,
};

fn stage(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(GIB, 128 * MIB, 4 * MIB);
    // xfs refuses to be smaller than 300 MiB, and keeps a log.
    let disk = bytes + 512 * MIB;
    setting.programs.path("mkfs.xfs").map_err(Failure::Failed)?;
    let mut room = setting.room(disk)?;
    let mounted = room.xfs(disk)?;
    let source = setting.file(&room, mounted.join("source"), bytes, std::iter::once(0..bytes))?;
    let destination = Volume::File(mounted.join("destination"));
    let pairs = [room.pair(0, Volume::File(source), destination, bytes)];
    let task = setting.task(&pairs, Caching::Direct);
    let contestants = vec![
        blockhaul::engine(&task, |order| order.reflink = Some("always".to_owned())),
        blockhaul::command(&task, &["--reflink", "always"]),
        cp::reflink(&task),
    ];
    Ok(setting
        .stage(room, bytes, contestants)
        .cached(2 * bytes)
        .parameter("filesystem", "xfs in a file, over a loop device"))
}
