//! Opens an export: turns its name into a connection in its transmission phase.
//!
//! ```text
//! connect -> greet -> [start_tls -> TLS handshake] -> go -> [relay] -> Session
//! ```
//! All of it happens within one limit. Every way in which it can fail becomes an error that says what to do. Only
//! `EUnreachable` is worth a retry.

use super::bounded_stream::BoundedStream;
use super::negotiate::{
    self, ERR_POLICY, ERR_SHUTDOWN, ERR_UNKNOWN, ERR_UNSUP, ListedExport, Negotiated, NegotiationError, WantedExport,
};
use super::tls::TlsConfig;
use super::uri::{Address, NbdUri};
use super::wait_bound::WaitBound;
use super::{Session, connect, tls_relay};
use crate::error::{Code, Error, Operation, Result, Side};
use nix::errno::Errno;
use rustls::{AlertDescription as Alert, CertificateError, ClientConnection, StreamOwned};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Longest time for a server to list its exports.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// Everything that is needed to connect to an export, again and again.
pub(crate) struct Dialer {
    uri: NbdUri,
    side: Side,
    dirty_bitmap: Option<String>,
    user_timeout: Option<Duration>,
    tls: Option<TlsConfig>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("uri", &self.uri).field("side", &self.side).finish_non_exhaustive()
    }
}

impl Dialer {
    /// Loads certificates, without connecting. Logs a warning if the peer is not to be verified.
    ///
    /// # Errors
    /// `EBadRequest` for certificates that are missing or malformed, and names that no certificate can bear.
    pub(crate) fn new(uri: &NbdUri, side: Side, dirty_bitmap: Option<&str>) -> Result<Self> {
        let tls = uri.tls.as_ref().map(|terms| TlsConfig::load(uri, terms, side)).transpose()?;
        Ok(Self { uri: uri.clone(), side, dirty_bitmap: dirty_bitmap.map(str::to_owned), user_timeout: None, tls })
    }

    /// Sets the time without acknowledgements after which TCP connections fail.
    pub(crate) fn with_user_timeout(self, user_timeout: Option<Duration>) -> Self {
        Self { user_timeout, ..self }
    }

    /// Connects and negotiates within `limit` in all. Ends within 100 ms once `cancelled` returns true.
    ///
    /// # Errors
    /// `EUnreachable` (retryable) for a server that does not answer, refuses, closes or shuts down. `ENotFound` for a
    /// socket, export or bitmap that is not there. `EPermission` where either side does not trust the other, or by the
    /// server's policy. `EUnsupported` for servers that are too old, or insist on TLS or have none, against the URI.
    /// `EProtocol` for a peer that breaks the protocol. `ECancelled`.
    pub(crate) fn dial(&self, limit: Duration, cancelled: &dyn Fn() -> bool) -> Result<Session> {
        self.session(WaitBound::new(limit, cancelled)).map_err(|failure| match cancelled() {
            true => self.refuse(Code::Cancelled, format!("cancelled while connecting to {}", self.uri)),
            false => self.explain(failure),
        })
    }

    fn session(&self, deadline: WaitBound<'_>) -> Result<Session, DialError> {
        let mut transport = self.transport(deadline)?;
        let wanted =
            WantedExport { export: &self.uri.export, dirty_bitmap: self.dirty_bitmap.as_deref(), allocation: true };
        let Negotiated { facts, style, contexts } = negotiate::go(&mut transport, &wanted)?;
        let is_tcp = self.tls.is_none() && matches!(self.uri.address, Address::Tcp { .. });
        let socket = transport.into_socket().map_err(DialError::Relay)?;
        Ok(Session { socket: Arc::new(socket), facts, style, contexts, is_tcp })
    }

