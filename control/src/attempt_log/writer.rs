//! Writes the lines of all attempts on one thread, in their order. If the state directory does not answer, only this thread
//! waits for it.

use super::folder::LogFolder;
use super::name::LogName;
use super::{QUEUE_BYTES_MAX, Shared};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, channel};

/// What an entry of the queue costs besides its text.
const ENTRY_BYTES: usize = 128;

/// Entry of the writer's queue.
#[derive(Debug)]
pub(super) enum Message {
    /// A line of an attempt, before which this many lines found no room.
    Line { name: LogName, text: Vec<u8>, unqueued_lines: u64 },
    /// An attempt is over. Always finds room: there are never more than attempts.
    End { name: LogName, unqueued_lines: u64 },
}

/// Starts the writer, once.
pub(super) fn start(shared: &Arc<Shared>, folder: PathBuf) {
    let (sender, messages) = channel();
    if shared.writer.set(sender).is_err() {
        return;
    }
    let of_thread = Arc::clone(shared);
    let write = move || run(&of_thread, &folder, &messages);
    if let Err(error) = std::thread::Builder::new().name(String::from("attempt logs")).spawn(write) {
        tracing::warn!(%error, "cannot start a thread: no logs of attempts are kept");
        shared.index().unusable(format!("cannot start a thread to write logs: {error}"));
    }
}

fn run(shared: &Arc<Shared>, path: &std::path::Path, messages: &Receiver<Message>) {
    let open = || {
        LogFolder::open(path, shared).inspect_err(|why| {
            tracing::warn!(why, "no logs of attempts are kept");
            shared.index().unusable(why.clone());
        })
    };
    let mut folder = open();
    // Ends with the process: the sender is never dropped before.
    while let Ok(message) = messages.recv() {
        match message {
            Message::Line { name, text, unqueued_lines } => {
                shared.queued_bytes.fetch_sub(text.len() + ENTRY_BYTES, Relaxed);
                match &mut folder {
                    Ok(folder) => folder.append(&name, &text, unqueued_lines),
                    Err(why) => shared.index().failed(&name, why.clone()),
                }
            }
            Message::End { name, unqueued_lines } => match &mut folder {
                Ok(folder) => folder.end(&name, unqueued_lines),
                Err(_) => {
                    shared.index().end(&name);
                    // The administrator may have repaired it.
                    folder = open();
                }
            },
        }
    }
}

impl Shared {
    /// Queues a line; returns false if there is no room for it.
    pub(super) fn send_line(&self, name: &LogName, text: Vec<u8>, unqueued_lines: u64) -> bool {
        let Some(writer) = self.writer.get() else { return false };
        let bytes = text.len() + ENTRY_BYTES;
        if self.queued_bytes.fetch_add(bytes, Relaxed) + bytes > QUEUE_BYTES_MAX {
            self.queued_bytes.fetch_sub(bytes, Relaxed);
            return false;
        }
        let sent = writer.send(Message::Line { name: name.clone(), text, unqueued_lines }).is_ok();
        if !sent {
            self.queued_bytes.fetch_sub(bytes, Relaxed);
        }
        sent
    }

    /// Queues the end of an attempt.
    pub(super) fn send_end(&self, name: &LogName, unqueued_lines: u64) {
        let sent = self.writer.get().map(|writer| writer.send(Message::End { name: name.clone(), unqueued_lines }));
        if !matches!(sent, Some(Ok(()))) {
            self.index().end(name);
        }
    }
}
