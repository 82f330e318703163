//! A connection of which some bytes were read already, and are to be read again.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, tcp},
};

/// The bytes, then what the stream has.
#[derive(Debug)]
pub struct Prefixed<S = TcpStream> {
    bytes: Vec<u8>,
    stream: S,
}

impl Prefixed {
    pub fn new(stream: TcpStream, bytes: Vec<u8>) -> Self {
        Self { bytes, stream }
    }

    /// Splits it into what is read and what is written.
    pub fn into_split(self) -> (Prefixed<tcp::OwnedReadHalf>, tcp::OwnedWriteHalf) {
        let (stream, writer) = self.stream.into_split();
        let bytes = self.bytes;
        (Prefixed { bytes, stream }, writer)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let len = self.bytes.len().min(buffer.remaining());
        buffer.put_slice(&self.bytes[..len]);
        self.bytes.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
