//! Provides the support code of the life cycle tests: isolation, three nodes with two networks, and a single daemon.
//!
//! A test runs in a child process with its own network, process and mount namespaces. When the child ends, the kernel
//! kills all processes of these namespaces and removes their links: nothing is left to clean up.

mod test_cluster;
mod daemon;
mod network;
mod notified;
mod store;

pub(crate) use blockhaul_testkit::full_pipe;
pub(crate) use daemon::{Daemon, blockhaul, catches, taskd};
pub(crate) use network::Network;
pub(crate) use notified::Notified;
pub(crate) use test_cluster::{SOON, TestCluster, VIP, wait_until};

use blockhaul_testkit::{Need, need};
use nix::sys::resource::{Resource, setrlimit};
use std::path::Path;
use std::process::Command;

/// Environment variable that is set in the isolated child process.
const INSIDE: &str = "LIFECYCLE_TEST_INSIDE";

/// Runs a test's body in a child process with namespaces of its own. `zookeeper` among the `needs` is the Debian
/// package; all others are programs.
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
    // Built before: the child has no network.
    let _ = taskd();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]);
    command.arg(std::env::current_exe().expect("this test runs"));
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(INSIDE, "1");
    let output = command.output().expect("unshare is installed");
    let log = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    println!("{}", log.concat());
    assert!(output.status.success(), "{name} has failed: see above");
    assert!(log[0].contains("1 passed"), "{name} has not run: it has another name");
}

/// Lets a process that crashes write its core file where it runs.
pub(crate) fn permit_cores() {
    // If the limit cannot be raised, a crash still shows in the exit status.
    let _ = setrlimit(Resource::RLIMIT_CORE, u64::MAX, u64::MAX);
}

/// Checks that no process that ran in `folder` has left a core file.
pub(crate) fn assert_no_core(folder: &Path) {
    let names =
        std::fs::read_dir(folder).expect("it can be read").map(|entry| entry.expect("it can be read").file_name());
    let cores: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("core")).collect();
    assert!(cores.is_empty(), "a process has crashed: {cores:?}");
}

/// Runs a program that must succeed; returns its stdout.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("run {program}: {error}"));
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {log}{complaint}", args.join(" "));
    log
}
