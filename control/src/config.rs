//! Resolves the raw settings of a `taskd` into validated ones with units and defaults.
//!
//! A value comes from its flag, else from the environment, else from the file of `--config`, else from its default. The
//! file has the flags' names without the leading dashes, as TOML or JSON. Resolving reads key files and nothing else.
//! Every refusal comes before anything is changed.

use crate::access::AccessControl;
use crate::clock::HostClock;
use crate::cluster::storage_probe::{DataAddress, ProbeTiming};
pub use crate::console::ConsoleConfig;
use crate::coord::{NODE_BYTES_MAX, SESSION_TIMEOUT_MAX, SESSION_TIMEOUT_MIN};
use crate::host_port::{HostPort, parse_server};
use crate::model::{Incarnation, NodeId, OpId, Record, Registration, parse_label};
use crate::order::OrderKeys;
use crate::rpc::tls::{RawTls, Tls};
use crate::state_dir;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::units::{parse_duration, parse_size};
use clap::Parser;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Limits that change without a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tasks that run at once, 1 to 256.
    pub slots: u32,
}

/// As many copies as share two cores well.
const SLOTS_DEFAULT: u32 = 4;
/// More slots than these are a mistake in units.
const SLOTS_MAX: u32 = 256;
/// Long enough for a question after a weekend, short enough for the store.
const RETENTION_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Assumed lifetime of a request in network and server.
const QUIET_AFTER_DEFAULT: Duration = Duration::from_secs(30);
/// Far more than NTP leaves, and far less than would mislabel tasks.
const CLOCK_OFF_DEFAULT: Duration = Duration::from_secs(60);
/// Below, delays of the network would end terms.
const CLOCK_OFF_MIN: Duration = Duration::from_secs(10);
/// Twice the time for which a ZooKeeper server that is cut off still answers reads, with its usual settings.
const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Longest host name of Linux.
const HOST_NAME_MAX: usize = 64;
/// Loopback address: listening where others reach it takes a flag.
const LISTEN_DEFAULT: &str = "127.0.0.1:7400";
/// Often enough to notice a loss within the timeout even if single packets are lost.
const DATA_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// A switch that is replaced or a spanning tree that settles must not cost every node its roles.
const DATA_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Below, probes would be load.
const DATA_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Above, the timeout would be of no use.
const DATA_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Flags that secure a listener.
const CERTIFICATES: &str = "--tls-cert, --tls-key and --tls-ca";
/// Longest configuration file: guards against naming a wrong one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Runs copies as tasks: alone, or with others through ZooKeeper.
#[derive(Clone, Debug, Default, Parser, Deserialize)]
#[command(
    name = "taskd",
    version,
    override_usage = "taskd --standalone --state-dir DIR --listen ADDR --allow-path DIR...\n       \
        taskd --node-id ID --listen ADDR --zookeeper HOSTS/CHROOT --state-dir DIR --allow-path DIR...",
    after_help = "A value comes from its flag, else from the environment, else from the file of --config. SIGTERM and SIGINT \
        stop in order: tasks are returned and the process exits within 20 s; a second one stops at once. \
        SIGHUP reloads --slots and --log from the file of --config, the certificates, the roles and the order keys. \
        SIGQUIT logs the state of the node."
)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RawConfig {
    /// Read further settings from FILE: TOML, or JSON if its name ends with .json
    #[arg(long, value_name = "FILE", env = "TASKD_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Run one node without ZooKeeper; the store is a file in the state directory
    #[arg(long, env = "TASKD_STANDALONE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub standalone: Option<bool>,
    /// Name this node, the same after each restart [default with --standalone: the host's name]
    #[arg(long, value_name = "ID", env = "TASKD_NODE_ID")]
    pub node_id: Option<String>,
    /// Listen at ADDR:PORT for clients and other nodes; port 0 is a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR", env = "TASKD_LISTEN")]
    pub listen: Option<String>,
    /// Tell others to reach this node at HOST:PORT [default: as --listen; of 0.0.0.0 the host's name]
    #[arg(long, value_name = "ADDR", env = "TASKD_ADVERTISE")]
    pub advertise: Option<String>,
    /// Use the ensemble and the center's root in it: a:2181,b:2181,c:2181/blockhaul
    #[arg(long, value_name = "HOSTS/CHROOT", env = "TASKD_ZOOKEEPER", conflicts_with = "standalone")]
    pub zookeeper: Option<String>,
    /// Read SCHEME:CREDENTIALS (digest:NAME:PASSWORD) from FILE; only their owner may write the center's records
    #[arg(long, value_name = "FILE", env = "TASKD_ZOOKEEPER_AUTH")]
    pub zookeeper_auth: Option<PathBuf>,
    /// Count a node as lost after so long without a sign of life: 6s to 120s [default: 10s]
    #[arg(long, value_name = "DURATION", env = "TASKD_SESSION_TIMEOUT")]
    pub session_timeout: Option<String>,
    /// Keep locks, journals and the store in DIR [default: $STATE_DIRECTORY, $XDG_STATE_HOME/blockhaul or
    /// ~/.local/state/blockhaul]
    #[arg(long, value_name = "DIR", env = "TASKD_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Allow tasks to use this folder or device; repeatable [default: none]
    #[arg(long, value_name = "DIR", env = "TASKD_ALLOW_PATH", num_args = 1.., value_delimiter = ',')]
    pub allow_path: Vec<PathBuf>,
    /// Allow tasks to use exports of this server; repeatable [default: all]
    #[arg(long, value_name = "HOST[:PORT]", env = "TASKD_ALLOW_NBD", num_args = 1.., value_delimiter = ',')]
    pub allow_nbd: Vec<String>,
    /// Run at most so many tasks at once: 1 to 256 [default: 4]
    #[arg(long, value_name = "N", env = "TASKD_SLOTS")]
    pub slots: Option<u32>,
    /// Describe this node for operators, shown by `blockhaul runners`; repeatable
    #[arg(long, value_name = "KEY=VALUE", env = "TASKD_LABEL", value_delimiter = ',')]
    pub label: Vec<String>,
    /// Keep finished tasks for so long [default: 7d]
    #[arg(long, value_name = "DURATION", env = "TASKD_RETENTION")]
    pub retention: Option<String>,
    /// Assume that a request of a lost runner may reach a server for so long [default: 30s]
    #[arg(long, value_name = "DURATION", env = "TASKD_QUIET_AFTER")]
    pub quiet_after: Option<String>,
    /// Resign leadership while this node's wall clock is further than this from the median of its peers' clocks: 10s or
    /// more; checked only among three nodes or more [default: 1m]
    #[arg(long, value_name = "DURATION", env = "TASKD_CLOCK_OFF")]
    pub clock_off: Option<String>,
    /// Run the hooks in DIR for tasks: programs that only root or this user can change; DIR and --state-dir must not
    /// overlap an --allow-path [default: none, tasks with hooks are refused]
    #[arg(long, value_name = "DIR", env = "TASKD_HOOKS_DIR")]
    pub hooks_dir: Option<PathBuf>,
    /// Run PROGRAM to cut off a lost node, for tasks with --fence command: it gets the node's name and exits 0 when
    /// done
    #[arg(long, value_name = "FILE", env = "TASKD_FENCE_COMMAND")]
    pub fence_command: Option<PathBuf>,
    /// Serve metrics for Prometheus at ADDR:PORT, over plain HTTP [default: not served]
    #[arg(long, value_name = "ADDR", env = "TASKD_METRICS")]
    pub metrics: Option<String>,
    /// Serve the web console at ADDR:PORT, with the certificates and roles of --listen; give every node the same port
    /// [default: not served]
    #[arg(long, value_name = "ADDR", env = "TASKD_CONSOLE")]
    pub console: Option<String>,
    /// Let users of the console pause, resume, cancel, drain and run what their roles allow [default: it only shows]
    #[arg(long, env = "TASKD_CONSOLE_WRITE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub console_write: Option<bool>,
    /// Probe the peers from this address or interface of the storage network; a node that reaches none of them gives up
    /// its roles until it does [default: not probed]
    #[arg(long, value_name = "ADDR|INTERFACE[:PORT]", env = "TASKD_DATA_ADDRESS")]
    pub data_address: Option<String>,
    /// Probe each peer once in this interval: 50ms or more [default: 1s]
    #[arg(long, value_name = "DURATION", env = "TASKD_DATA_CHANNEL_INTERVAL")]
    pub data_channel_interval: Option<String>,
    /// Count the storage network as lost after silence of all peers for so long: at most 60s; checked only with two
    /// peers or more [default: 5s]
    #[arg(long, value_name = "DURATION", env = "TASKD_DATA_CHANNEL_TIMEOUT")]
    pub data_channel_timeout: Option<String>,
    /// Keep this service address on the node that leads, at the port of --listen; needs CAP_NET_ADMIN and CAP_NET_RAW
    /// [default: none]
    #[arg(long, value_name = "ADDR/PREFIX@INTERFACE", env = "TASKD_VIP")]
    pub vip: Option<String>,
    /// Start so many worker threads of the engine, each pinned to a core [default: one for each core]
    #[arg(long, value_name = "N", env = "TASKD_CORES")]
    pub cores: Option<usize>,
    /// Limit the buffers of the engine to so many bytes in all [default: chosen by the engine]
    #[arg(long, value_name = "SIZE", env = "TASKD_MEMORY")]
    pub memory: Option<String>,
    /// Use this certificate (PEM) for listening and calling; read again when a file of certificates changes
    #[arg(long, value_name = "FILE", env = "TASKD_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Use this private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", env = "TASKD_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Accept peers whose certificates one of these authorities (PEM) has signed
    #[arg(long, value_name = "FILE", env = "TASKD_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// Read from FILE (TOML) which certificates are nodes, and what others may do: view, submit, operate or admin; needs
    /// TLS; read again on SIGHUP [default: every certificate has every right]
    #[arg(long, value_name = "FILE", env = "TASKD_ROLES")]
    pub roles: Option<PathBuf>,
    /// Run only tasks that one of the public keys (Ed25519, PEM) in DIR has signed: its files *.pub and *.pem; read again on
    /// SIGHUP; give it to every node [default: signatures do not count]
    #[arg(long, value_name = "DIR", env = "TASKD_ORDER_KEYS")]
    pub order_keys: Option<PathBuf>,
    /// Listen without TLS at addresses that other hosts reach: every host that reaches them gets every right
    #[arg(long, env = "TASKD_INSECURE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure: Option<bool>,
    /// Filter the log on stderr, as RUST_LOG does [default: $RUST_LOG or info]
    #[arg(long, value_name = "FILTER", env = "TASKD_LOG")]
    pub log: Option<String>,
}

