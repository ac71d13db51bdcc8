//! Tests logs of attempts: what is kept, what is dropped and counted, and that nothing waits for a folder that fails.

use super::folder::LogFolder;
use super::log_file::{HEAD_BYTES_MAX, TAIL_BYTES_MAX};
use super::*;
use crate::model::TaskId;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use tracing::{Dispatch, field};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;

/// Longest wait for the writer.
const PATIENCE: Duration = Duration::from_secs(60);

fn name(task: &str, assigned_ms: u64) -> LogName {
    LogName { assigned_ms, task: TaskId::new(task).unwrap() }
}

/// A folder for logs, without a writer's thread.
struct Folder {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    logs: LogFolder,
}

impl Folder {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(dir: tempfile::TempDir) -> Self {
        let shared = AttemptLogs::default().0;
        let logs = LogFolder::open(&dir.path().join(FOLDER), &shared).unwrap();
        Self { dir, shared, logs }
    }

    /// The next process opens the folder.
    fn reopened(self) -> Self {
        Self::at(self.dir)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(FOLDER)
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> = entries.collect();
        files.sort();
        files
    }

    fn part(&self, name: &LogName, offset: u64) -> LogPart {
        self.shared.read(name, offset).unwrap()
    }

    /// Returns all parts of a log.
    fn parts(&self, name: &LogName) -> Vec<LogPart> {
        let (mut parts, mut offset) = (Vec::new(), 0);
        loop {
            let part = self.part(name, offset);
            if part.text.is_empty() {
                return parts;
            }
            offset = part.offset + part.text.len() as u64;
            parts.push(part);
        }
    }

    fn text(&self, name: &LogName) -> String {
        text_of_parts(&self.parts(name))
    }
}

fn text_of_parts(parts: &[LogPart]) -> String {
    parts.iter().map(|part| std::str::from_utf8(&part.text).unwrap()).collect()
}

#[test]
fn beginning_and_end_of_a_long_log_are_kept_and_what_is_between_is_counted() {
    let (mut folder, log) = (Folder::new(), name("t", 5));
    let line = |number: usize| format!("{number:06} {}\n", "x".repeat(number % 300));
    let lines: Vec<String> = (0..10_000).map(line).collect();
    let whole = lines.concat();
    let mut written = 0;
    for line in &lines {
        folder.logs.append(&log, line.as_bytes(), 0);
        written += line.len() as u64;
        assert!(folder.logs.total_bytes() <= HEAD_BYTES_MAX + TAIL_BYTES_MAX + (128 << 10), "{written}");
    }
    let parts = folder.parts(&log);
    let mut dropped = Vec::new();
    let mut end = 0;
    for part in &parts {
        dropped.extend((part.offset > end).then(|| part.offset - end));
        let begin = usize::try_from(part.offset).unwrap();
        assert_eq!(part.text, whole.as_bytes()[begin..begin + part.text.len()]);
        assert!(part.text.ends_with(b"\n") && part.text.len() <= PART_BYTES_MAX);
        end = part.offset + part.text.len() as u64;
    }
    let kept: u64 = parts.iter().map(|part| part.text.len() as u64).sum();
    assert_eq!((end, dropped.len(), kept + dropped[0]), (written, 1, written));
    let head = parts.iter().take_while(|part| part.offset < HEAD_BYTES_MAX).map(|part| part.text.len()).sum::<usize>();
    assert!(head as u64 > HEAD_BYTES_MAX - 400, "{head}");
    let tail = kept - head as u64;
    assert!((TAIL_BYTES_MAX - 400..=TAIL_BYTES_MAX).contains(&tail), "{tail}");
}

#[test]
fn a_reader_goes_on_where_it_was() {
    let (mut folder, log) = (Folder::new(), name("t", 5));
    folder.logs.append(&log, b"one\n", 0);
    assert_eq!(folder.part(&log, 0).text, b"one\n");
    assert_eq!(folder.part(&log, 4), LogPart { offset: 4, text: Vec::new(), is_live: false, missing: None });
    folder.logs.append(&log, b"two\n", 0);
    let part = folder.part(&log, 4);
    assert_eq!((part.offset, part.text.as_slice()), (4, &b"two\n"[..]));
    assert_eq!(folder.part(&log, 99).text, b"", "of a log that is longer than this one");
}

