//! Builds the programs so that nothing of the machine, the folder or the hour is left in them.

use super::target;
use crate::Refused;
use crate::release::PROGRAMS;
use crate::step::{Tally, Verdict, cargo, root};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How a program finds the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linking {
    /// Where it runs, from the system.
    Dynamic,
    /// It brings its own.
    Static,
}

/// Builds all programs, with debug information; returns their folder.
pub(super) fn programs(tally: &mut Tally, linking: Linking, epoch: u64) -> Result<Option<PathBuf>, Refused> {
    let folder = target().join("package");
    let mut build = cargo(&["build", "--release", "--locked"]);
    PROGRAMS.iter().for_each(|(package, program)| _ = build.args(["--package", package, "--bin", program]));
    let triple = host_triple()?;
    let mut flags = remaps(&folder)?;
    let built = match linking {
        Linking::Dynamic => folder.join("release"),
        Linking::Static => {
            // Only with a target of its own do the flags spare macros and build scripts, which cannot be static.
            build.args(["--target", &triple]);
            flags.push(String::from("-Ctarget-feature=+crt-static"));
            folder.join(&triple).join("release")
        }
    };
    let c_flags: Vec<String> = remaps(&folder)?.iter().map(|flag| flag.replace("--remap", "-ffile")).collect();
    build
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CFLAGS", c_flags.join(" ").replace("path-prefix", "prefix-map"));
    build.env("CARGO_TARGET_DIR", &folder).env("CARGO_INCREMENTAL", "0").env("SOURCE_DATE_EPOCH", epoch.to_string());
    let verdict = tally.run(&format!("build, {linking:?}").to_lowercase(), &mut build);
    Ok((verdict == Verdict::Passed).then_some(built))
}

/// Returns flags that replace the paths of this machine: of the sources, of the dependencies, and of what is built.
fn remaps(target: &Path) -> Result<Vec<String>, Refused> {
    let home = |name: &str| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(name));
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| home(".cargo"));
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let mut places = vec![(root().to_owned(), "/usr/src/blockhaul")];
    places.extend(cargo_home.map(|folder| (folder, "/usr/src/cargo")));
    places.push((PathBuf::from(sysroot), "/usr/src/rust"));
    places.push((target.to_owned(), "/usr/src/target"));
    Ok(places.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect())
}

/// Returns the time of the last commit, in seconds since 1970, or `$SOURCE_DATE_EPOCH`.
pub(super) fn commit_time() -> Result<u64, Refused> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(given) => given,
        Err(_) => output(Command::new("git").args(["log", "-1", "--format=%ct"]))?,
    };
    text.parse().map_err(|_| format!("set SOURCE_DATE_EPOCH to seconds since 1970, not '{text}'"))
}

/// Returns the triple of this host, such as `x86_64-unknown-linux-gnu`.
pub(super) fn host_triple() -> Result<String, Refused> {
    let about = output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| String::from("rustc -vV names no host"))
}

/// Returns what a program prints, without the line's end.
pub(super) fn output(command: &mut Command) -> Result<String, Refused> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.current_dir(root()).output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_this_machine_are_replaced() {
        let flags = remaps(Path::new("/somewhere/target")).unwrap();
        assert!(flags.contains(&format!("--remap-path-prefix={}=/usr/src/blockhaul", root().display())), "{flags:?}");
        assert!(flags.contains(&String::from("--remap-path-prefix=/somewhere/target=/usr/src/target")), "{flags:?}");
    }

    #[test]
    fn the_triple_is_of_this_architecture() {
        assert!(host_triple().unwrap().starts_with(std::env::consts::ARCH));
    }
}
