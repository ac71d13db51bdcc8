//! Serves the disk inside of an image over a private socket, by a read-only `qemu-nbd` that ends with this process.
//!
//! What always holds: the server opens the image and no other file. An image may name a backing file, a data file or
//! extents; such an image is refused, as its author would choose which files of this host are read. The folder of the
//! socket lies in the state directory, is accessible to this user only, and is the same for each run of one copy, so that
//! a copy resumes from the export that it knows. The name of the export says which file it was and when it was changed: a
//! copy of an image that has changed since is not resumed.

use super::ImageFormat;
use crate::copy::checkpoint_key;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::journal::default_checkpoint_path;
use blockhaul_engine::shown::Shown;
use blockhaul_engine::volume::Locator;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for the server to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Wait between two looks at a server that starts.
const START_LOOK: Duration = Duration::from_millis(5);
/// Longest wait for the end of a server that was asked to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Longest path of a Unix socket, with its end.
const SOCKET_PATH_BYTES: usize = 108;
/// Bytes of the server's messages that are kept.
const MESSAGES_BYTES: u64 = 4 << 10;
/// Members of `qemu-img info` that name other files.
const FOREIGN: [&str; 3] = ["backing-filename", "full-backing-filename", "data-file"];

/// An image that is being served. Stops its server when it is dropped.
#[derive(Debug)]
pub(crate) struct ServedImage {
    server: Child,
    folder: PathBuf,
    socket: PathBuf,
    uri: String,
    /// Keeps other copies of this pair from using the folder.
    _lock: Flock<File>,
}

impl ServedImage {
    /// Starts to serve the disk in `image`, for a copy to `destination`, with a socket below `state`.
    ///
    /// # Errors
    /// `EUnsupported` if qemu is not installed, does not know the image, or the image names other files; `EBusy` if this
    /// copy runs already.
    pub(crate) fn start(image: &Path, format: ImageFormat, destination: &Locator, state: &Path) -> Result<Self> {
        let qemu_name = format.qemu_name().ok_or_else(|| format.refusal(image))?;
        let absolute = image
            .canonicalize()
            .map_err(|error| Error::io(Side::Source, Operation::Open, &error, format!("find {}", image.shown())))?;
        let path = absolute.to_str().ok_or_else(|| {
            failure(Code::Unsupported, image, "qemu takes no path that is not UTF-8; use a link with another name")
        })?;
        refuse_foreign_files(image, path, qemu_name)?;
        refuse_itself(&absolute, destination)?;
        // One copy at a time writes a destination.
        let folder = default_checkpoint_path(state, &checkpoint_key(destination)).with_extension("image");
        let socket = folder.join("s");
        if socket.as_os_str().len() >= SOCKET_PATH_BYTES {
            let message = format!("the path of the socket {} is too long", socket.shown());
            return Err(Error::bad_request(message).advise("use --state-dir to name a directory with a shorter path"));
        }
        let lock = lock(&folder)?;
        // Left by a run that was killed: nobody listens there, as this run has the lock.
        let _ = std::fs::remove_file(&socket);
        let metadata = std::fs::metadata(&absolute)
            .map_err(|error| Error::io(Side::Source, Operation::Stat, &error, format!("stat {}", image.shown())))?;
        let export = format!("{}-{}-{}-{}", metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        let mut server = start_server(path, qemu_name, &socket, &export)?;
        let uri = format!("nbd+unix:///{export}?socket={}", escaped(&socket));
        if let Err(error) = wait_until_it_listens(&mut server, &socket, image) {
            end(&mut server);
            return Err(error);
        }
        Ok(Self { server, folder, socket, uri, _lock: lock })
    }

    /// Returns the address of the export.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }
}

impl Drop for ServedImage {
    fn drop(&mut self) {
        end(&mut self.server);
        // The folder is left if another file is in it, which is not ours.
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Refuses a destination that is the image: the server reads it while it is written.
fn refuse_itself(image: &Path, destination: &Locator) -> Result<()> {
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    match destination.path().and_then(inode) {
        Some(there) if Some(there) == inode(image) => {
            let message = format!("the destination {destination} is the image itself");
            Err(Error::new(Code::SameVolume, Side::Destination, Operation::Open, message))
        }
        _ => Ok(()),
    }
}

fn lock(folder: &Path) -> Result<Flock<File>> {
    let failed = |error: &std::io::Error| {
        Error::io(Side::Caller, Operation::Open, error, format!("create the folder {} of a socket", folder.shown()))
    };
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(&error)),
        Ok(()) | Err(_) => {}
    }
    let file = File::open(folder).map_err(|error| failed(&error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        let what = format!("use the folder {} (the same copy is running)", folder.shown());
        Error::os(Side::Caller, Operation::Open, errno, what).with_code(Code::Busy)
    })
}

fn failure(code: Code, image: &Path, why: &str) -> Error {
    Error::new(code, Side::Source, Operation::Open, format!("the image {} cannot be served: {why}", image.shown()))
}

/// Starts a program that dies with this process, even if that is killed, and gets no signals of its terminal.
fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).stdin(Stdio::null()).process_group(0);
    command
}

