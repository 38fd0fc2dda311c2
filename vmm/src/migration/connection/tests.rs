//! Two sides over loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use super::*;
use crate::migration::protocol::{Ack, Channel, Preamble, VERSION};
use crate::migration::tls::{Identity, TlsIdentity};

const NAME: &str = "node2.example";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    fn identity_with(&self, adjust: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
        adjust(&mut params);
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let authorities = self.pem.as_bytes();
        let identity = TlsIdentity::from_pem(
            authorities,
            chain.as_bytes(),
            key.serialize_pem().as_bytes(),
        );
        Identity::Tls(identity.unwrap())
    }

    fn identity(&self) -> Identity {
        self.identity_with(|_| ())
    }
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn cancel() -> Cancel {
    Cancel::new().unwrap()
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (source, listener.accept().unwrap().0)
}

fn preamble() -> Preamble {
    Preamble {
        version: VERSION,
        channel: Channel::Data,
        number: 2,
        migration: [7; 16],
    }
}

type Outcome = Result<Connection, ConnectionError>;

/// What both sides come to: the source's and the destination's.
fn meet(source: Identity, name: &'static str, destination: &Identity) -> (Outcome, Outcome) {
    let (out, arrived) = streams();
    let thread = thread::spawn(move || {
        Connection::connect(out, &source, Some(name), preamble(), soon(), &cancel())
    });
    let accepted = Connection::accept(arrived, destination, soon(), &cancel());
    let accepted = accepted.map(|(connection, greeting)| {
        assert_eq!(greeting, preamble());
        connection
    });
    (thread.join().unwrap(), accepted)
}

fn pair(identity: &Identity) -> (Connection, Connection) {
    let (source, destination) = meet(identity.clone(), NAME, identity);
    (source.unwrap(), destination.unwrap())
}

fn both() -> [Identity; 2] {
    [Identity::Plain, AUTHORITY.identity()]
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 / 3) as u8).collect()
}

fn says(outcome: Outcome, expected: &str) {
    let error = outcome.map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(expected), "{text:?} lacks {expected:?}");
}

#[test]
fn frames_of_all_sizes_arrive_whole_and_in_order() {
    for identity in both() {
        let (mut source, mut destination) = pair(&identity);
        let limit = Kind::Pages.limit();
        let sizes = [0, 1, 4095, 16 << 10, 65_536, 300_000, limit, 3, limit];
        let state = pattern(20 << 20);
        let sent = state.clone();
        let sender = thread::spawn(move || {
            for size in sizes {
                source
                    .send_frame(Kind::Pages, &pattern(size), soon())
                    .unwrap();
            }
            source.send_frame(Kind::State, &sent, soon()).unwrap();
            source
        });
        for size in sizes {
            let frame = destination.receive(soon()).unwrap();
            assert_eq!((frame.kind, frame.body), (Kind::Pages, &*pattern(size)));
        }
        let frame = destination.receive(soon()).unwrap();
        assert!(frame.kind == Kind::State && frame.body == state);
        assert!(sender.join().unwrap().wire_bytes() > 20 << 20);
    }
}

#[test]
fn messages_go_both_ways_and_nothing_is_made_up() {
    for identity in both() {
        let (mut source, mut destination) = pair(&identity);
        assert_eq!(destination.try_receive().unwrap(), None);
        assert!(!destination.has_buffered());
        let ack = Ack { bytes: 1 << 40 };
        for _ in 0..2 {
            destination.send_message(Kind::Ack, &ack, soon()).unwrap();
        }
        let got = source.receive(soon()).unwrap();
        assert_eq!(got.message::<Ack>().unwrap(), ack);
        source.receive(soon()).unwrap();
        assert!(!source.has_buffered());
        source.send_frame(Kind::Flush, &[], soon()).unwrap();
        source.send_frame(Kind::Flush, &[], soon()).unwrap();
        let ready = wait_readable(&[&source, &destination], soon(), None).unwrap();
        assert_eq!(ready, 0b10);
        assert_eq!(destination.receive(soon()).unwrap().kind, Kind::Flush);
        destination.receive(soon()).unwrap();
        assert_eq!(
            (source.version(), destination.version()),
            (VERSION, VERSION)
        );
    }
}

#[test]
fn frame_that_is_in_the_buffer_already_is_ready() {
    let (mut source, mut destination) = pair(&Identity::Plain);
    let frame = FrameHeader {
        kind: Kind::Flush,
        length: 0,
    }
    .encode();
    source.send(&frame.repeat(2), soon()).unwrap();
    destination.receive(soon()).unwrap();
    assert!(destination.has_buffered());
    let late = Instant::now() + Duration::from_secs(60);
    assert_eq!(
        wait_readable(&[&source, &destination], late, None).unwrap(),
        0b10
    );
    assert!(destination.try_receive().unwrap().is_some());
}

