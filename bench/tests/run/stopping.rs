//! Tests that an interrupted run leaves no devices, mounts or servers, and no files unless it was killed.

use crate::support::TestDir;
use blockhaul_testkit::{Need, need};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No step here needs a tenth of this.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A run that would go on for long, and what it holds of this machine.
struct Running<'a> {
    dir: &'a TestDir,
    child: Child,
}

impl<'a> Running<'a> {
    fn start(dir: &'a TestDir, scenario: &str) -> Self {
        let mut command = dir.command(&["--trials", "1000", "--scenario", scenario]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it was just built");
        Self { dir, child }
    }

    /// Waits until trials run: everything that the scenario needs is there then.
    fn wait_for_a_trial(&self) {
        // The engine's process names its volumes on its command line.
        wait_until("no trial begins", || self.processes().iter().any(|line| line.contains("engine-process")));
    }

    /// The command lines of others that name our folder.
    fn processes(&self) -> Vec<String> {
        let ours = self.dir.volumes().display().to_string();
        let own = [std::process::id(), self.child.id()];
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("this is Linux").flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if !own.contains(&id) && line.contains(&ours) {
                found.push(line);
            }
        }
        found
    }

    /// The files of ours that loop devices stand on.
    fn loop_devices(&self) -> Vec<String> {
        let ours = self.dir.volumes().display().to_string();
        let devices = fs::read_dir("/sys/block").expect("this is Linux").flatten();
        let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        files.filter(|file| file.contains(&ours)).collect()
    }

    fn mounts(&self) -> usize {
        let ours = self.dir.volumes().display().to_string();
        let table = fs::read("/proc/mounts").expect("this is Linux");
        String::from_utf8_lossy(&table).matches(&ours).count()
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).expect("the process was not waited for");
        let mut status = None;
        wait_until("it does not end", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(otherwise: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < until, "{otherwise}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn stop_politely(scenario: &str, signal: Signal, needs_a_device: bool) {
    let dir = TestDir::new();
    let mut running = Running::start(&dir, scenario);
    running.wait_for_a_trial();
    assert!(!needs_a_device || !running.loop_devices().is_empty());
    let status = running.end(signal);
    assert_eq!(status.code(), Some(130));
    assert_eq!(running.processes(), [""; 0]);
    // The kernel releases a device some time after its last user.
    wait_until("devices are left", || running.loop_devices().is_empty());
    assert_eq!(running.mounts(), 0);
    assert!(fs::read_dir(dir.volumes()).unwrap().next().is_none(), "files are left");
    let results = dir.results();
    assert_eq!(results["run"]["complete"], false);
    assert_eq!(results["scenarios"][0]["name"], scenario);
}

#[test]
fn ctrl_c_leaves_no_servers_and_no_files() {
    stop_politely("nbd-tcp-in", Signal::SIGINT, false);
}

#[test]
fn ctrl_c_leaves_no_loop_devices() {
    need!("ctrl_c_leaves_no_loop_devices", &[Need::Root]);
    stop_politely("loop-devices", Signal::SIGINT, true);
}

#[test]
fn sigterm_leaves_no_mounts() {
    need!("sigterm_leaves_no_mounts", &[Need::Root]);
    stop_politely("reflink", Signal::SIGTERM, true);
}

/// After SIGKILL no process removes the files; the kernel removes everything else.
#[test]
fn a_run_that_is_killed_leaves_no_servers_devices_or_mounts() {
    need!("a_run_that_is_killed_leaves_no_servers_devices_or_mounts", &[Need::Root]);
    for scenario in ["nbd-tcp-in", "reflink"] {
        let dir = TestDir::new();
        let mut running = Running::start(&dir, scenario);
        running.wait_for_a_trial();
        running.end(Signal::SIGKILL);
        // Rivals on their way come to their own end; the engine's process and servers are taken along.
        let is_ours = |line: &String| line.contains("nbdkit") || line.contains("engine-process");
        wait_until("processes are left", || !running.processes().iter().any(is_ours));
        wait_until("devices are left", || running.loop_devices().is_empty());
        assert_eq!(running.mounts(), 0);
    }
}
