//! A Unix socket that hands file descriptors over with the first bytes that are written to it.

use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Most descriptors that one message carries here.
pub const DESCRIPTORS_MAX: usize = 16;

/// The socket.
pub struct WithDescriptors {
    stream: UnixStream,
    /// What is still to be handed over (`SCM_RIGHTS`, unix(7)).
    descriptors: Vec<OwnedFd>,
}

impl WithDescriptors {
    /// `descriptors`, at most [`DESCRIPTORS_MAX`], go with the first bytes.
    pub fn new(stream: UnixStream, descriptors: Vec<OwnedFd>) -> Self {
        Self {
            stream,
            descriptors,
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let descriptors: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        if !message.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            let text = format!("more than {DESCRIPTORS_MAX} descriptors");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let bytes = [IoSlice::new(bytes)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(sendmsg(&self.stream, &bytes, &mut message, flags)?)
    }
}

impl AsyncRead for WithDescriptors {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WithDescriptors {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.descriptors.is_empty() {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || self.send(bytes));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    self.descriptors.clear();
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read, Seek, Write};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn descriptors_come_once_and_with_the_first_bytes() {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        let stream = UnixStream::from_std(here).unwrap();
        let mut stream = WithDescriptors::new(stream, vec![file.into()]);
        stream.write_all(b"one").await.unwrap();
        stream.write_all(b"two").await.unwrap();

        let mut bytes = [0; 3];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        recvmsg(&there, &mut buffers, &mut message, RecvFlags::empty()).unwrap();
        let mut came = Vec::new();
        for message in message.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                came.extend(descriptors);
            }
        }
        assert_eq!((&bytes, came.len()), (b"one", 1));
        let mut file = std::fs::File::from(came.remove(0));
        file.rewind().unwrap();
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");

        let mut buffers = [IoSliceMut::new(&mut bytes)];
        recvmsg(&there, &mut buffers, &mut message, RecvFlags::empty()).unwrap();
        assert_eq!((&bytes, message.drain().count()), (b"two", 0));
    }
}
