//! Provides what life cycle tests share: an isolated place, three nodes in it with two networks, and a single daemon.
//!
//! A test runs in a child process with its own network, process and mount namespaces. When the child ends, the kernel kills
//! all processes of these namespaces and removes their links: nothing is left to clean up.

#[path = "../../support/taskd.rs"]
mod built;
mod cell;
mod daemon;
mod network;
mod notified;
mod store;

pub(crate) use blockhaul_testkit::full_pipe;
pub(crate) use cell::{Cell, SOON, VIP, wait_until};
pub(crate) use daemon::{Daemon, blockhaul, catches, taskd};
pub(crate) use network::Network;
pub(crate) use notified::Notified;

use blockhaul_testkit::{Need, need};
use nix::sys::resource::{Resource, setrlimit};
use std::path::Path;
use std::process::Command;

/// Set inside of the place.
const INSIDE: &str = "LIFECYCLE_TEST_INSIDE";

/// Runs a test's body in a place of its own. `zookeeper` among the `needs` is its Debian package, all others are programs.
pub(crate) fn run_isolated(name: &str, needs: &[&'static str], body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut all = vec![Need::Root, Need::Program("unshare"), Need::Program("nsenter"), Need::Program("ip")];
    all.extend(needs.iter().map(|need| match *need {
        "zookeeper" => Need::File("/usr/share/java/zookeeper.jar"),
        program => Need::Program(program),
    }));
    need!(name, &all);
    // Built before, not in a place without a network.
    let _ = taskd();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]);
    command.arg(std::env::current_exe().expect("this test runs"));
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(INSIDE, "1");
    let output = command.output().expect("unshare is installed");
    let log = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    println!("{}", log.concat());
    assert!(output.status.success(), "{name} has failed: see above");
    assert!(log[0].contains("1 passed"), "{name} has not run: its name is another one");
}

/// Lets a process that crashes write its core file where it runs.
pub(crate) fn permit_cores() {
    // Where the limit cannot be raised a crash still shows by its exit.
    let _ = setrlimit(Resource::RLIMIT_CORE, u64::MAX, u64::MAX);
}

/// No process that ran there has left a core file.
pub(crate) fn assert_no_core(folder: &Path) {
    let names =
        std::fs::read_dir(folder).expect("it can be read").map(|entry| entry.expect("it can be read").file_name());
    let cores: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("core")).collect();
    assert!(cores.is_empty(), "a process has crashed: {cores:?}");
}

/// Runs a program to its end, which must be a good one.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("run {program}: {error}"));
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {log}{complaint}", args.join(" "));
    log
}