#[test]
fn bytes_that_come_one_at_a_time_make_the_same_frame() {
    let (mut raw, arrived) = streams();
    raw.set_nodelay(true).unwrap();
    let sender = thread::spawn(move || {
        let header = FrameHeader {
            kind: Kind::Pages,
            length: 100,
        }
        .encode();
        let bytes = [&preamble().encode()[..], &header, &pattern(100)].concat();
        for byte in bytes {
            raw.write_all(&[byte]).unwrap();
            thread::yield_now();
        }
        raw
    });
    let accepted = Connection::accept(arrived, &Identity::Plain, soon(), &cancel());
    let mut connection = accepted.unwrap().0;
    assert_eq!(connection.receive(soon()).unwrap().body, pattern(100));
    drop(sender.join().unwrap());
    let closed = connection.receive(soon());
    assert!(matches!(closed, Err(ConnectionError::Closed)));
}

#[test]
fn strangers_are_refused_and_both_sides_hear_why() {
    let ours = AUTHORITY.identity();
    let foreign = Authority::new();
    let expired = AUTHORITY.identity_with(|params| params.not_after = date_time_ymd(2001, 1, 1));
    let early = AUTHORITY.identity_with(|params| params.not_before = date_time_ymd(3001, 1, 1));
    let start = Instant::now();

    let (source, destination) = meet(foreign.identity(), NAME, &ours);
    says(source, "not trusted here");
    says(destination, "does not trust the authority of our");

    let (source, destination) = meet(ours.clone(), "node3.example", &ours);
    says(source, "has another name");
    says(destination, "not what it expects");

    for (identity, here, there) in [
        (&expired, "has expired", "our certificate has expired"),
        (&early, "are the clocks right?", "the other side refuses"),
    ] {
        let (source, destination) = meet(ours.clone(), NAME, identity);
        says(source, here);
        says(destination, there);
        let (source, destination) = meet(identity.clone(), NAME, &ours);
        says(source, there);
        says(destination, here);
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn source_that_trusts_the_destination_hears_that_it_is_not_trusted() {
    // It has a certificate of another authority, and knows ours.
    let foreign = Authority::new();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([NAME.to_owned()]).unwrap();
    let chain = params.signed_by(&key, &foreign.issuer).unwrap().pem();
    let mixed = TlsIdentity::from_pem(
        AUTHORITY.pem.as_bytes(),
        chain.as_bytes(),
        key.serialize_pem().as_bytes(),
    );
    let (source, destination) = meet(Identity::Tls(mixed.unwrap()), NAME, &AUTHORITY.identity());
    says(source, "does not trust the authority of our certificate");
    says(destination, "not trusted here");
}

#[test]
fn source_without_a_certificate_is_refused() {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let root = rustls::pki_types::CertificateDer::from_pem_slice(AUTHORITY.pem.as_bytes());
    roots.add(root.unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    let (mut out, arrived) = streams();
    let client = thread::spawn(move || {
        let name = NAME.try_into().unwrap();
        let mut session = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut stream = rustls::Stream::new(&mut session, &mut out);
        let _ = stream.write_all(&preamble().encode());
        stream.read(&mut [0]).unwrap_err().to_string()
    });
    let identity = AUTHORITY.identity();
    let refused = Connection::accept(arrived, &identity, soon(), &cancel());
    says(refused.map(|(c, _)| c), "shows no certificate");
    assert!(client.join().unwrap().contains("CertificateRequired"));
}

#[test]
fn sides_that_disagree_on_encryption_say_so() {
    let ours = AUTHORITY.identity();
    let (source, destination) = meet(Identity::Plain, NAME, &ours);
    assert!(matches!(destination, Err(ConnectionError::PlainText)));
    assert!(matches!(source, Err(ConnectionError::Closed)));
    let (source, destination) = meet(ours, NAME, &Identity::Plain);
    assert!(matches!(destination, Err(ConnectionError::Encrypted)));
    assert!(matches!(source, Err(ConnectionError::Closed)));
}

#[test]
fn garbage_is_no_migration() {
    for (identity, garbage, expected) in [
        (
            Identity::Plain,
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n......."[..],
            "no Pindah migration",
        ),
        (
            AUTHORITY.identity(),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "not TLS",
        ),
        (
            AUTHORITY.identity(),
            &[0x16, 3, 1, 0xff, 0xff, 0, 0, 0],
            "not TLS",
        ),
    ] {
        let (mut raw, arrived) = streams();
        raw.write_all(garbage).unwrap();
        let closer = thread::spawn(move || {
            let _ = raw.read_to_end(&mut Vec::new());
        });
        let outcome = Connection::accept(arrived, &identity, soon(), &cancel());
        says(outcome.map(|(connection, _)| connection), expected);
        closer.join().unwrap();
    }
}

#[test]
fn frames_that_cannot_be_end_the_connection_before_anything_is_allocated() {
    for (header, expected) in [
        ([99, 0, 0, 0, 0, 0, 0, 0], "no kind 99"),
        (
            [33, 0, 0, 0, 1, 0, 0, 0],
            "Flush with 1 bytes, of which 0 are allowed",
        ),
        (
            [32, 0, 0, 0, 1, 0, 8, 0],
            "Pages with 524289 bytes, of which 524288",
        ),
        ([32, 1, 0, 0, 1, 0, 0, 0], "reserved bytes"),
    ] {
        let (mut source, mut destination) = pair(&Identity::Plain);
        source.send(&header, soon()).unwrap();
        let why = destination.receive(soon()).unwrap_err().to_string();
        assert!(why.contains(expected), "{why}");
    }
    let (mut source, _destination) = pair(&Identity::Plain);
    let long = source.send_frame(Kind::Ack, &[0; 1025], soon());
    assert!(matches!(long, Err(ConnectionError::TooLong { .. })));
    source.send_frame(Kind::Flush, &[], soon()).unwrap();
}

#[test]
fn connection_that_ends_within_a_frame_is_closed() {
    for identity in both() {
        let (mut source, mut destination) = pair(&identity);
        let header = FrameHeader {
            kind: Kind::Pages,
            length: 100,
        }
        .encode();
        source.send(&header, soon()).unwrap();
        source.send(&[0; 50], soon()).unwrap();
        drop(source);
        let closed = destination.receive(soon());
        assert!(matches!(closed, Err(ConnectionError::Closed)));
        let gone = destination.send(&vec![0; 1 << 20], soon());
        assert!(matches!(gone, Err(ConnectionError::Closed)));
    }
}

#[test]
fn silence_times_out_and_says_what_was_waited_for() {
    let short = || Instant::now() + Duration::from_millis(20);
    for (identity, expected) in both().iter().zip([Doing::Greeting, Doing::Handshake]) {
        let (_raw, arrived) = streams();
        let late = Connection::accept(arrived, identity, short(), &cancel());
        let late = late.map(|_| ()).unwrap_err();
        assert!(matches!(late, ConnectionError::TimedOut { doing } if doing == expected));
        let (mut source, mut destination) = pair(identity);
        let late = destination.receive(short()).unwrap_err().to_string();
        assert_eq!(late, "timed out waiting for a message");
        // Nothing is lost by that.
        source.send_frame(Kind::Flush, &[], soon()).unwrap();
        destination.receive(soon()).unwrap();
        let late = source.send(&vec![0; 64 << 20], short()).unwrap_err();
        assert_eq!(late.to_string(), "timed out sending");
        let torn = source.send_frame(Kind::Flush, &[], soon());
        assert!(matches!(torn, Err(ConnectionError::Torn)));
    }
}

#[test]
fn cancel_ends_a_send_that_is_blocked_and_may_be_ignored_afterwards() {
    for identity in both() {
        let (out, arrived) = streams();
        let stop = cancel();
        let (source_stop, source_identity) = (stop.clone(), identity.clone());
        let source = thread::spawn(move || {
            let mut source = Connection::connect(
                out,
                &source_identity,
                Some(NAME),
                preamble(),
                soon(),
                &source_stop,
            )?;
            let start = Instant::now();
            let cancelled = source.send(&vec![0; 64 << 20], start + Duration::from_secs(60));
            assert!(matches!(cancelled, Err(ConnectionError::Cancelled)));
            assert!(start.elapsed() < Duration::from_secs(10));
            Ok::<_, ConnectionError>(source)
        });
        let accepted = Connection::accept(arrived, &identity, soon(), &stop);
        let mut destination = accepted.unwrap().0;
        thread::sleep(Duration::from_millis(50));
        stop.set();
        let _source = source.join().unwrap().unwrap();
        assert!(matches!(
            destination.try_receive(),
            Err(ConnectionError::Cancelled)
        ));
        destination.ignore_cancel();
        destination.send_frame(Kind::Flush, &[], soon()).unwrap();
    }
}

#[test]
fn last_words_arrive_although_the_other_side_is_still_sending() {
    for identity in both() {
        let (mut source, mut destination) = pair(&identity);
        source.send(&[0; 100], soon()).unwrap();
        destination
            .send_frame(Kind::Rehearsed, &[], soon())
            .unwrap();
        let closing = thread::spawn(move || destination.close(soon()));
        let frame = source.receive(soon()).unwrap();
        assert_eq!(frame.kind, Kind::Rehearsed);
        drop(source);
        closing.join().unwrap();
    }
}

/// By hand, in release: what one core a side carries over loopback.
#[test]
#[ignore = "measures"]
fn throughput() {
    for (name, identity) in ["plain", "TLS"].iter().zip(both()) {
        let (mut source, mut destination) = pair(&identity);
        let total = 8_u64 << 30;
        let late = Instant::now() + Duration::from_secs(120);
        let body = pattern(64 << 10);
        let header = FrameHeader {
            kind: Kind::Pages,
            length: body.len(),
        }
        .encode();
        let frame = [&header[..], &body].concat();
        let start = Instant::now();
        let sender = thread::spawn(move || {
            for _ in 0..total / frame.len() as u64 {
                source.send(&frame, late).unwrap();
            }
            source.send_frame(Kind::Flush, &[], late).unwrap();
            source
        });
        while destination.receive(late).unwrap().kind != Kind::Flush {}
        let rate = total as f64 / start.elapsed().as_secs_f64() / 1e9;
        sender.join().unwrap();
        println!("{name}: {rate:.2} GB/s");
    }
}
