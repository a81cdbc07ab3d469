//! One TCP connection, and the means to end it in the midst of things. hyper owns the socket and always ends a
//! connection politely, so the socket it gets is a thin cover that knows how it is to be dropped.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// FIN: the peer reads the end of the connection.
    Close,
    /// RST: the peer reads "connection reset".
    Reset,
}

/// What a request's handler holds of its connection.
#[derive(Debug, Default)]
pub struct Line {
    reset: AtomicBool,
    cut: Notify,
}

impl Line {
    /// Has the connection's task drop the connection, with every request on it.
    pub fn cut(&self, how: Cut) {
        if how == Cut::Reset {
            self.reset.store(true, Ordering::Release);
        }
        self.cut.notify_one();
    }

    pub async fn until_cut(&self) {
        self.cut.notified().await;
    }
}

pub struct Socket {
    stream: TcpStream,
    line: Arc<Line>,
}

impl Socket {
    pub fn new(stream: TcpStream, line: Arc<Line>) -> Self {
        Self { stream, line }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.line.reset.load(Ordering::Acquire) {
            // With no lingering the kernel sends RST instead of FIN; a socket that refuses is closed the usual way.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
