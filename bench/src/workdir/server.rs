//! Runs an NBD server for one scenario.

use super::ScenarioDir;
use crate::trial_executor::Failure;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time for a server to listen; ten times as long as any server takes.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Address of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Unix,
    /// On a free port of the loopback interface.
    Tcp,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    uri: String,
    socket: Option<PathBuf>,
}

impl Server {
    /// Starts `nbdkit WORDS` and waits until it listens. Must be called on the main thread: the kernel ends the server
    /// with the thread that started it.
    pub(super) fn start(
        program: &str,
        dir: &ScenarioDir,
        number: usize,
        listen: Listen,
        words: &[&str],
    ) -> Result<Self, Failure> {
        let say = |error: io::Error| Failure::io("start nbdkit", &error);
        let (ready, said) = (dir.path(&format!("server-{number}.pid")), dir.path(&format!("server-{number}.said")));
        let mut command = Command::new(program);
        command.args(["--foreground", "--exit-with-parent", "--pidfile"]).arg(&ready);
        let (uri, socket) = match listen {
            Listen::Unix => {
                let name = dir.path("").file_name().unwrap_or_default().to_os_string();
                let socket = dir.sockets().join(format!("{}-{number}", name.display()));
                command.arg("--unix").arg(&socket);
                (format!("nbd+unix:///?socket={}", socket.display()), Some(socket))
            }
            Listen::Tcp => {
                let port = free_port().map_err(say)?.to_string();
                command.args(["--ipaddr=127.0.0.1", "--port", &port]);
                (format!("nbd://127.0.0.1:{port}/"), None)
            }
        };
        let log = File::create(&said).map_err(say)?;
        command.args(words).process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut server = Self { child: command.spawn().map_err(say)?, uri, socket };
        let until = Instant::now() + TIMEOUT;
        // The server writes its process ID once it listens.
        while fs::metadata(&ready).map_or(0, |file| file.len()) == 0 {
            dir.interrupt.check()?;
            let ended = server.child.try_wait().map_err(say)?;
            if ended.is_some() || Instant::now() > until {
                let said = fs::read_to_string(&said).unwrap_or_default();
                return Err(Failure::Failed(format!("nbdkit {} does not listen: {}", words.join(" "), said.trim())));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(server)
    }

    pub(crate) fn uri(&self) -> String {
        self.uri.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket);
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
