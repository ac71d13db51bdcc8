//! Sets up folders with hooks, and runs them.

use blockhaul_engine::error::Error;
use blockhaul_hooks::{
    Hook, HookEvent, HookFolder, HookHandle, HookName, HookOrder, HookOutcome, HookReport, HookRequest,
    HookStateFolder, become_subreaper,
};
use blockhaul_testkit::safe_dir::SafeDir;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longest wait for anything; far longer than it takes on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// A grace or timeout that is never waited for in full.
pub(crate) const NEVER: Duration = Duration::from_secs(3600);

/// Folders of one test.
pub(crate) struct Site {
    pub(crate) dir: SafeDir,
}

/// Creates the folders, or skips the test where others may change all places for them.
macro_rules! site {
    ($test:literal) => {
        match $crate::site::Site::new() {
            Some(site) => site,
            None => return blockhaul_testkit::unmet($test, "no folder that only this user can change"),
        }
    };
}
pub(crate) use site;

impl Site {
    pub(crate) fn new() -> Option<Self> {
        SafeDir::new().map(|dir| Self { dir })
    }

    /// Writes a hook: a shell script.
    pub(crate) fn script(&self, name: &str, script: &str) -> PathBuf {
        self.dir.executable(Path::new("hooks").join(name), &format!("#!/bin/sh\n{script}\n"))
    }

    pub(crate) fn folder(&self) -> HookFolder {
        HookFolder::open(self.dir.path("hooks")).expect("the folder is safe")
    }

    pub(crate) fn open(&self, name: &str) -> Result<Hook, Error> {
        self.folder().hook(&HookName::parse(name).expect("it is a name"))
    }

    pub(crate) fn state(&self) -> HookStateFolder {
        HookStateFolder::open(self.dir.path("state")).expect("nobody else uses it")
    }

    /// Returns a request for a task that no other test has: tests of one process have one parent of orphans.
    pub(crate) fn request(&self) -> HookRequest {
        request(&self.dir.path(""))
    }

    pub(crate) fn start(&self, state: &HookStateFolder, name: &str) -> Started {
        self.start_with(state, name, self.request())
    }

    pub(crate) fn start_with(&self, state: &HookStateFolder, name: &str, request: HookRequest) -> Started {
        let (send, events) = channel();
        let hook = self.open(name).expect("it was written by the test");
        let order = HookOrder::try_from(request).expect("it makes sense");
        let subreaper = become_subreaper().expect("the kernel is new enough");
        let on_event = move |event| drop(send.send(event));
        let handle = HookHandle::start(subreaper, hook, order, state, on_event).expect("there are threads");
        Started { handle: Some(handle), events }
    }

    /// Writes and runs a hook to its end.
    pub(crate) fn run(&self, name: &str, script: &str) -> HookReport {
        self.script(name, script);
        self.start(&self.state(), name).finish()
    }

    /// Reads a file that a hook writes into the site, once it holds a line.
    pub(crate) fn line(&self, name: &str) -> String {
        let path = self.dir.path(name);
        let mut line = String::new();
        until(&format!("a line in {name}"), || {
            line = fs::read_to_string(&path).unwrap_or_default();
            line.ends_with('\n')
        });
        line.trim().to_owned()
    }

    /// Reads the number of a process that a hook writes into the site.
    pub(crate) fn pid(&self, name: &str) -> i32 {
        self.line(name).parse().expect("it is a number")
    }

    /// Returns the path of a file of the site, for scripts: the build folder may have blanks in its name.
    pub(crate) fn quoted(&self, name: &str) -> String {
        format!("'{}'", self.dir.path(name).to_str().expect("test folders have plain names"))
    }

    /// Checks that no file of a run is left.
    pub(crate) fn assert_no_state(&self) {
        let left: Vec<_> = fs::read_dir(self.dir.path("state")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Returns a request for the task of the site at `path`.
pub(crate) fn request(path: &Path) -> HookRequest {
    let task = path.file_name().and_then(|name| name.to_str()).expect("the folder has a plain name");
    HookRequest::new(task, "n1", 1, 7)
}

/// A hook that was started.
pub(crate) struct Started {
    pub(crate) handle: Option<HookHandle>,
    pub(crate) events: Receiver<HookEvent>,
}

impl Started {
    pub(crate) fn stop(&self, grace: Duration) {
        self.handle.as_ref().expect("it was not dropped").stop(grace);
    }

    pub(crate) fn next(&self) -> HookEvent {
        self.events.recv_timeout(PATIENCE).expect("the hook ends")
    }

    /// Waits until nothing of the hook is left.
    pub(crate) fn finish(&self) -> HookReport {
        let HookEvent::Ended(report) = self.next() else { panic!("the end is told first") };
        assert_eq!(report.survivors, [] as [i32; 0]);
        assert_eq!(self.next(), HookEvent::Gone);
        assert!(self.events.recv().is_err(), "nothing follows");
        report
    }
}

/// Waits until `holds` returns true.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tells whether a process does anything still, or could.
pub(crate) fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Tells whether there is a process of this number, also one that has ended and was not reaped.
pub(crate) fn is_there(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

pub(crate) fn failure(outcome: &HookOutcome) -> &Error {
    match outcome {
        HookOutcome::Failed(error) | HookOutcome::TimedOut(error) => error,
        other => panic!("{other:?} is no failure"),
    }
}
