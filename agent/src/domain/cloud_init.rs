//! What a guest's cloud-init finds at its first boot.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;

/// Longest text, in bytes.
const TEXT_MAX: usize = 64 << 10;
/// Most SSH keys, and the longest one in bytes.
const KEYS_MAX: usize = 32;
const KEY_MAX: usize = 16 << 10;

/// A NoCloud seed (cloud-init's documentation, "NoCloud").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CloudInit {
    /// User data: `#cloud-config` and YAML, or a script from `#!` on; at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// SSH keys of the default user, at most 32, one a line as in `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// Network configuration, YAML of version 1 or 2; absent: DHCP on the first interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_config: Option<String>,
}

impl CloudInit {
    /// Refuses what no cloud-init would take.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn check(&self) -> Result<(), Invalid> {
        if let Some(text) = &self.user_data {
            let field = "cloud_init.user_data";
            check_text(field, text)?;
            if !text.starts_with('#') {
                let must = "must begin with #cloud-config, #! or another of cloud-init's headers";
                return Err(Invalid::text(field, text, must));
            }
        }
        if let Some(text) = &self.network_config {
            check_text("cloud_init.network_config", text)?;
        }
        if self.ssh_keys.len() > KEYS_MAX {
            let count = self.ssh_keys.len();
            let must = format!("must be at most {KEYS_MAX} keys");
            return Err(Invalid::number("cloud_init.ssh_keys", count, must));
        }
        self.ssh_keys.iter().try_for_each(|key| check_key(key))
    }
}

fn check_text(field: &str, text: &str) -> Result<(), Invalid> {
    let printable = |c: char| matches!(c, '\n' | '\r' | '\t') || !c.is_control();
    if text.len() <= TEXT_MAX && text.chars().all(printable) {
        return Ok(());
    }
    let must = "must be at most 64 KiB of text without control characters";
    Err(Invalid::text(field, text, must))
}

fn check_key(key: &str) -> Result<(), Invalid> {
    let mut words = key.split(' ');
    let kind = words.next().unwrap_or_default();
    let is_kind = ["ssh-", "ecdsa-", "sk-"]
        .iter()
        .any(|start| kind.starts_with(start));
    let has_body = words.next().is_some_and(|body| body.len() >= 16);
    let printable = key.chars().all(|c| !c.is_control());
    if is_kind && has_body && printable && key.len() <= KEY_MAX {
        return Ok(());
    }
    let must = "must be a public key, as in ssh-ed25519 AAAA… name";
    Err(Invalid::text("cloud_init.ssh_keys", key, must))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_cloud_init_takes_is_refused() {
        let good = CloudInit {
            user_data: Some("#cloud-config\npackages: [nginx]\n".to_owned()),
            ssh_keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA siti@office".to_owned()],
            network_config: None,
        };
        assert_eq!(good.check(), Ok(()));
        let user_data = |text: &str| CloudInit {
            user_data: Some(text.to_owned()),
            ..good.clone()
        };
        let key = |text: &str| CloudInit {
            ssh_keys: vec![text.to_owned()],
            ..good.clone()
        };
        let large = format!("#cloud-config\n{}", "x".repeat(TEXT_MAX));
        for (bad, expected) in [
            (
                user_data("packages: [nginx]"),
                "must begin with #cloud-config",
            ),
            (user_data("#!\u{0}"), "without control characters"),
            (user_data(&large), "at most 64 KiB"),
            (
                key("-----BEGIN OPENSSH PRIVATE KEY-----"),
                "must be a public key",
            ),
            (
                key("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA\nx"),
                "must be a public key",
            ),
            (key("ssh-rsa"), "must be a public key"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
