//! Waiting for a source, whoever else comes.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::ReceiveError;
use crate::migration::connection::{Connection, ConnectionError};
use crate::migration::protocol::{ANSWER_TIMEOUT, Channel, Hello, Kind, Preamble};
use crate::migration::tls::Identity;
use crate::migration::wait::{Cancel, Ended, wait};

/// Most data connections.
pub const MAX_DATA: usize = 4;
/// How long a stranger may take to say who it is, while others wait.
const GREETING: Duration = Duration::from_secs(5);

/// A source, with all its connections.
pub struct Source {
    /// Messages.
    pub control: Connection,
    /// Pages.
    pub data: Vec<Connection>,
    /// Pages that somebody waits for, if some may be left behind.
    pub urgent: Option<Connection>,
    /// What it is about to send.
    pub hello: Hello,
}

/// Accepts the connections of one source. Who is no source is sent away.
pub fn accept(
    listener: &TcpListener,
    identity: &Identity,
    patience: Duration,
    cancel: &Cancel,
) -> Result<Source, ReceiveError> {
    let mut gate = Gate {
        listener,
        identity,
        cancel,
    };
    listener
        .set_nonblocking(true)
        .map_err(ReceiveError::Accept)?;
    let deadline = Instant::now() + patience;
    loop {
        let stream = gate.next(deadline).map_err(|ended| match ended {
            Ended::Late => ReceiveError::Nobody(patience),
            ended => of_wait(ended),
        })?;
        match gate.welcome(stream) {
            Ok((control, first)) if first.channel == Channel::Control => {
                return gate.complete(control, first);
            }
            Ok(_) => tracing::warn!("a connection came before its control connection"),
            Err(error @ ConnectionError::Cancelled) => return Err(error.into()),
            Err(error) => tracing::warn!("a stranger was sent away: {error}"),
        }
    }
}

fn of_wait(ended: Ended) -> ReceiveError {
    match ended {
        Ended::Cancelled => ConnectionError::Cancelled.into(),
        Ended::Late => ReceiveError::Unexpected("nothing in time"),
        Ended::Host(error) => ReceiveError::Accept(error),
    }
}

struct Gate<'a> {
    listener: &'a TcpListener,
    identity: &'a Identity,
    cancel: &'a Cancel,
}

impl Gate<'_> {
    fn next(&mut self, deadline: Instant) -> Result<TcpStream, Ended> {
        loop {
            let asked = [(self.listener.as_fd(), PollFlags::IN)];
            wait(&asked, deadline, Some(self.cancel))?;
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The client has gone already.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(Ended::Host(error)),
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream) -> Result<(Connection, Preamble), ConnectionError> {
        let deadline = Instant::now() + GREETING;
        Connection::accept(stream, self.identity, deadline, self.cancel)
    }

    /// The data connections of the migration that `first` began, and its greeting.
    fn complete(
        &mut self,
        mut control: Connection,
        first: Preamble,
    ) -> Result<Source, ReceiveError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let (mut data, mut urgent) = (Vec::new(), None);
        // The source greets when it has all its connections.
        while !control.has_buffered() {
            let asked = [
                (control.as_fd(), PollFlags::IN),
                (self.listener.as_fd(), PollFlags::IN),
            ];
            let ready = wait(&asked, deadline, Some(self.cancel)).map_err(of_wait)?;
            if ready & 1 != 0 {
                break;
            }
            let stream = self.next(deadline).map_err(of_wait)?;
            match self.welcome(stream) {
                Ok((connection, preamble)) if preamble.migration == first.migration => {
                    match preamble.channel {
                        Channel::Data if data.len() < MAX_DATA => data.push(connection),
                        Channel::Urgent if urgent.is_none() => urgent = Some(connection),
                        _ => tracing::warn!("one connection too many was sent away"),
                    }
                }
                Ok(_) => tracing::warn!("another migration was sent away"),
                Err(error) => tracing::warn!("a stranger was sent away: {error}"),
            }
        }
        let frame = control.receive(deadline)?;
        if frame.kind != Kind::Hello {
            return Err(ReceiveError::Unexpected("no greeting"));
        }
        let hello: Hello = frame.message()?;
        let is_complete = !data.is_empty()
            && data.len() == usize::from(hello.data_connections)
            && urgent.is_some() == hello.may_leave_pages;
        if !is_complete {
            return Err(ReceiveError::Unexpected("another number of connections"));
        }
        Ok(Source {
            control,
            data,
            urgent,
            hello,
        })
    }
}