/// Validated settings of a `taskd`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node: NodeId,
    /// Coordination service.
    pub store: Store,
    /// Address that it listens at.
    pub listen: SocketAddr,
    /// Address at which others reach it, as `HOST:PORT`; `None`: the address that it listens at.
    pub advertise: Option<String>,
    /// State directory. Absolute.
    pub state_dir: PathBuf,
    /// Allowed folders and devices. Absolute.
    pub allow_paths: Vec<PathBuf>,
    /// Allowed servers, `HOST[:PORT]`; empty: all.
    pub allow_nbd: Vec<String>,
    /// Tasks at once: 1 to 256.
    pub slots: u32,
    /// Labels for operators.
    pub labels: BTreeMap<String, String>,
    /// How long finished tasks are kept.
    pub retention: Duration,
    /// Assumed lifetime of a request in network and server.
    pub quiet_after: Duration,
    /// Largest offset of this node's wall clock from its peers' while it leads.
    pub clock_off: Duration,
    /// Folder of hooks. Absolute.
    pub hooks_dir: Option<PathBuf>,
    /// Fence program. Absolute.
    pub fence_command: Option<PathBuf>,
    /// Address at which metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Web console; `None`: not served.
    pub console: Option<ConsoleConfig>,
    /// Address and timing in the storage network; `None`: not probed.
    pub data: Option<(DataAddress, ProbeTiming)>,
    /// Service address as given: checked when the node is initialised, as that needs the host.
    pub vip: Option<String>,
    /// Worker threads of the engine; `None`: one for each core.
    pub cores: Option<usize>,
    /// Bound of the engine's buffers, in bytes.
    pub memory_bytes: Option<usize>,
    /// TLS of all listeners and calls except the metrics.
    pub tls: Option<Tls>,
    /// Rights of callers; `None`: every caller has every right.
    pub access: Option<AccessControl>,
    /// Keys whose orders are run; `None`: orders need no signature.
    pub order_keys: Option<OrderKeys>,
}

