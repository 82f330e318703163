//! The socket between the gateway and the proxy: lines of JSON both ways, and descriptors that come
//! with them. Used by both ends.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixStream};

use super::plan::MOST_SOCKETS;

/// The longest line: a plan with the certificates of thousands of sites.
const MOST_BYTES: usize = 64 << 20;

/// Why the other side was not understood, or not reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the control socket fails")]
    Socket(#[from] io::Error),
    #[error("a message on the control socket is not understood")]
    Message(#[from] serde_json::Error),
    #[error("a message on the control socket is longer than {MOST_BYTES} bytes")]
    TooLong,
}

/// One end.
pub struct Control {
    stream: UnixStream,
    received: Vec<u8>,
    /// How much of `received` is known to hold no end of a line.
    searched: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Control {
    /// Takes one end of a socket pair.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let stream = net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            received: Vec::new(),
            searched: 0,
            descriptors: VecDeque::new(),
        })
    }

    /// Sends a message, with descriptors.
    ///
    /// # Errors
    /// [`ControlError::Socket`].
    pub async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ControlError> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let (mut rest, mut descriptors) = (&line[..], descriptors);
        while !rest.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty()
                    && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
                {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let bytes = [IoSlice::new(rest)];
                let flags = SendFlags::NOSIGNAL;
                sendmsg(&self.stream, &bytes, &mut ancillary, flags).map_err(io::Error::from)
            });
            rest = &rest[sent.await?..];
            // They went with the first byte.
            descriptors = &[];
        }
        Ok(())
    }

    /// Waits for a message; none if the other side is gone. What has arrived stays if the wait is
    /// given up.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        loop {
            let unsearched = &self.received[self.searched..];
            if let Some(place) = memchr::memchr(b'\n', unsearched) {
                let end = self.searched + place;
                let message = serde_json::from_slice(&self.received[..end]);
                self.received.drain(..=end);
                self.searched = 0;
                return Ok(Some(message?));
            }
            self.searched = self.received.len();
            if self.searched > MOST_BYTES {
                return Err(ControlError::TooLong);
            }
            let (descriptors, received) = (&mut self.descriptors, &mut self.received);
            let stream = &self.stream;
            let read = stream.async_io(Interest::READABLE, || {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut bytes = [0; 16 << 10];
                let flags = RecvFlags::CMSG_CLOEXEC;
                let buffers = &mut [IoSliceMut::new(&mut bytes)];
                let message = recvmsg(stream, buffers, &mut ancillary, flags)?;
                for part in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(came) = part {
                        descriptors.extend(came);
                    }
                }
                received.extend_from_slice(&bytes[..message.bytes]);
                Ok(message.bytes)
            });
            if read.await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next of the descriptors that came with the messages so far.
    pub fn next_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn messages_and_descriptors_arrive_in_order() {
        let (one, other) = net::UnixStream::pair().unwrap();
        let (one, mut other) = (
            Control::new(one.into()).unwrap(),
            Control::new(other.into()).unwrap(),
        );
        let (end, kept) = net::UnixStream::pair().unwrap();
        let long = "x".repeat(1 << 20);
        let send = async {
            one.send(&"first", &[end.as_fd(), kept.as_fd()])
                .await
                .unwrap();
            one.send(&long, &[]).await.unwrap();
            drop(one);
        };
        let receive = async {
            assert_eq!(other.receive().await.unwrap(), Some("first".to_owned()));
            assert!(other.next_descriptor().is_some() && other.next_descriptor().is_some());
            assert!(other.next_descriptor().is_none());
            assert_eq!(other.receive().await.unwrap(), Some(long.clone()));
            assert_eq!(other.receive::<String>().await.unwrap(), None);
        };
        tokio::join!(send, receive);
    }
}
