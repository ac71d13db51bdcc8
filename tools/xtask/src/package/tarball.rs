//! Makes a tarball of static programs, for systems without the package: they need a kernel, and no library.
//!
//! The programs bring glibc. It looks up host names as the system does only where the same version of glibc is installed; DNS
//! and `/etc/hosts` always work.

use super::build::{self, Linking};
use super::{VERSION, created, generated, target};
use crate::Refused;
use crate::release::PROGRAMS;
use crate::step::{Tally, Verdict, root};
use std::path::Path;
use std::process::Command;

/// Files of the repository, with their places in the tarball.
const FILES: [(&str, &str); 9] = [
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("packaging/taskd.toml", "etc/taskd.toml"),
    ("packaging/systemd/taskd.service", "etc/taskd.service"),
    ("packaging/blockhaul.sysusers", "etc/blockhaul.sysusers"),
    ("packaging/prometheus/blockhaul.rules.yml", "share/prometheus/blockhaul.rules.yml"),
    ("packaging/grafana/blockhaul.json", "share/grafana/blockhaul.json"),
];

/// Builds the programs and makes the tarball, with its checksum beside it.
///
/// # Errors
/// A folder or file cannot be written.
pub(super) fn make(tally: &mut Tally, dist: &Path, epoch: u64) -> Result<(), Refused> {
    let Some(built) = build::programs(tally, Linking::Static, epoch)? else { return Ok(()) };
    let name = format!("blockhaul-{VERSION}-{}", build::host_triple()?);
    let stage = target().join("package/tarball");
    let folder = stage.join(&name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(|error| format!("remove {}: {error}", folder.display()))?;
    }
    let programs = created(&folder.join("bin"))?;
    for (_, program) in PROGRAMS {
        let mut strip = Command::new("objcopy");
        strip.arg("--strip-all").arg(built.join(program)).arg(programs.join(program));
        tally.run(&format!("{program}: stripped"), &mut strip);
    }
    let blockhaul = generated::built(&built.join("blockhaul"), epoch);
    generated::manual(tally, &blockhaul, &created(&folder.join("share/man"))?);
    generated::completions(tally, &blockhaul, &folder.join("share/completions"))?;
    for place in ["etc", "share/prometheus", "share/grafana"] {
        created(&folder.join(place))?;
    }
    for (from, to) in FILES {
        let copied = std::fs::copy(root().join(from), folder.join(to));
        copied.map_err(|error| format!("copy {from} to {}: {error}", folder.display()))?;
    }
    let archive = format!("{name}.tar.gz");
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu", "--mode=u+rw,go+r-w,a+X"]);
    tar.arg(format!("--mtime=@{epoch}")).args(["--use-compress-program=gzip -9 --no-name", "--create"]);
    tar.arg("--file").arg(dist.join(&archive)).arg("--directory").arg(&stage).arg(&name);
    if tally.run("tarball", &mut tar) == Verdict::Passed {
        let sums = dist.join(format!("{archive}.sha256"));
        let to = std::fs::File::create(&sums).map_err(|error| format!("create {}: {error}", sums.display()))?;
        tally.run_into("checksum", Command::new("sha256sum").arg(&archive).current_dir(dist), to);
    }
    Ok(())
}
