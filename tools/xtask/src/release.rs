//! Builds the programs for release: stripped, with the debug information of each in a file beside it.

use crate::Refused;
use crate::step::{Tally, Verdict, root};
use std::path::PathBuf;
use std::process::Command;

/// Packages and their programs.
pub(crate) const PROGRAMS: [(&str, &str); 3] =
    [("blockhaul-tools", "blockhaul"), ("blockhaul-control", "taskd"), ("blockhaul-bench", "copy-bench")];

/// Builds each program into `target/dist`, as `NAME` and `NAME.debug`. Debuggers and `addr2line` find the second file by
/// the link in the first one, as long as both are in one folder.
///
/// # Errors
/// The folder cannot be created.
pub(crate) fn run() -> Result<Verdict, Refused> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let dist = target.join("dist");
    std::fs::create_dir_all(&dist).map_err(|error| format!("create {}: {error}", dist.display()))?;
    let mut tally = Tally::default();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--release", "--locked"]).current_dir(root());
    PROGRAMS.iter().for_each(|(package, program)| _ = build.args(["--package", package, "--bin", program]));
    if tally.run("build", &mut build) == Verdict::Passed {
        for (_, program) in PROGRAMS {
            let (built, debug) = (target.join("release").join(program), format!("{program}.debug"));
            let mut objcopy = |title: &str, arguments: &[&str], from: PathBuf, to: &str| {
                let mut command = Command::new("objcopy");
                command.args(arguments).arg(from).arg(to).current_dir(&dist);
                tally.run(&format!("{program}: {title}"), &mut command);
            };
            objcopy("debug information", &["--only-keep-debug", "--compress-debug-sections"], built.clone(), &debug);
            let link = format!("--add-gnu-debuglink={debug}");
            objcopy("program", &["--strip-all", &link], built, program);
        }
    }
    Ok(tally.conclude())
}