fn not_started(program: &str, error: &std::io::Error) -> Error {
    let error = Error::io(Side::Source, Operation::Start, error, format!("start {program} through setpriv"));
    error
        .with_code(Code::Unsupported)
        .advise("install qemu-utils (and util-linux), or use --format raw to copy the file as it is")
}

/// Refuses an image that names other files.
fn refuse_foreign_files(image: &Path, path: &str, format: &str) -> Result<()> {
    let info = command("qemu-img").args(["info", "--output=json", "-f", format, "--", path]).output();
    let info = info.map_err(|error| not_started("qemu-img", &error))?;
    if !info.status.success() {
        let why = messages(&info.stderr);
        return Err(failure(Code::Unsupported, image, &why).advise("use --format raw to copy the file as it is"));
    }
    let told: Value = serde_json::from_slice(&info.stdout)
        .map_err(|error| failure(Code::Unsupported, image, &format!("qemu-img told no JSON about it: {error}")))?;
    match foreign_file(&told, path) {
        None => Ok(()),
        Some(name) => {
            let why = format!("it names another file, '{}'", name.escape_debug());
            let advice = "if you trust the image, serve it with qemu-nbd --read-only and copy from that export";
            Err(failure(Code::Unsupported, image, &why).advise(advice))
        }
    }
}

/// Returns another file that an image names.
fn foreign_file(told: &Value, path: &str) -> Option<String> {
    let data = &told["format-specific"]["data"];
    let named = FOREIGN.iter().flat_map(|name| [&told[*name], &data[*name]]);
    let extents = data["extents"].as_array().into_iter().flatten().map(|extent| &extent["filename"]);
    let parts = extents.filter(|name| name.as_str() != Some(path));
    named.chain(parts).find_map(Value::as_str).map(str::to_owned)
}

fn start_server(path: &str, format: &str, socket: &Path, export: &str) -> Result<Child> {
    let mut options = json!({"driver": format, "file": {"driver": "file", "filename": path}});
    if format == "qcow2" {
        // Said again: what the image says about its backing file is not followed.
        options["backing"] = Value::Null;
    }
    let mut server = command("qemu-nbd");
    server.args(["--read-only", "--persistent", "--shared=0", "--cache=writeback"]);
    server.arg("--export-name").arg(export).arg("--socket").arg(socket).arg(format!("json:{options}"));
    server.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|error| not_started("qemu-nbd", &error))
}

fn wait_until_it_listens(server: &mut Child, socket: &Path, image: &Path) -> Result<()> {
    let until = Instant::now() + START_LIMIT;
    loop {
        if UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        let ended = server.try_wait().unwrap_or(None);
        if ended.is_some() || Instant::now() > until {
            let mut said = Vec::new();
            if ended.is_some()
                && let Some(stderr) = server.stderr.take()
            {
                // What cannot be read is missing from the message only.
                let _ = stderr.take(MESSAGES_BYTES).read_to_end(&mut said);
            }
            let why = if ended.is_some() { messages(&said) } else { String::from("qemu-nbd does not listen") };
            return Err(failure(Code::Unsupported, image, &why));
        }
        std::thread::sleep(START_LOOK);
    }
}

/// Ends a server: it has made no change that could get lost.
fn end(server: &mut Child) {
    let Ok(pid) = i32::try_from(server.id()) else { return };
    // The process was not waited for yet: its number is its own.
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let until = Instant::now() + STOP_LIMIT;
    while Instant::now() < until {
        if !matches!(server.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(START_LOOK);
    }
    let _ = server.kill();
    let _ = server.wait();
}

/// Returns what a program has said, on one line and without control characters.
fn messages(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(&said[..said.len().min(MESSAGES_BYTES as usize)]);
    let text = text.trim();
    if text.is_empty() { String::from("qemu ended without a word") } else { text.escape_debug().to_string() }
}

/// Returns a path as the value of a URI's parameter.
fn escaped(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./~".contains(&byte);
    let bytes = path.as_os_str().as_encoded_bytes().iter();
    bytes.map(|&byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_names_another_file_is_found() {
        let file = "/images/a";
        assert_eq!(
            foreign_file(&json!({"filename": file, "format-specific": {"data": {"compat": "1.1"}}}), file),
            None
        );
        let own = json!({"format-specific": {"data": {"extents": [{"filename": file}]}}});
        assert_eq!(foreign_file(&own, file), None);
        for foreign in [
            json!({"backing-filename": "/etc/shadow"}),
            json!({"full-backing-filename": "/etc/shadow"}),
            json!({"format-specific": {"data": {"data-file": "/etc/shadow"}}}),
            json!({"format-specific": {"data": {"extents": [{"filename": file}, {"filename": "/etc/shadow"}]}}}),
        ] {
            assert_eq!(foreign_file(&foreign, file).as_deref(), Some("/etc/shadow"), "{foreign}");
        }
    }

    #[test]
    fn a_socket_in_a_uri_is_escaped() {
        assert_eq!(escaped(Path::new("/run/a b/ä&?")), "/run/a%20b/%C3%A4%26%3F");
    }
}