/// Coordination service to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file in the state directory: there is one node.
    Embedded,
    /// A ZooKeeper ensemble.
    ZooKeeper {
        /// `HOST:PORT[,HOST:PORT...][/CHROOT]`.
        address: String,
        /// File with the credentials.
        auth: Option<PathBuf>,
        /// Requested timeout; the ensemble may grant another one.
        session_timeout: Duration,
    },
}

impl RawConfig {
    /// Merges the flags and the environment with the file that they name; the flags win.
    ///
    /// # Errors
    /// `ENotFound`, `EPermission` or `EBadRequest` if the file cannot be read or understood.
    pub fn with_file(self) -> Result<Self> {
        let Some(file) = self.config.clone() else { return Ok(self) };
        let text = read_file(&file)?;
        let of_file: Self = if file.extension().is_some_and(|ending| ending == "json") {
            serde_json::from_str(&text).map_err(|error| error.to_string())
        } else {
            toml::from_str(&text).map_err(|error| error.to_string())
        }
        .map_err(|why| Error::bad_request(format!("{}: {}", file.shown(), why.trim_end())))?;
        Ok(self.over(of_file))
    }

    fn over(self, file: Self) -> Self {
        let list = |flags: Vec<String>, file| if flags.is_empty() { file } else { flags };
        Self {
            config: self.config,
            standalone: self.standalone.or(file.standalone.filter(|_| self.zookeeper.is_none())),
            node_id: self.node_id.or(file.node_id),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            zookeeper: self.zookeeper.or(file.zookeeper.filter(|_| self.standalone != Some(true))),
            zookeeper_auth: self.zookeeper_auth.or(file.zookeeper_auth),
            session_timeout: self.session_timeout.or(file.session_timeout),
            state_dir: self.state_dir.or(file.state_dir),
            allow_path: if self.allow_path.is_empty() { file.allow_path } else { self.allow_path },
            allow_nbd: list(self.allow_nbd, file.allow_nbd),
            slots: self.slots.or(file.slots),
            label: list(self.label, file.label),
            retention: self.retention.or(file.retention),
            quiet_after: self.quiet_after.or(file.quiet_after),
            clock_off: self.clock_off.or(file.clock_off),
            hooks_dir: self.hooks_dir.or(file.hooks_dir),
            fence_command: self.fence_command.or(file.fence_command),
            metrics: self.metrics.or(file.metrics),
            console: self.console.or(file.console),
            console_write: self.console_write.or(file.console_write),
            data_address: self.data_address.or(file.data_address),
            data_channel_interval: self.data_channel_interval.or(file.data_channel_interval),
            data_channel_timeout: self.data_channel_timeout.or(file.data_channel_timeout),
            vip: self.vip.or(file.vip),
            cores: self.cores.or(file.cores),
            memory: self.memory.or(file.memory),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_ca: self.tls_ca.or(file.tls_ca),
            roles: self.roles.or(file.roles),
            order_keys: self.order_keys.or(file.order_keys),
            insecure: self.insecure.or(file.insecure),
            log: self.log.or(file.log),
        }
    }