#[test]
fn what_a_killed_process_has_written_is_there_for_the_next_one() {
    let (mut folder, log, other) = (Folder::new(), name("t", 5), name("t", 6));
    assert!(folder.shared.index().begin(&log));
    for number in 0..40_000 {
        folder.logs.append(&log, format!("line {number}\n").as_bytes(), 0);
    }
    folder.logs.append(&other, b"of the next attempt\n", 0);
    assert!(folder.part(&log, 0).is_live);
    let (before, total) = (folder.text(&log), folder.logs.total_bytes());
    // It died in the middle: after a new file was made and before the oldest was removed, and in the middle of a line.
    fs::write(log.path(&folder.path(), 70_000), "of the middle\n").unwrap();
    fs::write(name("empty", 7).path(&folder.path(), 0), "").unwrap();
    fs::write(folder.path().join("foreign"), "not a log").unwrap();
    fs::write(name("torn", 8).path(&folder.path(), 0), "whole\nto").unwrap();
    let folder = folder.reopened();
    assert_eq!(folder.text(&log), before);
    assert_eq!((folder.text(&other).as_str(), folder.part(&log, 0).is_live), ("of the next attempt\n", false));
    let logs = folder.files().into_iter().filter(|file| file != "foreign");
    let on_disk = logs.map(|file| fs::metadata(folder.path().join(file)).unwrap().len().div_ceil(4096) * 4096);
    assert_eq!(folder.logs.total_bytes(), on_disk.sum::<u64>());
    assert!(folder.logs.total_bytes() <= total + 4096, "with the torn one");
    let torn = folder.parts(&name("torn", 8));
    assert_eq!(text_of_parts(&torn), "whole\nto");
    let files = folder.files();
    assert!(
        files.contains(&String::from("foreign")) && !files.iter().any(|file| file.starts_with("empty")),
        "{files:?}"
    );
    assert!(!files.contains(&String::from("t@5@70000")), "{files:?}");
}

#[test]
fn the_oldest_logs_make_room_but_not_those_of_attempts_that_are_not_over() {
    let folder = Folder::new();
    let Folder { dir, shared, logs } = folder;
    let mut folder = Folder { dir, shared, logs: logs.with_total_bytes_max(3 * 4096) };
    let [first, second, third, fourth, fifth] = [1, 2, 3, 4, 5].map(|assigned_ms| name("t", assigned_ms));
    assert!(folder.shared.index().begin(&first));
    for log in [&first, &third, &second, &fourth] {
        folder.logs.append(log, b"line\n", 0);
        if log != &first {
            folder.logs.end(log, 0);
        }
    }
    assert_eq!(folder.files(), ["t@1@0", "t@3@0", "t@4@0"], "the second is the oldest that is over");
    let gone = folder.part(&second, 0);
    assert!(gone.missing.unwrap().contains("oldest"));
    folder.logs.end(&first, 0);
    folder.logs.append(&fifth, b"line\n", 0);
    assert_eq!((folder.files().len(), folder.logs.total_bytes()), (3, 3 * 4096));
    assert_eq!(folder.files(), ["t@3@0", "t@4@0", "t@5@0"]);
    folder.reopened();
}

