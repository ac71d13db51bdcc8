//! Tests signals at any moment: the process exits with 0, in time, and without a core file.

use crate::support::{Daemon, assert_no_core, catches, full_pipe, permit_cores, run, run_isolated, wait_until};
use nix::sys::signal::Signal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Number of processes that are signalled.
const PROCESSES: u64 = 200;
/// Number of processes at once.
const AT_ONCE: usize = 6;
/// A little less than a process takes to start.
const START: Duration = Duration::from_millis(500);
/// Longest time of a stop.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Random numbers from a seed, so that the moments are the same in each run.
struct SeededRandom(u64);

impl SeededRandom {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Includes second signals, and signals with other meanings, at any moment before and after.
#[test]
fn t_zbs_12_a_signal_at_any_moment_ends_taskd_with_exit_code_0() {
    run_isolated("signals::t_zbs_12_a_signal_at_any_moment_ends_taskd_with_exit_code_0", &[], || {
        permit_cores();
        run("ip", &["link", "set", "lo", "up"]);
        let next = Mutex::new(0..PROCESSES);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some(seed) = { next.lock().unwrap().next() } {
                        signal_one_process(seed);
                    }
                });
            }
        });
    });
}

fn signal_one_process(seed: u64) {
    let mut random = SeededRandom(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::alone(dir.path(), &["--metrics", "127.0.0.1:0"]);
    let others = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGXFSZ];
    while !catches(daemon.pid(), Signal::SIGTERM) || !catches(daemon.pid(), Signal::SIGQUIT) {
        assert!(daemon.is_running(), "{seed}: {}", daemon.log());
        std::thread::yield_now();
    }
    let wait = Duration::from_micros(random.below(u64::try_from(START.as_micros()).unwrap()));
    std::thread::sleep(wait / 2);
    if random.below(2) == 0 {
        daemon.signal(others[usize::try_from(random.below(4)).unwrap()]);
    }
    std::thread::sleep(wait / 2);
    let asked = Instant::now();
    daemon.signal(if random.below(2) == 0 { Signal::SIGTERM } else { Signal::SIGINT });
    for _ in 0..random.below(3) {
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        let signal = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]
            [usize::try_from(random.below(4)).unwrap()];
        daemon.signal(signal);
    }
    let code = daemon.ended();
    assert!(
        code == Some(0) && asked.elapsed() <= STOP_MAX,
        "{seed}: {code:?} after {:?}: {}",
        asked.elapsed(),
        daemon.log()
    );
    assert_no_core(dir.path());
}

/// An invalid file changes nothing on SIGHUP.
#[test]
fn sighup_reloads_limits_and_log_level_and_sigquit_logs_the_state() {
    run_isolated("signals::sighup_reloads_limits_and_log_level_and_sigquit_logs_the_state", &[], || {
        run("ip", &["link", "set", "lo", "up"]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("taskd.toml");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("slots = 3\nlog = \"info\"\n");
        let mut daemon = Daemon::alone(dir.path(), &["--config", file.to_str().unwrap()]);
        daemon.wait_for_log("all tasks read");
        daemon.signal(Signal::SIGQUIT);
        daemon.wait_for_log("\"slots\":3");
        for part in ["\"role\":\"leader\"", "\"registered\":true", "\"data_channel\":null", "\"stop\":\"no\""] {
            assert!(daemon.log().contains(part), "{part}: {}", daemon.log());
        }
        write("slots = 7\nlog = \"debug\"\n");
        daemon.signal(Signal::SIGHUP);
        daemon.wait_for_log("slots changed");
        daemon.wait_for_log("limits and log level reloaded");
        write("slots = 0\n");
        daemon.signal(Signal::SIGHUP);
        daemon.wait_for_log("nothing changed");
        daemon.signal(Signal::SIGUSR1);
        daemon.wait_for_log("\"slots\":7");
        assert!(daemon.log().contains("DEBUG"), "{}", daemon.log());
        assert_eq!(daemon.stop(), Some(0));
    });
}

/// The log goes to a full pipe that is not read.
#[test]
fn a_log_without_a_reader_delays_no_stop() {
    run_isolated("signals::a_log_without_a_reader_delays_no_stop", &[], || {
        run("ip", &["link", "set", "lo", "up"]);
        let dir = tempfile::tempdir().unwrap();
        let (_reader, writer) = full_pipe();
        let mut daemon = Daemon::alone_logging_to(dir.path(), writer);
        wait_until("the log is blocked", || has_thread(daemon.pid(), "output"));
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.ended(), Some(0));
    });
}

fn has_thread(process: nix::unistd::Pid, name: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok())
        .any(|comm| comm.trim() == name)
}
