//! Provides real servers, certificates and peers for tests. What the host lacks is named by the test that is skipped
//! for it.

use super::Session;
use super::codec::{Command, CommandFlags, REQUEST_BYTES_MAX, RequestHeader};
use super::replies::ExpectedReply;
use super::replies::NextReceive;
use super::replies::test_receiver::{ReceivedReply as Asked, TestReceiver};
use crate::volume::support::run;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;
use std::{env, thread};

/// Longest time of a dial in tests that expect it to succeed or to be refused.
pub(super) const PATIENT: Duration = Duration::from_secs(60);

/// A server that listens; killed on drop.
pub(super) struct Server {
    child: Child,
}

impl Server {
    /// `command` stays in the foreground and writes `dir/pid` once it listens.
    fn start(command: &[&str], dir: &Path) -> Result<Self, String> {
        let log = File::create(dir.join("log")).unwrap();
        let mut program = Program::new(command[0]);
        program.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = program.spawn().map_err(|error| format!("{}: {error}", command[0]))?;
        let mut server = Self { child };
        let pid = dir.join("pid");
        while fs::read(&pid).map_or(0, |content| content.len()) == 0 {
            if let Some(status) = server.child.try_wait().unwrap() {
                let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
                panic!("{}: {status}: {log}", command.join(" "));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// nbdkit with a socket in `dir`, which is used for nothing else.
    pub(super) fn nbdkit(dir: &Path, arguments: &[&str]) -> Result<Self, String> {
        let (pid, socket) = (text(&dir.join("pid")), text(&dir.join("socket")));
        Self::start(&[&["nbdkit", "-f", "-P", &pid, "-U", &socket], arguments].concat(), dir)
    }

    /// nbdkit at a port of this host, and the port.
    pub(super) fn nbdkit_tcp(dir: &Path, arguments: &[&str]) -> Result<(Self, u16), String> {
        // The port is free again once it is known; the kernel does not reuse it so soon.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (pid, number) = (text(&dir.join("pid")), port.to_string());
        let command = [&["nbdkit", "-f", "-P", &pid, "-i", "127.0.0.1", "-p", &number], arguments].concat();
        Ok((Self::start(&command, dir)?, port))
    }

    /// qemu-nbd with a socket in `dir`, for any number of clients, one after another or at once.
    pub(super) fn qemu(dir: &Path, arguments: &[&str]) -> Result<Self, String> {
        let (pid, socket) = (format!("--pid-file={}", text(&dir.join("pid"))), text(&dir.join("socket")));
        Self::start(&[&["qemu-nbd", "-t", "-e", "0", &pid, "-k", &socket], arguments].concat(), dir)
    }

    /// The number of its open descriptors.
    pub(super) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority, a server of this host and a client, in one directory under the names that nbdkit wants.
pub(super) fn certificates(directory: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(directory).unwrap();
    let file = |name: &str| text(&directory.join(name));
    fs::write(file("plain.conf"), "[req]\ndistinguished_name=name\n[name]\n").unwrap();
    let make = |name: &str, subject: &str, further: &[&str]| {
        let (key, certificate, config) =
            (file(&format!("{name}-key.pem")), file(&format!("{name}-cert.pem")), file("plain.conf"));
        let common = ["openssl", "req", "-x509", "-config", &config, "-nodes", "-days", "30", "-subj", subject];
        let keys = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", &key, "-out", &certificate];
        run(&[&common[..], &keys, further].concat())
    };
    make("ca", "/CN=authority", &["-addext", "basicConstraints=critical,CA:TRUE"])?;
    let (authority, key) = (file("ca-cert.pem"), file("ca-key.pem"));
    let signed = ["-CA", &authority, "-CAkey", &key, "-addext"];
    make("server", "/CN=server", &[&signed[..], &["subjectAltName=DNS:localhost"]].concat())?;
    make("client", "/CN=client", &[&signed[..], &["subjectAltName=DNS:client"]].concat())?;
    Ok(directory.to_owned())
}

/// Returns what a client needs to trust the servers of `certificates`, without an identity of its own.
pub(super) fn authority_only(certificates: &Path, directory: &Path) -> PathBuf {
    fs::create_dir_all(directory).unwrap();
    fs::copy(certificates.join("ca-cert.pem"), directory.join("ca-cert.pem")).unwrap();
    directory.to_owned()
}

pub(super) fn text(path: &Path) -> String {
    path.to_str().expect("temporary directories have plain names").to_owned()
}

/// Bytes that differ from place to place.
pub(super) fn pattern(offset: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    (0..len as u64 / 4).flat_map(|at| word(offset / 4 + at).to_be_bytes()).collect()
}

/// Writes (with `pattern`) or reads `count` blocks of `block` bytes, all requests under way at once. The answers.
pub(super) fn exchange(session: &Session, command: Command, block: u32, count: usize) -> Vec<Asked> {
    let (mut sender, mut receiver) = (socket(session), socket(session));
    let mut owner = TestReceiver::new(session.style, session.contexts, count);
    let style = session.style;
    let mut requests = Vec::new();
    for number in 0..count {
        let (offset, len) = (number as u64 * u64::from(block), block);
        let expected =
            if command == Command::Read { ExpectedReply::Read { offset, len } } else { ExpectedReply::Nothing };
        let cookie = owner.ask(number, expected);
        requests.push(RequestHeader { command, flags: CommandFlags(0), cookie, offset, len: len.into() });
    }
    let sending = thread::spawn(move || {
        for request in requests {
            let mut bytes = vec![0; REQUEST_BYTES_MAX];
            let len = request.encode(style, &mut bytes);
            bytes.truncate(len);
            if command == Command::Write {
                bytes.extend(pattern(request.offset, request.len as usize));
            }
            sender.write_all(&bytes).unwrap();
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while owner.ended.len() < count {
        let wanted = owner.replies.wants();
        let most = match wanted {
            NextReceive::Head { most } => most,
            NextReceive::Body { len, .. } => len as usize,
        };
        let most = most.min(buffer.len());
        let got = receiver.read(&mut buffer[..most]).unwrap();
        assert!(got > 0, "the server has closed");
        owner.receive(wanted, &buffer[..got], got).unwrap();
    }
    sending.join().unwrap();
    owner.ended.into_iter().map(|(request, outcome)| outcome.map(|()| request).unwrap()).collect()
}

/// Another descriptor of a session's socket.
pub(super) fn socket(session: &Session) -> std::os::unix::net::UnixStream {
    // Reading and writing do not ask what kind of socket it is.
    session.socket.try_clone().unwrap().into()
}

/// Runs the calling test in a process of its own, where threads and descriptors are its alone. `true` there.
pub(super) fn is_alone(test: &str) -> bool {
    const ALONE: &str = "BLOCKHAUL_TEST_ALONE";
    if env::var_os(ALONE).is_some_and(|name| name == test) {
        return true;
    }
    let mut command = Program::new(env::current_exe().unwrap());
    let output = command.args(["--exact", "--nocapture", test]).env(ALONE, test).output().unwrap();
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (words(&output.stdout), words(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{test} alone: {out}{err}");
    eprint!("{err}");
    false
}

/// Directories of this process's threads that pass on what TLS protects.
pub(super) fn pumps() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let is_pump =
        |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|it| it.trim() == super::tls_relay::THREAD);
    tasks.filter(is_pump).collect()
}

/// Waits until `is_so` returns true, at most a minute.
pub(super) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut turns = 0_u32;
    while !is_so() {
        turns += 1;
        assert!(turns < 12_000, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