#[test]
fn lines_that_could_not_be_written_are_counted_when_that_is_over() {
    let (mut folder, log) = (Folder::new(), name("t", 5));
    let obstacle = log.path(&folder.path(), 0);
    fs::create_dir(&obstacle).unwrap();
    assert!(folder.shared.index().begin(&log));
    folder.logs.append(&log, b"one\n", 0);
    folder.logs.append(&log, b"two\n", 3);
    let part = folder.part(&log, 0);
    assert!(part.is_live && part.text.is_empty() && part.missing.unwrap().contains("cannot write to"));
    fs::remove_dir(&obstacle).unwrap();
    folder.logs.append(&log, b"three\n", 0);
    folder.logs.end(&log, 2);
    let text = folder.text(&log);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[1]), (3, "three"), "{text}");
    assert!(lines[0].starts_with("(5 lines are missing here: cannot write to "), "{text}");
    assert_eq!(lines[2], "(2 lines are missing here: the state directory was too slow)");
    // Nothing could ever be written: the reason stays.
    let never = name("never", 6);
    fs::create_dir(never.path(&folder.path(), 0)).unwrap();
    folder.logs.append(&never, b"one\n", 0);
    folder.logs.end(&never, 0);
    assert!(folder.part(&never, 0).missing.unwrap().contains("cannot write to"));
}

/// Logs that a subscriber writes, as in `taskd`.
struct Logs {
    logs: AttemptLogs,
    subscriber: Dispatch,
}

impl Logs {
    fn new() -> Self {
        let logs = AttemptLogs::default();
        let subscriber = Dispatch::new(registry().with(logs.layer()));
        Self { logs, subscriber }
    }

    /// Waits until the log of an attempt that is over has been written.
    fn finished(&self, name: &LogName) -> Vec<LogPart> {
        let until = Instant::now() + PATIENCE;
        let (mut parts, mut offset) = (Vec::new(), 0);
        loop {
            assert!(Instant::now() < until, "{name:?}: {parts:?}");
            match self.logs.0.read(name, offset) {
                Ok(part) if !part.text.is_empty() => {
                    offset = part.offset + part.text.len() as u64;
                    parts.push(part);
                }
                Ok(part) if !part.is_live => {
                    parts.push(part);
                    return parts;
                }
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Runs an attempt that logs `lines` lines.
    fn attempt(&self, task: &str, assigned_ms: u64, lines: usize) {
        tracing::dispatcher::with_default(&self.subscriber, || {
            let span = tracing::error_span!(parent: None, "attempt", %task, assigned_ms = field::Empty);
            let _in = span.enter();
            tracing::info!("before the record was read");
            span.record(ASSIGNED_FIELD, assigned_ms);
            for number in 0..lines {
                tracing::info_span!("a part of it").in_scope(|| tracing::info!(number, "of {task}"));
            }
        });
    }
}

#[test]
fn two_attempts_at_once_have_a_log_each() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), Logs::new());
    logs.logs.open(dir.path());
    std::thread::scope(|scope| {
        scope.spawn(|| logs.attempt("a", 1, 500));
        scope.spawn(|| logs.attempt("b", 2, 500));
    });
    tracing::dispatcher::with_default(&logs.subscriber, || {
        tracing::error!("of no attempt");
        // Nothing of a call that was repeated is left.
        drop(tracing::error_span!(parent: None, "attempt", task = %"a", assigned_ms = field::Empty));
    });
    for (task, assigned_ms) in [("a", 1), ("b", 2)] {
        let text = text_of_parts(&logs.finished(&name(task, assigned_ms)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 501, "{text}");
        assert!(lines[0].ends_with(" INFO before the record was read"), "{text}");
        for (number, line) in lines[1..].iter().enumerate() {
            assert!(line.ends_with(&format!(" INFO of {task} number={number}")), "{line}");
        }
    }
}

#[test]
fn what_comes_from_outside_is_escaped_and_the_output_of_a_hook_has_its_lines() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), Logs::new());
    logs.logs.open(dir.path());
    tracing::dispatcher::with_default(&logs.subscriber, || {
        let span = tracing::error_span!(parent: None, "attempt", task = %"t", assigned_ms = field::Empty);
        span.record(ASSIGNED_FIELD, 9_u64);
        let _in = span.enter();
        tracing::warn!(why = %"gone\u{1b}[2J\nforged", "lost\nhere");
        tracing::info!(hook = "h", output = r"one\ntwo\x1b\n", dropped_bytes = 0_u64, output_end = "", "hook ended");
        tracing::info!(output = r"first\n", dropped_bytes = 77_u64, output_end = r"last", "hook ended");
        tracing::info!(output = r"\\".repeat(LINE_BYTES_MAX), "hook ended");
    });
    let text = text_of_parts(&logs.finished(&name("t", 9)));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with(r" WARN lost\nhere why=gone\x1b[2J\nforged"), "{text}");
    assert!(lines[1].ends_with(r#" INFO hook ended hook="h""#), "{text}");
    assert_eq!(lines[2..4], ["  | one", r"  | two\x1b"]);
    assert_eq!(lines[5..8], ["  | first", "  (77 bytes of the output were dropped here)", "  | last"]);
    assert!(lines[9].ends_with(" ... (cut)") && lines[9].len() <= LINE_BYTES_MAX, "{}", lines[9].len());
}

#[test]
fn a_folder_that_cannot_be_used_is_named_and_used_once_it_can() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), Logs::new());
    let obstacle = dir.path().join(FOLDER);
    fs::write(&obstacle, "no folder").unwrap();
    logs.logs.open(dir.path());
    logs.attempt("a", 1, 3);
    let parts = logs.finished(&name("a", 1));
    let why = parts[0].missing.clone().unwrap();
    assert!(why.contains("cannot create") && why.contains(FOLDER), "{why}");
    fs::remove_file(&obstacle).unwrap();
    logs.attempt("b", 2, 3);
    logs.finished(&name("b", 2));
    logs.attempt("c", 3, 3);
    assert_eq!(text_of_parts(&logs.finished(&name("c", 3))).lines().count(), 4);
    assert!(logs.finished(&name("b", 2))[0].missing.clone().unwrap().contains("cannot create"));
}