    /// Returns the settings that can be changed without a restart.
    ///
    /// # Errors
    /// `EBadRequest` naming the flag.
    pub fn limits(&self) -> Result<Limits> {
        Ok(Limits { slots: checked_slots(self.slots)? })
    }

    /// Resolves everything. Reads the environment through `variable`, and the key files.
    ///
    /// # Errors
    /// `EBadRequest` naming the flag; `ENotFound` or `EPermission` for files of keys.
    pub fn resolve(self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Config> {
        let Self {
            config: _,
            standalone,
            node_id,
            listen,
            advertise,
            zookeeper,
            zookeeper_auth,
            session_timeout,
            state_dir,
            allow_path,
            allow_nbd,
            slots,
            label,
            retention,
            quiet_after,
            clock_off,
            hooks_dir,
            fence_command,
            metrics,
            console,
            console_write,
            data_address,
            data_channel_interval,
            data_channel_timeout,
            vip,
            cores,
            memory,
            tls_cert,
            tls_key,
            tls_ca,
            roles,
            order_keys,
            insecure,
            log: _,
        } = self;
        let is_insecure = insecure.unwrap_or(false);
        let is_alone = standalone.unwrap_or(false);
        let tls = Tls::read(&RawTls { tls_cert, tls_key, tls_ca }, &HostClock)?;
        let access = roles.map(|file| access(&file, tls.is_some())).transpose()?;
        let order_keys = order_keys.map(|path| OrderKeys::read(&absolute("--order-keys", &path)?)).transpose()?;
        let listen = address("--listen", listen.as_deref().unwrap_or(LISTEN_DEFAULT))?;
        let metrics = metrics.map(|text| address("--metrics", &text)).transpose()?;
        let is_protected = tls.is_some() || is_insecure;
        protected("--listen", listen, is_protected || listen.ip().is_loopback(), CERTIFICATES)?;
        vip.as_ref().map_or(Ok(()), |vip| protected("--vip", vip.escape_debug(), is_protected, CERTIFICATES))?;
        metrics.map_or(Ok(()), |at| {
            protected("--metrics", at, is_insecure || at.ip().is_loopback(), "an address of the loopback interface")
        })?;
        let console = console.map(|text| address("--console", &text)).transpose()?;
        console.map_or(Ok(()), |at| protected("--console", at, is_protected || at.ip().is_loopback(), CERTIFICATES))?;
        let may_write = console_write.unwrap_or(false);
        if may_write && console.is_none() {
            return Err(Error::bad_request("--console-write without --console: say where the console is served"));
        }
        let config = Config {
            node: node(node_id, is_alone)?,
            store: store(is_alone, zookeeper, zookeeper_auth, session_timeout)?,
            listen,
            advertise: advertise.map(checked_advertise).transpose()?,
            state_dir: state_directory(state_dir.as_deref(), variable)?,
            allow_paths: allow_path.iter().map(|path| absolute("--allow-path", path)).collect::<Result<_>>()?,
            allow_nbd: allow_nbd.into_iter().map(server).collect::<Result<_>>()?,
            slots: checked_slots(slots)?,
            labels: label.iter().map(|label| parse_label(label).map_err(of_flag)).collect::<Result<_>>()?,
            retention: duration("--retention", retention, RETENTION_DEFAULT)?,
            quiet_after: duration("--quiet-after", quiet_after, QUIET_AFTER_DEFAULT)?,
            clock_off: checked_clock_off(clock_off)?,
            hooks_dir: hooks_dir.map(|path| absolute("--hooks-dir", &path)).transpose()?,
            fence_command: fence_command.map(|path| absolute("--fence-command", &path)).transpose()?,
            metrics,
            console: console.map(|address| ConsoleConfig { address, may_write }),
            data: data(data_address, data_channel_interval, data_channel_timeout)?,
            vip,
            cores,
            memory_bytes: memory.map(|text| memory_bytes(&text)).transpose()?,
            tls,
            access,
            order_keys,
        };
        registrable(&config)?;
        Ok(config)
    }
}

/// Reads the roles, which are given to names in certificates.
fn access(file: &Path, has_tls: bool) -> Result<AccessControl> {
    if !has_tls {
        let message = "--roles without TLS: callers are told apart by their certificates";
        return Err(Error::bad_request(message).advise(format!("use {CERTIFICATES}, or leave out --roles")));
    }
    AccessControl::read(&absolute("--roles", file)?)
}

/// Refuses what would not fit into the node's registration, which is one record of the store.
fn registrable(config: &Config) -> Result<()> {
    let paths: Vec<String> = config.allow_paths.iter().map(|path| path.shown().to_string()).collect();
    // What is not known yet is as long as it can get.
    let longest = Registration {
        node: config.node.clone(),
        incarnation: Incarnation("0".repeat(32)),
        boot_id: "0".repeat(36),
        address: config.advertise.clone().unwrap_or_else(|| "0".repeat(HOST_NAME_MAX + ":65535".len())),
        slots: SLOTS_MAX,
        labels: config.labels.clone(),
        allow_paths: paths.clone(),
        allow_nbd: config.allow_nbd.clone(),
        build: String::from(env!("CARGO_PKG_VERSION")),
        stopping: false,
        data: config.data.as_ref().map(|_| SocketAddr::from(([u16::MAX; 8], u16::MAX))),
        restarts: u64::MAX,
        // It is left out where there is no room for it.
        last_end: None,
        op: OpId::fresh(),
    };
    let bytes = longest.encode().len();
    if bytes <= NODE_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "what this node says of itself takes {bytes} bytes, and a record has {NODE_BYTES_MAX}: {} --allow-path take {}, \
         {} --allow-nbd {}, {} --label {}",
        paths.len(),
        paths.iter().map(String::len).sum::<usize>(),
        config.allow_nbd.len(),
        config.allow_nbd.iter().map(String::len).sum::<usize>(),
        config.labels.len(),
        config.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>(),
    );
    Err(Error::bad_request(message).advise("name the folders above them, or fewer and shorter ones"))
}

