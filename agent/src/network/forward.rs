//! What the host forwards for guests: one nftables table of our own a bridge, replaced in one
//! transaction.

use super::NetworkError;
use super::program::run;
use crate::domain::Subnet;

/// Whether the host forwards IPv4 at all.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// How guests of a bridge reach what the host reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    /// In the host's name.
    Nat,
    /// By their own addresses, and are reached by them; what comes from others' addresses stays.
    Routed,
}

/// Forwards for the guests of `bridge`, whose addresses are those of `subnet`.
pub(super) async fn apply(
    bridge: &str,
    subnet: Subnet,
    forward: Forward,
) -> Result<(), NetworkError> {
    run("nft", &["-f", "-"], &ruleset(bridge, subnet, forward)).await?;
    let forwards = std::fs::read_to_string(FORWARD).unwrap_or_default();
    if forwards.trim() != "1" {
        tracing::info!("switching IPv4 forwarding on: {bridge} needs it");
        std::fs::write(FORWARD, "1\n").map_err(|source| NetworkError::Write {
            path: FORWARD.into(),
            source,
        })?;
    }
    Ok(())
}

/// Does so no longer. That the host forwards at all stays: it may be wanted by others.
pub(super) async fn remove(bridge: &str) -> Result<(), NetworkError> {
    run("nft", &["-f", "-"], &removal(bridge)).await
}

/// The table's name: one a bridge, so that several agents do not meet.
fn table(bridge: &str) -> String {
    format!("pindah_{}", bridge.replace('-', "_"))
}

/// Added and deleted: right whether or not it was there.
fn removal(bridge: &str) -> String {
    let table = table(bridge);
    format!("add table ip {table}\ndelete table ip {table}\n")
}

fn ruleset(bridge: &str, subnet: Subnet, forward: Forward) -> String {
    let (table, range) = (table(bridge), subnet.range());
    let chain = match forward {
        Forward::Nat => format!(
            "chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {range} oifname != \"{bridge}\" masquerade
    }}"
        ),
        Forward::Routed => format!(
            "chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname \"{bridge}\" ip saddr != {range} drop
    }}"
        ),
    };
    format!("{}table ip {table} {{\n    {chain}\n}}\n", removal(bridge))
}
