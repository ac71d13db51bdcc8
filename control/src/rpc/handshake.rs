//! Completes the TLS handshake of accepted connections, each in a task of its own, so that none delays the next.
//!
//! What always holds: a handshake ends within [`CONNECT_WAIT`] and counts as a connection of the port
//! (`connection_limit`) until then. A refused client is told why. Every request of a connection carries its caller, as it
//! was named by the certificate of the handshake.

use super::connection_limit::{GuardedStream, RequestSeen};
use super::limits::CONNECT_WAIT;
use super::tls::Tls;
use crate::access::{Caller, certificate_name};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::Request;
use tonic::transport::server::Connected;

/// Returns the connection, once the peer has shown a certificate, if it has to; `None` if it has not.
pub(super) async fn shake_hands(stream: GuardedStream, tls: Option<&Tls>) -> Option<Connection> {
    let asked = stream.connect_info();
    let address = stream.peer_addr().ok();
    let stranger = Caller { address, ..Caller::default() };
    let Some(tls) = tls else {
        return Some(Connection { stream: Box::pin(stream), info: ConnectionInfo { asked, caller: stranger } });
    };
    match timeout(CONNECT_WAIT, TlsAcceptor::from(tls.server()).accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let name = shown.and_then(|certificate| certificate_name(certificate)).map(Into::into);
            let is_self = shown.is_some_and(|certificate| tls.is_own(certificate));
            let caller = Caller { name, address, is_self };
            Some(Connection { stream: Box::pin(stream), info: ConnectionInfo { asked, caller } })
        }
        Ok(Err((error, stream))) => {
            tracing::debug!(peer = ?address, %error, "peer refused");
            let _ = timeout(CONNECT_WAIT, hang_up(stream)).await;
            None
        }
        Err(_) => None,
    }
}

/// Closes a connection so that its peer can read what was sent last: one that is closed with unread bytes is reset, and
/// the peer loses the alert.
async fn hang_up(mut stream: GuardedStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// Connection that is ready for the services.
pub(crate) struct Connection {
    stream: Pin<Box<dyn Stream>>,
    info: ConnectionInfo,
}

/// What every request of a connection carries.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) asked: RequestSeen,
    caller: Caller,
}

impl ConnectionInfo {
    /// Returns what a connection of nobody carries.
    pub(crate) fn nobody() -> Self {
        Self { asked: RequestSeen::default(), caller: Caller::default() }
    }
}

/// Returns who makes a request: nobody who is known, if it came another way than through a connection of the port.
pub(super) fn caller_of<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<ConnectionInfo>().map(|info| info.caller.clone()).unwrap_or_default()
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}
