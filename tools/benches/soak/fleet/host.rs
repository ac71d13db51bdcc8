//! Runs runners in a process of their own: this program, started again.
//!
//! The process stops its runners when its standard input ends, so it never outlives the program that started it.

use super::light_runners::{Crew, launch};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// First argument of such a process.
pub(crate) const FLAG: &str = "--fleet-host";
/// Longest time for a stop: that of `taskd`, with the time that so many of them take on a small machine.
const STOP_MAX: Duration = Duration::from_secs(120);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A process with runners. Killed on drop.
#[derive(Debug)]
pub(crate) struct Host {
    crew: Crew,
    child: Option<(Child, ChildStdin)>,
}

impl Host {
    /// Starts a process; returns when its runners listen.
    pub(crate) fn start(crew: Crew) -> Self {
        let mut host = Self { crew, child: None };
        host.restart();
        host
    }

    /// Starts the process after a stop, with the same runners.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let Crew { zookeeper, folder, first, count, slots } = &self.crew;
        let program = std::env::current_exe().expect("this program runs");
        let mut command = Command::new(program);
        command.args([FLAG, zookeeper]).arg(folder).args([first.to_string(), count.to_string(), slots.to_string()]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program can be started again");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut line = String::new();
        let read = BufReader::new(stdout.expect("it was asked for")).read_line(&mut line);
        assert!(read.is_ok() && line.trim() == "ready", "{} runners do not start: {line:?}", self.crew.count);
        self.child = Some((child, stdin.expect("it was asked for")));
    }

    /// Stops the runners as `taskd` stops, and waits for the end of the process.
    pub(crate) fn stop(&mut self) {
        let Some((mut child, stdin)) = self.child.take() else { return };
        drop(stdin);
        let deadline = Instant::now() + STOP_MAX;
        while child.try_wait().expect("it is our child").is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} runners have not stopped in {} s", self.crew.count, STOP_MAX.as_secs());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the ids of the tasks that its runners have completed, one for each time.
    pub(crate) fn completed(&self) -> Vec<String> {
        let path = self.crew.folder.join(format!("completed{}", self.crew.first));
        std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs the process: `args` are those after [`FLAG`].
pub(crate) fn serve(args: &[String]) -> ExitCode {
    let [zookeeper, folder, numbers @ ..] = args else { return ExitCode::from(2) };
    let numbers: Vec<usize> = numbers.iter().filter_map(|number| number.parse().ok()).collect();
    let [first, count, slots] = numbers[..] else { return ExitCode::from(2) };
    let slots = u32::try_from(slots).expect("numbers of slots are small");
    let crew = Crew { zookeeper: zookeeper.clone(), folder: PathBuf::from(folder), first, count, slots };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be made");
    let runners = runtime.block_on(launch(&crew));
    println!("ready");
    // Nothing is written to it: it ends with the request to stop, or with the process that holds the other end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    runtime.block_on(runners.stop());
    ExitCode::SUCCESS
}
