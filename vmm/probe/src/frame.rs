//! Ethernet frames: answers to ARP and ICMP echo, and those that the exercises send.

/// Most bytes of a frame.
pub const FRAME_MAX: usize = 1514;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const BROADCAST: Mac = [0xff; 6];
const ETHERNET: usize = 14;
const IP_HEADER: usize = 20;
const PAYLOAD: usize = ETHERNET + IP_HEADER;
/// The probe's pings carry this identifier, its datagrams this port.
const IDENTIFIER: u16 = 0x5064;

/// A hardware address.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Ip = [u8; 4];

/// The two addresses of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Hardware address.
    pub mac: Mac,
    /// IPv4 address.
    pub ip: Ip,
}

/// What a frame is to the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Somebody asks for our hardware address.
    ArpRequest,
    /// Somebody tells theirs.
    ArpReply(Host),
    /// Somebody pings us.
    EchoRequest,
    /// The answer to our ping with this number.
    EchoReply(u16),
    /// A datagram for us.
    Udp,
    /// Anything else.
    Other,
}

/// Says what `frame` means to `me`.
pub fn classify(frame: &[u8], me: Host) -> Meaning {
    if frame.len() < ETHERNET + 28 {
        return Meaning::Other;
    }
    match half(frame, 12) {
        ARP if part(frame, 38) == me.ip => match half(frame, 20) {
            1 => Meaning::ArpRequest,
            2 => Meaning::ArpReply(Host {
                mac: part(frame, 22),
                ip: part(frame, 28),
            }),
            _ => Meaning::Other,
        },
        IPV4 if frame[ETHERNET] == 0x45 && part(frame, 30) == me.ip => {
            match (frame[23], frame[PAYLOAD]) {
                (ICMP, 8) => Meaning::EchoRequest,
                (ICMP, 0) if half(frame, PAYLOAD + 4) == IDENTIFIER => {
                    Meaning::EchoReply(half(frame, PAYLOAD + 6))
                }
                (UDP, _) => Meaning::Udp,
                _ => Meaning::Other,
            }
        }
        _ => Meaning::Other,
    }
}

/// Turns an ARP request into its reply.
pub fn answer_arp(frame: &mut [u8], me: Host) {
    let asker: [u8; 10] = part(frame, 22);
    frame.copy_within(6..12, 0);
    put(frame, 6, &me.mac);
    put(frame, 20, &2u16.to_be_bytes());
    put(frame, 22, &me.mac);
    put(frame, 28, &me.ip);
    put(frame, 32, &asker);
}

/// Turns an echo request into its reply. Only the type changes, and the sum with it.
pub fn answer_echo(frame: &mut [u8]) {
    turn_round(frame);
    frame[PAYLOAD] = 0;
    let sum = u32::from(half(frame, PAYLOAD + 2)) + 0x0800;
    let sum = (sum & 0xffff) + (sum >> 16);
    put(frame, PAYLOAD + 2, &(sum as u16).to_be_bytes());
}

/// Turns a datagram round, ports too; no checksum changes by that.
pub fn answer_udp(frame: &mut [u8]) {
    turn_round(frame);
    let ports: [u8; 4] = part(frame, PAYLOAD);
    put(frame, PAYLOAD, &[ports[2], ports[3], ports[0], ports[1]]);
}

fn turn_round(frame: &mut [u8]) {
    let macs: [u8; 12] = part(frame, 0);
    put(frame, 0, &macs[6..]);
    put(frame, 6, &macs[..6]);
    let ips: [u8; 8] = part(frame, 26);
    put(frame, 26, &ips[4..]);
    put(frame, 30, &ips[..4]);
}

/// Writes an ARP request for `ip`; if that is ours, the announcement that it is. Returns its
/// length.
pub fn arp_request(frame: &mut [u8], me: Host, ip: Ip) -> usize {
    frame[..60].fill(0);
    put(frame, 0, &BROADCAST);
    put(frame, 6, &me.mac);
    put(frame, 12, &ARP.to_be_bytes());
    put(frame, 14, &[0, 1, 8, 0, 6, 4, 0, 1]);
    put(frame, 22, &me.mac);
    put(frame, 28, &me.ip);
    put(frame, 38, &ip);
    60
}