    /// A connection on which options may be sent.
    fn transport<'a>(&self, deadline: WaitBound<'a>) -> Result<Transport<'a>, DialError> {
        let socket = connect::connect(&self.uri.address, self.user_timeout, deadline).map_err(DialError::Connect)?;
        let mut stream = BoundedStream::new(socket, deadline);
        negotiate::greet(&mut stream)?;
        let Some(tls) = &self.tls else { return Ok(Transport::Plain(stream)) };
        negotiate::start_tls(&mut stream).map_err(|refusal| match refusal {
            NegotiationError::Refused { message, .. } => DialError::NoTls(message),
            other => DialError::NegotiationError(other),
        })?;
        Ok(Transport::Tls(Box::new(tls.handshake(stream).map_err(NegotiationError::Io)?)))
    }

    fn explain(&self, failure: DialError) -> Error {
        match failure {
            DialError::Connect(error) => self.explain_connect(&error),
            DialError::NoTls(words) => self
                .refuse(Code::Unsupported, format!("{}: the server does not offer TLS: {words}", self.uri))
                .advise("nbd:// or nbd+unix:// connects without, in clear text"),
            DialError::Relay(error) => {
                let what = format!("start the TLS relay for {}", self.uri);
                Error::io(Side::Engine, Operation::Start, &error, what)
            }
            DialError::NegotiationError(NegotiationError::Io(error)) => self.explain_stream(&error),
            DialError::NegotiationError(NegotiationError::Violation(what)) => {
                self.refuse(Code::Protocol, format!("{}: the peer breaks the NBD protocol: {what}", self.uri))
            }
            DialError::NegotiationError(NegotiationError::Refused { code, message }) => {
                self.explain_refusal(code, &message)
            }
            DialError::NegotiationError(NegotiationError::TlsRequired) => self
                .refuse(Code::Unsupported, format!("{}: the server insists on TLS", self.uri))
                .advise("name it by nbds:// or nbds+unix://"),
            DialError::NegotiationError(NegotiationError::NoBitmap(name)) => self
                .refuse(Code::NotFound, format!("{}: the export has no dirty bitmap '{name}'", self.uri))
                .advise("nbdinfo lists what an export has as qemu:dirty-bitmap:NAME"),
        }
    }

    fn explain_connect(&self, error: &io::Error) -> Error {
        let what = format!("connect to {}", self.uri);
        let explained = Error::io(self.side, Operation::Open, error, what);
        let is_unix = matches!(self.uri.address, Address::Unix(_));
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR) if is_unix => explained.advise("is the server running?"),
            Some(Errno::EACCES | Errno::EPERM) if is_unix => explained.advise("it takes the right to write the socket"),
            _ => unreachable_peer(explained),
        }
    }

    /// A connection that ended before its time, or failed in TLS.
    fn explain_stream(&self, error: &io::Error) -> Error {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return self.explain_tls(tls);
        }
        let what = format!("negotiate with {}", self.uri);
        let explained = match error.kind() {
            ErrorKind::UnexpectedEof => {
                self.refuse(Code::Unreachable, format!("{what}: the server closed the connection ({error})"))
            }
            _ => unreachable_peer(Error::io(self.side, Operation::Open, error, what)),
        };
        let has_closed =
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        match &self.tls {
            // Some servers do not say why.
            Some(tls) if has_closed && !tls.has_client_certificate() => explained
                .advise("if it wants to know its clients, tls-certificates=DIRECTORY has to hold client-cert.pem, too"),
            _ => explained,
        }
    }

    fn explain_tls(&self, error: &rustls::Error) -> Error {
        let say = |code, what: &str| self.refuse(code, format!("{}: {what}: {error}", self.uri));
        match error {
            rustls::Error::InvalidCertificate(certificate) => {
                let refused = say(Code::Permission, "the server's certificate is not accepted");
                match certificate {
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                        refused.advise("tls-hostname=NAME in the URI says which name it bears")
                    }
                    _ => refused.advise("tls-certificates=DIRECTORY in the URI says where ca-cert.pem is"),
                }
            }
            rustls::Error::NoCertificatesPresented => say(Code::Permission, "the server shows no certificate"),
            rustls::Error::AlertReceived(alert) if is_certificate_alert(*alert) => {
                say(Code::Permission, "the server does not accept this client")
                    .advise("client-cert.pem and client-key.pem in tls-certificates=DIRECTORY identify it")
            }
            _ => say(Code::Protocol, "TLS failed"),
        }
    }

    fn explain_refusal(&self, code: u32, words: &str) -> Error {
        let export = &self.uri.export;
        match code {
            ERR_UNKNOWN => {
                let name = if export.is_empty() { "default export".to_owned() } else { format!("export '{export}'") };
                self.refuse(Code::NotFound, format!("{}: the server has no {name}: {words}", self.uri))
                    .advise("`blockhaul map` lists what a server has when no export is named")
            }
            ERR_POLICY => self.refuse(Code::Permission, format!("{}: the server refuses: {words}", self.uri)),
            ERR_SHUTDOWN => self.refuse(Code::Unreachable, format!("{}: {words}", self.uri)),
            ERR_UNSUP => self
                .refuse(Code::Unsupported, format!("{}: {words}", self.uri))
                .advise("fixed newstyle negotiation is needed, which servers have had since 2011"),
            _ => self.refuse(Code::Unsupported, format!("{}: the server refuses: {words}", self.uri)),
        }
    }

    fn refuse(&self, code: Code, message: String) -> Error {
        Error::new(code, self.side, Operation::Open, message)
    }
}

/// Lists the exports of a server, with descriptions and sizes where it gives them.
///
/// # Errors
/// As dialing, `EPermission` also for servers that do not list; `EUnreachable` after 30 seconds.
pub fn list_exports(uri: &NbdUri) -> Result<Vec<ListedExport>> {
    let dialer = Dialer::new(uri, Side::Source, None)?;
    let listed = || Ok(negotiate::list(&mut dialer.transport(WaitBound::new(LIST_LIMIT, &|| false))?)?);
    listed().map_err(|failure| dialer.explain(failure))
}

/// Failure to dial, by stage.
enum DialError {
    Connect(io::Error),
    /// The server's words about why.
    NoTls(String),
    NegotiationError(NegotiationError),
    Relay(io::Error),
}

impl From<NegotiationError> for DialError {
    fn from(refusal: NegotiationError) -> Self {
        Self::NegotiationError(refusal)
    }
}

/// A connection during negotiation.
enum Transport<'a> {
    Plain(BoundedStream<'a>),
    Tls(Box<StreamOwned<ClientConnection, BoundedStream<'a>>>),
}

impl Transport<'_> {
    /// The socket of a session: its own, or the plain end of a relay.
    fn into_socket(self) -> io::Result<OwnedFd> {
        match self {
            Self::Plain(stream) => Ok(stream.into_socket()),
            Self::Tls(tls) => {
                let (connection, stream) = tls.into_parts();
                tls_relay::start(connection, stream.into_socket())
            }
        }
    }
}

impl Read for Transport<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Marks the error of a peer that may come back: `EUnreachable`, retryable.
fn unreachable_peer(error: Error) -> Error {
    Error { code: Code::Unreachable, retryable: true, ..error }
}

/// Returns whether the server refuses the client's certificate, or the lack of one, by this alert.
fn is_certificate_alert(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}