fn read_file(file: &Path) -> Result<String> {
    let what = || format!("read the configuration {}", file.shown());
    let failed = |error: std::io::Error| Error::io(Side::Caller, Operation::Parse, &error, what());
    if std::fs::metadata(file).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(Error::bad_request(format!("{}: larger than {FILE_BYTES_MAX} bytes", what())));
    }
    let bytes = std::fs::read(file).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| Error::bad_request(format!("{}: not UTF-8 text", what())))
}

fn node(given: Option<String>, is_alone: bool) -> Result<NodeId> {
    match given {
        Some(name) => NodeId::new(name),
        None if is_alone => {
            host_name().and_then(|name| NodeId::new(name).ok()).map_or_else(|| NodeId::new("local"), Ok)
        }
        None => Err(Error::bad_request("a node of a center needs a permanent name")
            .advise("use --node-id NAME, or --standalone for a single node")),
    }
}

/// Returns the name of this host.
pub(crate) fn host_name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

fn checked_clock_off(given: Option<String>) -> Result<Duration> {
    let off = duration("--clock-off", given, CLOCK_OFF_DEFAULT)?;
    if off < CLOCK_OFF_MIN {
        return Err(Error::bad_request("--clock-off must be 10s or more: the clocks are compared over the network"));
    }
    Ok(off)
}

