//! How fast a tap may be: token buckets of tc(8).
//!
//! What the guest receives leaves by the tap, where a bucket stands. What it transmits comes in by
//! the tap, and is sent round by way of an interface of its own, `pi…`, at whose exit a bucket
//! stands: so it is held back and not dropped, and TCP finds its pace.

use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::NetworkError;
use super::links::{Links, code, failed};
use super::program::run;
use crate::domain::RateLimit;

/// `ENOENT` and `EINVAL`: there is no such queue.
const NO_QUEUE: [i32; 2] = [-2, -22];
/// Smallest bucket, in bytes: some full frames.
const BURST_MIN: u64 = 16 << 10;
/// How long a packet waits for the bucket at most, in milliseconds.
const LATENCY_MS: u64 = 50;

/// Lets the tap be as fast as `limit` says.
pub(super) async fn apply(links: &Links, tap: &str, limit: &RateLimit) -> Result<(), NetworkError> {
    match limit.rx_kbit_per_s {
        Some(rate) => put_bucket(tap, rate).await?,
        None => delete(links, tap, TcHandle::ROOT).await?,
    }
    match limit.tx_kbit_per_s {
        Some(rate) => send_round(links, tap, rate).await,
        None => remove(links, tap).await,
    }
}

/// Removes what the tap's limit has beside the tap.
pub(super) async fn remove(links: &Links, tap: &str) -> Result<(), NetworkError> {
    let round = round_of(tap);
    if links.find(&round).await?.is_some() {
        delete(links, tap, TcHandle::INGRESS).await?;
        links.remove(&round).await?;
    }
    Ok(())
}

fn round_of(tap: &str) -> String {
    tap.replacen("pt", "pi", 1)
}

async fn send_round(links: &Links, tap: &str, rate: u64) -> Result<(), NetworkError> {
    let round = round_of(tap);
    if links.find(&round).await?.is_none() {
        let link = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb);
        let link = link.name(round.clone()).build();
        links.add(&round, link, "CONFIG_IFB").await?;
    }
    put_bucket(&round, rate).await?;
    let index = links.get(&round).await?.index;
    let up = LinkUnspec::new_with_index(index).up().build();
    links.change(&round, up).await?;
    delete(links, tap, TcHandle::INGRESS).await?;
    let port = links.get(tap).await?.index as i32;
    let queue = links.handle().qdisc().add(port).ingress().execute().await;
    queue.map_err(|source| failed("limit", tap, source))?;
    let mut filters = links.handle().traffic_filter(port);
    let filter = filters.add().parent(0xffff_0000);
    let filter = filter.priority(1).protocol(0x0003_u16.to_be());
    let filter = filter
        .redirect(index)
        .map_err(|source| failed("limit", tap, source))?;
    let added = filter.execute().await;
    added.map_err(|source| failed("limit", tap, source))
}

/// Takes a queue away, if it is there.
async fn delete(links: &Links, interface: &str, parent: TcHandle) -> Result<(), NetworkError> {
    let index = links.get(interface).await?.index;
    let mut request = links.handle().qdisc().del(index as i32);
    request.message_mut().header.parent = parent;
    match request.execute().await {
        Err(error) if code(&error).is_some_and(|code| NO_QUEUE.contains(&code)) => Ok(()),
        deleted => deleted.map_err(|source| failed("lift the limit of", interface, source)),
    }
}

async fn put_bucket(interface: &str, rate: u64) -> Result<(), NetworkError> {
    let arguments = bucket(interface, rate);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("tc", &arguments, "").await
}

/// The bucket holds what passes in 10 ms: the kernel's timers are finer.
fn bucket(interface: &str, rate: u64) -> Vec<String> {
    let burst = (rate * 1000 / 8 / 100).max(BURST_MIN);
    let line = format!(
        "qdisc replace dev {interface} root tbf rate {rate}kbit burst {burst} latency {LATENCY_MS}ms"
    );
    line.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_holds_ten_milliseconds_or_some_frames() {
        let slow = bucket("pt0n0", 1000).join(" ");
        assert_eq!(
            slow,
            "qdisc replace dev pt0n0 root tbf rate 1000kbit burst 16384 latency 50ms"
        );
        let fast = bucket("pt0n0", 1_000_000).join(" ");
        assert!(fast.contains("rate 1000000kbit burst 1250000 "), "{fast}");
        assert_eq!(round_of("pta1a2a3a4b1n0"), "pia1a2a3a4b1n0");
    }
}