/// Writes a ping with this number.
pub fn echo_request(frame: &mut [u8], me: Host, peer: Host, number: u16) {
    let payload = start_ip(frame, me, peer, ICMP);
    payload[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 0, 0]);
    payload[4..6].copy_from_slice(&IDENTIFIER.to_be_bytes());
    payload[6..8].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(payload);
    payload[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// Writes a datagram as long as `frame`, without a checksum.
pub fn datagram(frame: &mut [u8], me: Host, peer: Host) {
    let payload = start_ip(frame, me, peer, UDP);
    let len = payload.len() as u16;
    payload[..2].copy_from_slice(&IDENTIFIER.to_be_bytes());
    payload[2..4].copy_from_slice(&IDENTIFIER.to_be_bytes());
    payload[4..6].copy_from_slice(&len.to_be_bytes());
    payload[6..8].fill(0);
}

fn start_ip(frame: &mut [u8], me: Host, peer: Host, protocol: u8) -> &mut [u8] {
    let len = (frame.len() - ETHERNET) as u16;
    put(frame, 0, &peer.mac);
    put(frame, 6, &me.mac);
    put(frame, 12, &IPV4.to_be_bytes());
    put(frame, 14, &[0x45, 0]);
    put(frame, 16, &len.to_be_bytes());
    put(frame, 18, &[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    put(frame, 26, &me.ip);
    put(frame, 30, &peer.ip);
    let sum = checksum(&frame[ETHERNET..PAYLOAD]);
    put(frame, 24, &sum.to_be_bytes());
    &mut frame[PAYLOAD..]
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn half(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(part(frame, at))
}

fn part<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    core::array::from_fn(|offset| frame[at + offset])
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Noise;

    const ME: Host = Host {
        mac: [2, 0, 0, 0, 0, 1],
        ip: [10, 0, 0, 2],
    };
    const PEER: Host = Host {
        mac: [2, 0, 0, 0, 0, 9],
        ip: [10, 0, 0, 1],
    };

    #[test]
    fn arp_request_is_answered_to_the_asker() {
        let mut frame = [0; 60];
        assert_eq!(arp_request(&mut frame, PEER, ME.ip), 60);
        assert_eq!(classify(&frame, ME), Meaning::ArpRequest);
        answer_arp(&mut frame, ME);
        assert_eq!(frame[..6], PEER.mac);
        assert_eq!(classify(&frame, PEER), Meaning::ArpReply(ME));
    }

    #[test]
    fn echo_request_is_answered_with_a_right_checksum() {
        let mut frame = [0; 99];
        echo_request(&mut frame, PEER, ME, 0xfff7);
        assert_eq!(classify(&frame, ME), Meaning::EchoRequest);
        assert_eq!(checksum(&frame[PAYLOAD..]), 0);
        answer_echo(&mut frame);
        assert_eq!(classify(&frame, PEER), Meaning::EchoReply(0xfff7));
        assert_eq!(checksum(&frame[PAYLOAD..]), 0);
        assert_eq!(checksum(&frame[ETHERNET..PAYLOAD]), 0);
    }

    #[test]
    fn datagram_is_turned_round() {
        let mut frame = [0; 100];
        datagram(&mut frame, PEER, ME);
        assert_eq!(classify(&frame, ME), Meaning::Udp);
        answer_udp(&mut frame);
        assert_eq!(classify(&frame, PEER), Meaning::Udp);
        assert_eq!(frame[6..12], ME.mac);
    }

    #[test]
    fn short_or_foreign_frames_mean_nothing() {
        assert_eq!(classify(&[0; 41], ME), Meaning::Other);
        assert_eq!(classify(&[0xff; 60], ME), Meaning::Other);
        let mut frame = [0; 60];
        arp_request(&mut frame, PEER, [10, 0, 0, 3]);
        assert_eq!(classify(&frame, ME), Meaning::Other);
    }
    #[test]
    fn frames_of_noise_never_panic() {
        let mut noise = Noise::new(1);
        for _ in 0..100_000 {
            let mut frame = [0; 64];
            for chunk in frame.chunks_mut(8) {
                chunk.copy_from_slice(&noise.next_word().to_le_bytes());
            }
            let kinds: [&[u8]; 3] = [&[8, 6], &[8, 0, 0x45], &[8, 0, 0x46]];
            let kind = kinds[noise.next_word() as usize % 3];
            put(&mut frame, 12, kind);
            put(&mut frame, 30, &ME.ip);
            put(&mut frame, 38, &ME.ip);
            let len = noise.next_word() as usize % 65;
            match classify(&frame[..len], ME) {
                Meaning::ArpRequest => answer_arp(&mut frame[..len], ME),
                Meaning::EchoRequest => answer_echo(&mut frame[..len]),
                Meaning::Udp => answer_udp(&mut frame[..len]),
                _ => {}
            }
        }
    }
}
