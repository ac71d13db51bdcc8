//! Receives the notifications of a service as the service manager does.

use super::test_cluster::SOON;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

/// The socket that `NOTIFY_SOCKET` names.
pub(crate) struct Notified {
    socket: UnixDatagram,
    pub(crate) path: PathBuf,
}

impl Notified {
    pub(crate) fn at(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).expect("the directory is writable");
        Self { socket, path }
    }

    /// Returns the next message; `None` if none arrives within `wait_max`.
    pub(crate) fn next(&self, wait_max: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(wait_max)).expect("it is a time");
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// Waits for a message that contains `text`; returns it and all earlier ones.
    pub(crate) fn wait_for(&self, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(message) = self.next(SOON) {
            let is_it = message.contains(text);
            all.push(message);
            if is_it {
                return all;
            }
        }
        panic!("'{text}' never came: {all:?}")
    }
}