/// The file of the log is a FIFO without a reader, so that the writer hangs as on a disk that does not answer.
#[test]
fn an_attempt_does_not_wait_for_a_disk_that_does_not_answer() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), Logs::new());
    let folder = dir.path().join(FOLDER);
    fs::create_dir(&folder).unwrap();
    let fifo = name("hangs", 1).path(&folder, 0);
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    logs.logs.open(dir.path());
    logs.attempt("hangs", 1, 50_000);
    logs.attempt("other", 2, 3);
    let queued = logs.logs.0.queued_bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..=QUEUE_BYTES_MAX).contains(&queued), "{queued}");
    let part = loop {
        // Until the folder has been listed.
        match logs.logs.0.read(&name("hangs", 1), 0) {
            Ok(part) => break part,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(part.is_live && part.text.is_empty(), "{part:?}");
    // It answers again: the lines of the FIFO fail, and others are written.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    logs.attempt("later", 3, 0);
    let hung = logs.finished(&name("hangs", 1));
    assert!(hung[0].missing.clone().unwrap().contains("cannot write to"), "{hung:?}");
    let text = text_of_parts(&logs.finished(&name("other", 2))) + &text_of_parts(&logs.finished(&name("later", 3)));
    drop(reader);
    assert!(text.is_empty() || text.contains("missing here"), "their lines found no room: {text}");
    logs.attempt("last", 4, 3);
    assert_eq!(text_of_parts(&logs.finished(&name("last", 4))).lines().count(), 4);
}

#[tokio::test]
async fn a_part_is_read_for_the_leader() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), Logs::new());
    let query = LogQuery { task: TaskId::new("t").unwrap(), assigned_ms: 1, offset: 0 };
    let unknown = logs.logs.read(query.clone()).await.unwrap_err();
    assert_eq!((unknown.code, unknown.retryable), (Code::Overloaded, true));
    logs.logs.open(dir.path());
    logs.attempt("t", 1, 1);
    logs.finished(&name("t", 1));
    let part = logs.logs.read(query.clone()).await.unwrap();
    assert!(part.offset == 0 && part.text.ends_with(b" INFO of t number=0\n"), "{part:?}");
    let places = Arc::clone(&logs.logs.0.readers).acquire_many_owned(4).await.unwrap();
    assert_eq!(logs.logs.read(query).await.unwrap_err().code, Code::Overloaded);
    drop(places);
}