fn store(
    is_alone: bool,
    zookeeper: Option<String>,
    auth: Option<PathBuf>,
    session_timeout: Option<String>,
) -> Result<Store> {
    let session_timeout = duration("--session-timeout", session_timeout, SESSION_TIMEOUT_DEFAULT)?;
    if !(SESSION_TIMEOUT_MIN..=SESSION_TIMEOUT_MAX).contains(&session_timeout) {
        return Err(Error::bad_request("--session-timeout must be from 6s to 120s: leases are computed from it"));
    }
    match (is_alone, zookeeper) {
        (true, None) => Ok(Store::Embedded),
        (false, Some(address)) => Ok(Store::ZooKeeper { address, auth, session_timeout }),
        (true, Some(_)) => Err(Error::bad_request("--standalone and --zookeeper exclude each other")),
        (false, None) => Err(Error::bad_request("no store given: use --zookeeper HOSTS/CHROOT or --standalone")),
    }
}

/// Returns the first address that a `HOST:PORT` stands for.
fn address(flag: &str, text: &str) -> Result<SocketAddr> {
    let refused = |why: String| Error::bad_request(format!("{flag} '{}': {why}", text.escape_debug()));
    HostPort::parse(text).map_err(|why| refused(why.to_owned()))?;
    let mut found = text.to_socket_addrs().map_err(|error| refused(format!("{error}; expected HOST:PORT")))?;
    found.next().ok_or_else(|| refused(String::from("that host has no address")))
}

