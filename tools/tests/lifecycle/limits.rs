//! Tests process limits of `taskd`: one that is too low to start is named, and the process ends.

use crate::support::{Daemon, apart, run, taskd};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn with_few_threads_taskd_serves_or_exits_and_names_the_limit() {
    apart("limits::with_few_threads_taskd_serves_or_exits_and_names_the_limit", &["setpriv", "prlimit"], || {
        run("ip", &["link", "set", "lo", "up"]);
        let room = tempfile::tempdir().unwrap();
        // The user that it runs as may not read the folder that it was built in.
        let program = room.path().join("taskd");
        std::fs::copy(taskd(), &program).unwrap();
        std::fs::set_permissions(room.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        for threads in 1..64 {
            let said = room.path().join(format!("said-{threads}"));
            let mut command = Command::new("setpriv");
            // Nobody else is that user.
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
            command.arg("--state-dir").arg(room.path().join(format!("state-{threads}")));
            let mut daemon = Daemon::start(command, &said);
            while daemon.is_running() && !daemon.said().contains("all tasks read") {
                std::thread::yield_now();
            }
            let serves = daemon.is_running();
            let code = if serves { daemon.stop() } else { daemon.ended() };
            let said = daemon.said();
            assert!(!said.contains("panicked"), "{threads}: {said}");
            if serves {
                assert!(code == Some(0) && threads > 1, "{threads}: {said}");
                return;
            }
            assert!(code == Some(1) && said.contains("EOverloaded"), "{threads}: {said}");
            assert!(said.contains(&format!("may have {threads} threads (ulimit -u)")), "{threads}: {said}");
        }
        panic!("64 threads are enough");
    });
}
