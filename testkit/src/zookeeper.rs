//! Runs a ZooKeeper ensemble of one or more servers, on free ports of 127.0.0.1, in temporary directories.
//!
//! Servers can be killed, paused, isolated from each other and started again by their number. All of them end when the
//! [`Ensemble`] is dropped, and the kernel kills them when the test's process ends. Needs `java`, Debian's package
//! `zookeeper`, and `setpriv` of `util-linux`.

use crate::java;
use crate::signals;
use crate::tcp_proxy::{Mode, TcpProxy};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for a start or an election; ten times as long as either takes.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time for an answer; a server that takes longer is paused or has ended.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// Below the range that the kernel uses for outgoing connections: a port stays free while its server is down.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Settings of an ensemble.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of servers, such as 1 or 3.
    pub servers: usize,
    /// ZooKeeper's tick: sessions last at least two ticks, and expire at multiples of it.
    pub tick: Duration,
    /// Ticks that a follower may lag behind the leader.
    pub sync_limit: u32,
    /// Ticks that a follower may take to join.
    pub init_limit: u32,
    /// Largest heap of a server.
    pub heap_mib: u32,
    /// Whether followers connect to the leader through proxies: see [`Ensemble::isolate`].
    pub wired: bool,
}

impl Settings {
    /// Returns settings with ticks of half a second, so that a session lasts at least one second.
    pub fn new(servers: usize) -> Self {
        Self { servers, tick: Duration::from_millis(500), sync_limit: 8, init_limit: 20, heap_mib: 128, wired: false }
    }
}

/// Role of a server, as it reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The leader.
    Leader,
    /// A follower.
    Follower,
    /// The only server.
    Standalone,
}

/// A running ensemble.
#[derive(Debug)]
pub struct Ensemble {
    servers: Vec<Server>,
    /// Proxies from each server to each other for the traffic of followers, if the ensemble is wired. Elections do not
    /// use them.
    ways: Vec<Vec<TcpProxy>>,
    settings: Settings,
    /// Directories of the servers.
    _folder: TempDir,
}