fn protected(flag: &str, address: impl Display, is_protected: bool, by: &str) -> Result<()> {
    if is_protected {
        return Ok(());
    }
    let message = format!("{flag} {address} would listen to other hosts without TLS");
    Err(Error::bad_request(message).advise(format!("use {by}, or --insecure on a network that you trust")))
}

fn checked_advertise(text: String) -> Result<String> {
    match HostPort::parse_peer(&text) {
        Ok(peer) => Ok(peer.to_string()),
        Err(why) => Err(Error::bad_request(format!("--advertise '{}': {why}", text.escape_debug()))),
    }
}

fn state_directory(flag: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let found = state_dir::locate(flag, variable).ok_or_else(|| {
        let message = "no state directory: HOME is not set; use --state-dir";
        Error::new(Code::Permission, Side::Caller, Operation::Journal, message)
    })?;
    absolute("--state-dir", &found)
}

fn absolute(flag: &str, path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::bad_request(format!("{flag} '{}': {error}", path.shown())))
}

fn server(text: String) -> Result<String> {
    match parse_server(&text) {
        Ok(_) => Ok(text),
        Err(why) => Err(Error::bad_request(format!("--allow-nbd '{}': {why}", text.escape_debug()))),
    }
}

fn of_flag(error: Error) -> Error {
    let message = format!("--label: {}", error.message);
    Error { message, ..error }
}

fn checked_slots(slots: Option<u32>) -> Result<u32> {
    let slots = slots.unwrap_or(SLOTS_DEFAULT);
    if (1..=SLOTS_MAX).contains(&slots) {
        return Ok(slots);
    }
    Err(Error::bad_request(format!("--slots {slots}: must be from 1 to {SLOTS_MAX}; use drain to run none")))
}

fn duration(flag: &str, text: Option<String>, default: Duration) -> Result<Duration> {
    let parse = |text: String| parse_duration(&text).map_err(|why| Error::bad_request(format!("{flag}: {why}")));
    text.map_or(Ok(default), parse)
}

/// Returns address and timing in the storage network, if it is to be probed.
fn data(
    address: Option<String>,
    interval: Option<String>,
    timeout: Option<String>,
) -> Result<Option<(DataAddress, ProbeTiming)>> {
    let Some(address) = address else {
        if interval.is_some() || timeout.is_some() {
            let message = "--data-channel-interval and --data-channel-timeout need --data-address";
            return Err(Error::bad_request(message));
        }
        return Ok(None);
    };
    let interval = duration("--data-channel-interval", interval, DATA_INTERVAL_DEFAULT)?;
    let timeout = duration("--data-channel-timeout", timeout, DATA_TIMEOUT_DEFAULT)?;
    if interval < DATA_INTERVAL_MIN {
        return Err(Error::bad_request("--data-channel-interval must be at least 50ms"));
    }
    if timeout < interval * 3 || timeout > DATA_TIMEOUT_MAX {
        let message = "--data-channel-timeout must be at least three times --data-channel-interval, and at most 60s: \
    a lost packet or two must not cost a node its roles";
        return Err(Error::bad_request(message));
    }
    Ok(Some((DataAddress::parse(&address)?, ProbeTiming { interval, timeout })))
}

fn memory_bytes(text: &str) -> Result<usize> {
    let bytes = parse_size(text).map_err(|why| Error::bad_request(format!("--memory: {why}")))?;
    usize::try_from(bytes)
        .map_err(|_| Error::bad_request(format!("--memory {text} is more than this host can address")))
}

#[cfg(test)]
mod tests;
