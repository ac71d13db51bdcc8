//! Completes the TLS handshake of accepted connections, each in a task of its own, so that none delays the next.
//!
//! What always holds: a handshake ends within [`CONNECT_WAIT`] and counts as a connection of the port
//! (`connection_limit`) until then. A refused client is told why.

use super::connection_limit::{GuardedStream, RequestSeen};
use super::limits::CONNECT_WAIT;
use super::tls::Tls;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

/// Returns the connection, once the peer has shown a certificate, if it has to; `None` if it has not.
pub(super) async fn shake_hands(stream: GuardedStream, tls: Option<&Tls>) -> Option<Connection> {
    let asked = stream.connect_info();
    let Some(tls) = tls else { return Some(Connection { stream: Box::pin(stream), asked }) };
    let peer = stream.peer_addr();
    match timeout(CONNECT_WAIT, TlsAcceptor::from(tls.server()).accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => Some(Connection { stream: Box::pin(stream), asked }),
        Ok(Err((error, stream))) => {
            tracing::debug!(?peer, %error, "peer refused");
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
pub(super) struct Connection {
    stream: Pin<Box<dyn Stream>>,
    asked: RequestSeen,
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
    type ConnectInfo = RequestSeen;

    fn connect_info(&self) -> RequestSeen {
        self.asked.clone()
    }
}
