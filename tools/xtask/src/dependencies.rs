//! Checks the dependencies with cargo-deny: licences, sources, bans, and known vulnerabilities. The rules are in
//! `deny.toml`.
//!
//! cargo-deny is built below the target folder unless it is installed. The advisory database is on GitHub: where that cannot
//! be reached, the step says so and checks the rest.

use crate::step::{Step, cargo, root};
use std::process::Command;

/// Version that is built: rules and their defaults change between versions.
const VERSION: &str = "0.20.2";

/// Checks with `$DENY`, built into `$TOOLS` if it is missing. Not optimised: it runs for two seconds.
const SCRIPT: &str = r#"
DENY="$(command -v cargo-deny || echo "$TOOLS/bin/cargo-deny")"
if ! [ -x "$DENY" ]; then
    CARGO_TARGET_DIR="$TOOLS/build" "$CARGO" install --quiet --locked --no-default-features --root "$TOOLS" \
        "cargo-deny@$VERSION" || exit
    rm -rf "$TOOLS/build"
fi
CHECKS="licenses bans sources"
if "$DENY" fetch db > /dev/null 2>&1; then
    CHECKS="advisories $CHECKS"
else
    echo "== skipped: advisories: the database of RustSec cannot be fetched from github.com"
fi
exec "$DENY" --locked check $CHECKS
"#;

/// Returns the step that checks the dependencies.
pub(crate) fn step() -> Step {
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT]).current_dir(root());
    let program = cargo(&[]).get_program().to_owned();
    let quick = [("OPT_LEVEL", "0"), ("LTO", "off"), ("DEBUG", "0"), ("CODEGEN_UNITS", "256")];
    command.envs(quick.map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)));
    command.env("CARGO", program).env("VERSION", VERSION).env("TOOLS", root().join("target/tools"));
    Step { title: String::from("dependencies"), command }
}
