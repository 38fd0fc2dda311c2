//! How a connection begins: the handshake, then the preambles of both sides.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Connection, ConnectionError, Doing};
use crate::migration::protocol::{MAGIC, PREAMBLE_BYTES, Preamble, VERSION};
use crate::migration::tls::{Identity, Session, Step};
use crate::migration::wait::Cancel;

/// How long who is refused may take to hear it.
const FAREWELL: Duration = Duration::from_millis(500);

impl Connection {
    /// The source's side: makes `stream`, which is connected, one of a migration's connections.
    /// With TLS the other side's certificate must carry `server_name`.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn connect(
        stream: TcpStream,
        identity: &Identity,
        server_name: Option<&str>,
        preamble: Preamble,
        deadline: Instant,
        cancel: &Cancel,
    ) -> Result<Self, ConnectionError> {
        let tls = match identity {
            Identity::Plain => None,
            Identity::Tls(identity) => Some(Session::client(identity, server_name.unwrap_or(""))?),
        };
        let mut connection = Self::new(stream, tls, cancel)?;
        connection.handshake(deadline)?;
        connection.send_as(Doing::Greeting, &preamble.encode(), deadline)?;
        let answer = connection.receive_preamble(deadline)?;
        connection.version = answer.version.min(VERSION);
        let echoed = Preamble {
            version: preamble.version,
            ..answer
        };
        if echoed == preamble {
            Ok(connection)
        } else {
            Err(ConnectionError::Foreign)
        }
    }

    /// The destination's side: makes `stream`, which a listener gave, one of a migration's
    /// connections. Which one the preamble tells.
    ///
    /// # Errors
    /// [`ConnectionError`]. The other side has been told, as far as it listens.
    pub fn accept(
        stream: TcpStream,
        identity: &Identity,
        deadline: Instant,
        cancel: &Cancel,
    ) -> Result<(Self, Preamble), ConnectionError> {
        let tls = match identity {
            Identity::Plain => None,
            Identity::Tls(identity) => Some(Session::server(identity)?),
        };
        let mut connection = Self::new(stream, tls, cancel)?;
        match connection.welcome(deadline) {
            Ok(preamble) => Ok((connection, preamble)),
            Err(error) => {
                connection.close(deadline.min(Instant::now() + FAREWELL));
                Err(error)
            }
        }
    }

    fn welcome(&mut self, deadline: Instant) -> Result<Preamble, ConnectionError> {
        self.handshake(deadline)?;
        let preamble = self.receive_preamble(deadline)?;
        self.version = preamble.version.min(VERSION);
        let answer = Preamble {
            version: VERSION,
            ..preamble
        };
        self.send_as(Doing::Greeting, &answer.encode(), deadline)?;
        Ok(preamble)
    }

    fn handshake(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        while self.tls.as_ref().is_some_and(Session::is_handshaking) {
            match self.step(None) {
                Ok(Step::Transmit) => self.flush(Doing::Handshake, deadline)?,
                Ok(Step::Again | Step::Encrypted) => {}
                Ok(Step::Idle) => self.read_handshake(deadline)?,
                Ok(Step::Closed) => return Err(ConnectionError::Closed),
                Err(refusal) => {
                    self.send_alert();
                    return Err(refusal.into());
                }
            }
        }
        self.flush(Doing::Handshake, deadline)?;
        // What came right behind it.
        self.decrypt()
    }

    fn read_handshake(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        self.read_by(Doing::Handshake, deadline)?;
        // Before TLS answers in its own way.
        if MAGIC.starts_with(self.incoming.filled().first_chunk::<4>().unwrap_or(&[0; 4])) {
            return Err(ConnectionError::PlainText);
        }
        Ok(())
    }

    /// Tells the other side why its part of the handshake is refused, if it listens.
    fn send_alert(&mut self) {
        if let Some(session) = &mut self.tls {
            session.take_alert(&mut self.outgoing);
        }
        let _ = self.flush(Doing::Handshake, Instant::now());
    }

    fn receive_preamble(&mut self, deadline: Instant) -> Result<Preamble, ConnectionError> {
        loop {
            // A handshake, or an alert: RFC 8446, 5.1.
            if let [0x15 | 0x16, 3, ..] = self.plain.filled() {
                return Err(ConnectionError::Encrypted);
            }
            if let Some(bytes) = self.plain.filled().first_chunk::<PREAMBLE_BYTES>() {
                let preamble = Preamble::decode(bytes).ok_or(ConnectionError::Foreign)?;
                self.plain.take(PREAMBLE_BYTES);
                return Ok(preamble);
            }
            self.read_by(Doing::Greeting, deadline)?;
        }
    }
}
