//! Makes the Debian package with cargo-deb, which reads `[package.metadata.deb]` of `tools/Cargo.toml`.
//!
//! cargo-deb is built below the target folder unless it is installed.

use super::build::{self, Linking, output};
use super::{created, generated};
use crate::Refused;
use crate::step::{Tally, Verdict, cargo, root};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Version that is built: what it makes of the same metadata changes between versions.
const VERSION: &str = "3.8.0";

/// Runs `$TOOLS/bin/cargo-deb` or an installed one, built if it is missing. Not optimised: it compresses once.
const SCRIPT: &str = r#"
DEB="$(command -v cargo-deb || echo "$TOOLS/bin/cargo-deb")"
if ! [ -x "$DEB" ]; then
    CARGO_TARGET_DIR="$TOOLS/build" "$CARGO" install --quiet --locked --root "$TOOLS" "cargo-deb@$VERSION" || exit
    rm -rf "$TOOLS/build"
fi
exec "$DEB" --package blockhaul-tools --no-build --no-dbgsym --strip --locked --output "$OUTPUT"
"#;

/// Builds the programs and makes the package; returns its file.
///
/// # Errors
/// A folder or file cannot be written.
pub(super) fn make(tally: &mut Tally, dist: &Path, epoch: u64) -> Result<Option<PathBuf>, Refused> {
    let Some(built) = build::programs(tally, Linking::Dynamic, epoch)? else { return Ok(None) };
    let blockhaul = generated::built(&built.join("blockhaul"), epoch);
    let folder = built.join("generated");
    generated::manual(tally, &blockhaul, &created(&folder.join("man"))?);
    generated::completions(tally, &blockhaul, &folder.join("completions"))?;
    let date = output(Command::new("date").args(["--utc", "--rfc-email", &format!("--date=@{epoch}")]))?;
    let changelog = folder.join("changelog.Debian");
    std::fs::write(&changelog, generated::debian_changelog(&date))
        .map_err(|error| format!("write {}: {error}", changelog.display()))?;
    // cargo-deb takes for programs what lies beside them, and compresses none of it.
    let mut compress = Command::new("sh");
    compress.args(["-c", "exec gzip --best --no-name --force changelog.Debian man/*.[18]"]).current_dir(&folder);
    tally.run("compressed", &mut compress);
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let file = dist.join(format!("blockhaul_{}-1_{architecture}.deb", super::VERSION));
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT]).current_dir(root()).env("CARGO", cargo(&[]).get_program()).env("VERSION", VERSION);
    command.env("TOOLS", root().join("target/tools")).env("OUTPUT", &file);
    command.env("CARGO_TARGET_DIR", super::target().join("package")).env("SOURCE_DATE_EPOCH", epoch.to_string());
    let quick = [("OPT_LEVEL", "1"), ("LTO", "off"), ("DEBUG", "0"), ("CODEGEN_UNITS", "256")];
    command.envs(quick.map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)));
    Ok((tally.run("Debian package", &mut command) == Verdict::Passed).then_some(file))
}
