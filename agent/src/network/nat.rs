//! NAT by one nftables table of our own, replaced in one transaction.

use super::NetworkError;
use super::program::run;
use crate::config::NetworkConfig;

/// Whether the host forwards IPv4 at all.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Lets guests reach what the host reaches.
pub(super) async fn apply(config: &NetworkConfig) -> Result<(), NetworkError> {
    run("nft", &["-f", "-"], &ruleset(config)).await?;
    let forwards = std::fs::read_to_string(FORWARD).unwrap_or_default();
    if forwards.trim() != "1" {
        tracing::info!("switching IPv4 forwarding on: NAT needs it");
        std::fs::write(FORWARD, "1\n").map_err(|source| NetworkError::Write {
            path: FORWARD.into(),
            source,
        })?;
    }
    Ok(())
}

/// The table's name: one a bridge, so that several agents do not meet.
fn table(config: &NetworkConfig) -> String {
    format!("pindah_{}", config.bridge.replace('-', "_"))
}

/// Added, deleted and made again: right whether or not it was there.
fn ruleset(config: &NetworkConfig) -> String {
    let table = table(config);
    let (range, bridge) = (config.subnet.range(), &config.bridge);
    format!(
        "add table ip {table}
delete table ip {table}
table ip {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {range} oifname != \"{bridge}\" masquerade
    }}
}}
"
    )
}
