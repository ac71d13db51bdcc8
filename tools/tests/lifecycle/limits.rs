//! Tests process limits of `taskd`: if a limit is too low to start, the process names the limit and exits.

use crate::support::{Daemon, run, run_isolated, taskd};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn with_few_threads_taskd_serves_or_exits_and_names_the_limit() {
    run_isolated("limits::with_few_threads_taskd_serves_or_exits_and_names_the_limit", &["setpriv", "prlimit"], || {
        run("ip", &["link", "set", "lo", "up"]);
        let dir = tempfile::tempdir().unwrap();
        // The user that it runs as may not read the build directory.
        let program = dir.path().join("taskd");
        std::fs::copy(taskd(), &program).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        for threads in 1..64 {
            let log = dir.path().join(format!("said-{threads}"));
            let mut command = Command::new("setpriv");
            // No other process runs as that user.
            command.args(["--reuid", "61235", "--regid", "61235", "--clear-groups", "prlimit"]);
            command.arg(format!("--nproc={threads}")).arg(&program);
            command.args([
                "--standalone",
                "--node-id",
                "n1",
                "--cores",
                "1",
                "--memory",
                "8MiB",
                "--listen",
                "127.0.0.1:0",
            ]);
            command.arg("--state-dir").arg(dir.path().join(format!("state-{threads}")));
            let mut daemon = Daemon::start(command, &log);
            while daemon.is_running() && !daemon.log().contains("all tasks read") {
                std::thread::yield_now();
            }
            let serves = daemon.is_running();
            let code = if serves { daemon.stop() } else { daemon.ended() };
            let log = daemon.log();
            assert!(!log.contains("panicked"), "{threads}: {log}");
            if serves {
                assert!(code == Some(0) && threads > 1, "{threads}: {log}");
                return;
            }
            assert!(code == Some(1) && log.contains("EOverloaded"), "{threads}: {log}");
            assert!(log.contains(&format!("may have {threads} threads (ulimit -u)")), "{threads}: {log}");
        }
        panic!("64 threads are enough");
    });
}