impl Ensemble {
    /// Tells whether the needed programs are installed; `cargo xtask test` installs them.
    pub fn is_installed() -> bool {
        let found = |folder: &Path| folder.join("java").is_file();
        let java = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|path| found(&path));
        java && Path::new("/usr/share/java/zookeeper.jar").is_file()
    }

    /// Starts an ensemble of `servers` servers and waits until they serve.
    pub fn start(servers: usize) -> Self {
        Self::with(Settings::new(servers))
    }

    /// As [`Ensemble::start`], with other settings.
    pub fn with(settings: Settings) -> Self {
        assert!(
            Self::is_installed(),
            "install the Debian packages zookeeper and default-jre-headless, or run xtask test"
        );
        let folder = TempDir::with_prefix("ensemble-").expect("temporary folders can be made");
        let mut ports = free_ports(3 * settings.servers).into_iter();
        let mut servers = Vec::new();
        for index in 0..settings.servers {
            let home = folder.path().join(format!("server{index}"));
            let mut port = || ports.next().expect("three for each were asked for");
            servers.push(Server { home, client: port(), peers: port(), votes: port(), child: None });
        }
        let ways_from =
            |_: &Server| servers.iter().map(|to| TcpProxy::to(&format!("127.0.0.1:{}", to.peers))).collect();
        let ways = servers.iter().filter(|_| settings.wired).map(ways_from).collect();
        let mut ensemble = Self { servers, ways, settings, _folder: folder };
        for index in 0..ensemble.size() {
            ensemble.write_configuration(index);
            ensemble.launch(index);
        }
        for index in 0..ensemble.size() {
            ensemble.wait_until_it_serves(index);
        }
        ensemble
    }

    /// Returns the number of servers.
    pub fn size(&self) -> usize {
        self.servers.len()
    }

    /// Returns the addresses of all servers: `HOST:PORT,HOST:PORT...`.
    pub fn addresses(&self) -> String {
        (0..self.size()).map(|index| self.address(index)).collect::<Vec<_>>().join(",")
    }

    /// Returns the address of a server: `HOST:PORT`.
    pub fn address(&self, index: usize) -> String {
        self.servers[index].address().to_string()
    }

    /// Returns the process ID of a server.
    ///
    /// # Panics
    /// If it has been killed.
    pub fn pid(&self, index: usize) -> Pid {
        let child = self.servers[index].child.as_ref().expect("the server runs");
        Pid::from_raw(i32::try_from(child.id()).expect("ids are small"))
    }

    /// Kills a server, if it runs, and waits until it has ended.
    pub fn kill(&mut self, index: usize) {
        self.servers[index].kill();
    }

    /// Pauses a server: its connections stay open without an answer.
    pub fn pause(&self, index: usize) {
        signals::send(self.pid(index), Signal::SIGSTOP);
    }

    /// Resumes a paused server.
    pub fn resume(&self, index: usize) {
        signals::send(self.pid(index), Signal::SIGCONT);
    }

    /// Stalls the traffic between a server and its leader or followers. Its clients still reach it.
    ///
    /// # Panics
    /// If the ensemble is not wired.
    pub fn isolate(&self, index: usize) {
        self.links_of(index).for_each(|way| way.set(Mode::Stall));
    }

    /// Ends [`Ensemble::isolate`]: old connections are closed, new ones pass.
    pub fn rejoin(&self, index: usize) {
        self.links_of(index).for_each(|way| {
            way.set(Mode::Cut);
            way.set(Mode::Pass);
        });
    }

    fn links_of(&self, index: usize) -> impl Iterator<Item = &TcpProxy> {
        assert!(self.settings.wired, "the servers of this ensemble are not wired");
        let towards = self.ways.iter().map(move |ways| &ways[index]);
        self.ways[index].iter().chain(towards)
    }

    /// Returns the data directory of a server.
    pub fn data(&self, index: usize) -> PathBuf {
        self.servers[index].home.join("data")
    }

    /// Starts a server with its data, without waiting: without a quorum it cannot serve.
    pub fn launch(&mut self, index: usize) {
        self.servers[index].launch(self.settings.heap_mib);
    }

    /// Kills a server if it runs, starts it with its data, and waits until it serves.
    pub fn restart(&mut self, index: usize) {
        self.kill(index);
        self.launch(index);
        self.wait_until_it_serves(index);
    }

    /// Returns the role of a server; `None` while it does not serve.
    pub fn role(&self, index: usize) -> Option<Role> {
        let answer = self.servers[index].ask("srvr").ok()?;
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "))?;
        match mode {
            "leader" => Some(Role::Leader),
            "follower" => Some(Role::Follower),
            "standalone" => Some(Role::Standalone),
            _ => None,
        }
    }

    /// Returns the current leader, or the only server. Waits for an election.
    ///
    /// # Panics
    /// If no server leads within five minutes.
    pub fn leader(&self) -> usize {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let leads = |index: &usize| matches!(self.role(*index), Some(Role::Leader | Role::Standalone));
            if let Some(index) = (0..self.size()).filter(|&index| self.servers[index].child.is_some()).find(leads) {
                return index;
            }
            assert!(Instant::now() < until, "no server leads: {}", self.log());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the server that a session is connected to, by the session's ID.
    pub fn server_of(&self, session: i64) -> Option<usize> {
        let wanted = format!("sid=0x{session:x},");
        (0..self.size()).find(|&index| self.servers[index].ask("cons").is_ok_and(|answer| answer.contains(&wanted)))
    }

    /// Returns the number of writes committed in the current epoch of ZooKeeper's leader.
    ///
    /// # Panics
    /// If no server leads.
    pub fn transactions(&self) -> u64 {
        let answer = self.servers[self.leader()].ask("srvr").expect("it has just answered");
        let last = answer.lines().find_map(|line| line.strip_prefix("Zxid: 0x")).expect("every server has one");
        u64::from_str_radix(last, 16).expect("it is hexadecimal") & 0xffff_ffff
    }

    /// Returns the number of watches at all servers.
    ///
    /// # Panics
    /// If a server does not answer.
    pub fn watches(&self) -> u64 {
        let of = |server: &Server| {
            let answer = server.ask("wchs").expect("it serves");
            let total =
                answer.lines().find_map(|line| line.strip_prefix("Total watches:")).expect("every server counts");
            total.trim().parse::<u64>().expect("it is a number")
        };
        self.servers.iter().map(of).sum()
    }

    /// Waits until a server answers, as part of a quorum.
    ///
    /// # Panics
    /// If the server ends, or does not serve within five minutes.
    pub fn wait_until_it_serves(&mut self, index: usize) {
        let until = Instant::now() + WAIT_MAX;
        while self.role(index).is_none() {
            let child = self.servers[index].child.as_mut().expect("it was started");
            let ended = child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "server {index} ended: {ended:?}: {}", self.log());
            assert!(Instant::now() < until, "server {index} does not serve: {}", self.log());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the end of the servers' logs, for a test that fails.
    pub fn log(&self) -> String {
        let logs = self.servers.iter().map(|server| {
            let text = fs::read_to_string(server.home.join("log")).unwrap_or_default();
            let last = text.lines().rev().take(30).collect::<Vec<_>>();
            format!("\n{}:\n{}", server.home.display(), last.into_iter().rev().collect::<Vec<_>>().join("\n"))
        });
        logs.collect()
    }

    fn write_configuration(&self, index: usize) {
        let Server { home, client, .. } = &self.servers[index];
        let Settings { tick, sync_limit, init_limit, servers, .. } = self.settings;
        let mut text = format!(
            "tickTime={}\nsyncLimit={sync_limit}\ninitLimit={init_limit}\nmaxSessionTimeout=600000\n\
             dataDir={}\nclientPort={client}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
             admin.enableServer=false\n4lw.commands.whitelist=srvr,ruok,mntr,cons,wchs\n",
            tick.as_millis(),
            home.join("data").display(),
        );
        if servers > 1 {
            for (id, Server { peers, votes, .. }) in self.servers.iter().enumerate() {
                let way = self.ways.get(index).filter(|_| id != index);
                let follows = way.map_or_else(|| format!("127.0.0.1:{peers}"), |ways| ways[id].address());
                text += &format!("server.{}={follows}:{votes}\n", id + 1);
            }
        }
        fs::create_dir_all(home.join("data")).expect("the temporary folder can be written");
        fs::write(home.join("data/myid"), (index + 1).to_string()).expect("the temporary folder can be written");
        fs::write(home.join("zoo.cfg"), text).expect("the temporary folder can be written");
    }
}

/// A server of the ensemble.
#[derive(Debug)]
struct Server {
    home: PathBuf,
    client: u16,
    peers: u16,
    votes: u16,
    child: Option<Child>,
}

impl Server {
    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.client))
    }

    fn launch(&mut self, heap_mib: u32) {
        assert!(self.child.is_none(), "the server runs already");
        let log = File::options().create(true).append(true).open(self.home.join("log")).expect("the folder is ours");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "java"]);
        java::serve(&mut command, heap_mib, &self.home.join("zoo.cfg"));
        command.current_dir(&self.home).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("there are descriptors")).stderr(log);
        self.child = Some(spawn(command).unwrap_or_else(|error| panic!("run setpriv: {error}")));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a four-letter command and returns the answer.
    fn ask(&self, question: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(), ANSWER_WAIT)?;
        stream.set_read_timeout(Some(ANSWER_WAIT))?;
        stream.write_all(question.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns ports of 127.0.0.1 without a listener.
fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::new();
    while held.len() < count {
        held.extend(TcpListener::bind(("127.0.0.1", fastrand::u16(PORTS))));
    }
    held.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect()
}

/// Starts a process from a thread that never ends: the kernel kills the child when the thread that started it ends, and
/// threads of a test or a runtime end early.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in taken {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, started) = mpsc::channel();
    spawner.send((command, answer)).expect("the thread never ends");
    started.recv().expect("every order is answered")
}
