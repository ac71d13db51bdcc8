//! Runs a real server: starts it, waits until it listens, and kills it at the end of the test. The kernel kills it if
//! the test is killed.

use super::test_dirs::TestDirs;
use crate::test_dir::text;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a server to listen or to exit; ten times as long as either takes.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Unix(PathBuf),
    /// A port of 127.0.0.1.
    Tcp(u16),
}

impl Address {
    /// Returns a port without a listener.
    pub fn free_port() -> Self {
        let probe = TcpListener::bind(("127.0.0.1", 0)).expect("there are free ports");
        Self::Tcp(probe.local_addr().expect("it is bound").port())
    }

    /// Returns the URI of an export.
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", text(path)),
            Self::Tcp(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }

    /// Tells whether a server listens, without connecting: a connection would count as a client.
    fn is_listened_on(&self) -> bool {
        let has = |table: &str, what: &dyn Fn(&[&str]) -> bool| {
            let table = fs::read_to_string(table).unwrap_or_default();
            table.lines().any(|line| what(&line.split_whitespace().collect::<Vec<_>>()))
        };
        match self {
            // The flag of a listening socket.
            Self::Unix(path) => {
                has("/proc/net/unix", &|line| line.get(3) == Some(&"00010000") && line.last() == Some(&text(path)))
            }
            Self::Tcp(port) => {
                let wanted = format!("0100007F:{port:04X}");
                let listens = |line: &[&str]| line.get(1) == Some(&wanted.as_str()) && line.get(3) == Some(&"0A");
                has("/proc/net/tcp", &listens)
            }
        }
    }
}

/// A server process.
#[derive(Debug)]
pub struct Server {
    args: Vec<String>,
    address: Address,
    export: &'static str,
    output: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Starts the command `args`, which must stay in the foreground, and waits until it listens at `address`.
    pub fn start(dirs: &TestDirs, name: &str, address: Address, args: &[&str]) -> Self {
        let mut server = Self {
            args: args.iter().map(|&word| word.to_owned()).collect(),
            address,
            export: "",
            output: dirs.path(&format!("{name}.output")),
            child: None,
        };
        server.restart();
        server
    }

    /// Starts `nbdkit ARGS` on a unix socket.
    pub fn nbdkit(dirs: &TestDirs, name: &str, args: &[&str]) -> Self {
        Self::nbdkit_at(dirs, name, Address::Unix(dirs.socket(name)), args)
    }

    pub fn nbdkit_at(dirs: &TestDirs, name: &str, address: Address, args: &[&str]) -> Self {
        let place = match &address {
            Address::Unix(path) => vec!["--unix".to_owned(), text(path).to_owned()],
            Address::Tcp(port) => vec!["--ipaddr=127.0.0.1".to_owned(), "--port".to_owned(), port.to_string()],
        };
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        let start = ["nbdkit", "--foreground"];
        Self::start(dirs, name, address, &[&start[..], &place, args].concat())
    }

    /// Serves 1 MiB whose flushes fail. Uses a script, as the error filter cannot fail flushes.
    pub fn without_flush(dirs: &TestDirs, name: &str, address: Address) -> Self {
        let image = dirs.file(&format!("{name}.image"), &vec![0; 1 << 20]);
        let image = text(&image);
        let args = [
            "eval",
            "get_size=echo 1M",
            "can_write=exit 0",
            "can_flush=exit 0",
            &format!("pread=dd if={image} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"),
            &format!("pwrite=dd of={image} oflag=seek_bytes conv=notrunc seek=$4 status=none"),
            "flush=echo EIO the disk is gone >&2; exit 1",
        ];
        Self::nbdkit_at(dirs, name, address, &args)
    }

    /// Starts `qemu-nbd ARGS` on a unix socket, for any number of clients.
    pub fn qemu_nbd(dirs: &TestDirs, name: &str, args: &[&str]) -> Self {
        let socket = dirs.socket(name);
        let start = ["qemu-nbd", "--persistent", "--shared=16", "--socket", text(&socket)];
        Self::start(dirs, name, Address::Unix(socket.clone()), &[&start[..], args].concat())
    }

    /// `nbd-server` over the file `backing` as export `disk`. It goes into the background by itself and starts a
    /// process for every client; in name spaces of their own, all of them end with the first one.
    pub fn nbd_server(dirs: &TestDirs, name: &str, backing: &Path) -> Self {
        let socket = dirs.socket(name);
        let configuration = format!(
            "[generic]\nunixsock = {}\nallowlist = true\n[disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
            text(&socket),
            text(backing)
        );
        let path = dirs.file(&format!("{name}.conf"), configuration.as_bytes());
        let script = "nbd-server -C \"$0\" && exec sleep infinity";
        let args = ["unshare", "--fork", "--pid", "--kill-child", "sh", "-c", script, text(&path)];
        let mut server = Self::start(dirs, name, Address::Unix(socket), &args);
        server.export = "disk";
        server
    }

    pub fn uri(&self) -> String {
        self.address.uri(self.export)
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns what the server has printed.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Starts the server again at the same address.
    ///
    /// # Panics
    /// If the server exits instead of listening.
    pub fn restart(&mut self) {
        self.kill();
        if let Address::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
        let output = File::create(&self.output).expect("the directory is writable");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(&self.args).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("there are descriptors")).stderr(output);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("run setpriv: {error}")));
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&mut self) {
        let until = Instant::now() + WAIT_MAX;
        while !self.address.is_listened_on() {
            let child = self.child.as_mut().expect("it was just started");
            let ended = child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{} ended: {ended:?}: {}", self.args.join(" "), self.output());
            assert!(Instant::now() < until, "{} does not listen: {}", self.args.join(" "), self.output());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Kills the server and waits until it does not listen.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            self.wait_until_it_does_not_listen();
        }
    }

    /// Child processes of the server end a little later than the server.
    fn wait_until_it_does_not_listen(&self) {
        let until = Instant::now() + WAIT_MAX;
        while self.address.is_listened_on() && Instant::now() < until {
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends SIGTERM and waits for the exit, so that the server writes its data.
    pub fn end(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let id = Pid::from_raw(i32::try_from(child.id()).expect("ids are small"));
        kill(id, Signal::SIGTERM).expect("the process was not waited for");
        let until = Instant::now() + WAIT_MAX;
        while child.try_wait().expect("it is our child").is_none() {
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} does not end: {}", self.args.join(" "), self.output());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
