//! What an iSCSI pool's record may say.

use std::net::{Ipv6Addr, SocketAddrV6};

use super::nfs::is_host;
use super::{Invalid, PoolName, Secret, within};

/// The port of a portal that names none (RFC 7143, section 13.1).
const PORT: u16 = 3260;
/// Most portals of a target.
const PORTALS_MAX: u64 = 8;
/// Longest name of a target, in bytes (RFC 7143, section 4.2.7.1).
const TARGET_MAX: usize = 223;
/// Largest LUN in flat space addressing (SAM-5, section 4.7.7.3).
const LUN_MAX: u64 = 16_383;
/// Longest name of a volume group, in bytes: with each hyphen doubled and a volume's name after it,
/// it must fit into the 127 bytes of a device-mapper name.
const GROUP_MAX: usize = 40;
/// Longest user and password, in bytes (RFC 7143, section 12.1.3: 1024; targets take less).
const CHAP_MAX: usize = 223;

/// Each as `HOST:PORT`, an IPv6 address in brackets.
pub(super) fn portals(given: &[String]) -> Result<Vec<String>, Invalid> {
    if given.is_empty() {
        let must = "must say the portal of a pool of the kind iscsi";
        return Err(Invalid::number("portals", "[]", must));
    }
    within("portals", given.len() as u64, 1..=PORTALS_MAX, "")?;
    let mut portals = Vec::new();
    for (index, text) in given.iter().enumerate() {
        let field = format!("portals[{index}]");
        let portal = portal(&field, text)?;
        if let Some(same) = portals.iter().position(|other| *other == portal) {
            let must = format!("must be another one than portals[{same}]");
            return Err(Invalid::text(field, text, must));
        }
        portals.push(portal);
    }
    Ok(portals)
}

fn portal(field: &str, portal: &str) -> Result<String, Invalid> {
    if let Ok(address) = portal.parse::<SocketAddrV6>() {
        return Ok(address.to_string());
    }
    let bare = portal
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(portal).parse::<Ipv6Addr>() {
        return Ok(format!("[{address}]:{PORT}"));
    }
    let (host, port) = match portal.split_once(':') {
        None => (portal, Some(PORT)),
        Some((host, port)) => (host, port.parse().ok().filter(|&port| port != 0)),
    };
    match port {
        Some(port) if is_host(host) => Ok(format!("{host}:{port}")),
        _ => {
            let must = "must be a host name in lower case or an address, and may have a port, as \
                        in 10.0.0.9:3260";
            Err(Invalid::text(field, portal, must))
        }
    }
}

/// `iqn.…`, `eui.…`, `naa.…`.
pub(super) fn target(target: Option<&str>) -> Result<String, Invalid> {
    let Some(target) = target else {
        let must = "must say the target of a pool of the kind iscsi";
        return Err(Invalid::number("target", "null", must));
    };
    let typed = ["iqn.", "eui.", "naa."];
    let typed = typed
        .iter()
        .any(|prefix| target.len() > prefix.len() && target.starts_with(prefix));
    let valid = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    if typed && target.len() <= TARGET_MAX && target.chars().all(valid) {
        return Ok(target.to_owned());
    }
    let must = "must be a name as in iqn.2026-01.org.example:vm";
    Err(Invalid::text("target", target, must))
}

pub(super) fn lun(lun: Option<u16>) -> Result<Option<u16>, Invalid> {
    if let Some(lun) = lun {
        within("lun", lun.into(), 0..=LUN_MAX, "")?;
    }
    Ok(lun)
}

/// What lvm(8) takes.
pub(super) fn volume_group(group: Option<&str>, pool: &PoolName) -> Result<String, Invalid> {
    let default = format!("pindah-{pool}");
    let group = group.unwrap_or(&default);
    let valid = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    let begins = group.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if begins && group.len() <= GROUP_MAX && group.chars().all(valid) {
        return Ok(group.to_owned());
    }
    let must = "must be 1 to 40 letters, digits and +_.-, the first one a letter or a digit";
    Err(Invalid::text("volume_group", group, must))
}

/// Both or none. iscsiadm takes no blanks in them.
pub(super) fn chap(
    user: Option<&str>,
    password: Option<&Secret>,
) -> Result<Option<String>, Invalid> {
    let (user, password) = match (user, password) {
        (None, None) => return Ok(None),
        (Some(user), Some(password)) => (user, password),
        (user, _) => {
            let missing = if user.is_none() {
                "chap_user"
            } else {
                "chap_password"
            };
            let must = "must be there: a user and his password go together";
            return Err(Invalid::number(missing, "null", must));
        }
    };
    let valid = |text: &str| {
        !text.is_empty() && text.len() <= CHAP_MAX && text.chars().all(|c| c.is_ascii_graphic())
    };
    let must = "must be 1 to 223 printable ASCII characters without spaces";
    if !valid(user) {
        return Err(Invalid::text("chap_user", user, must));
    }
    if !valid(password.reveal()) {
        return Err(Invalid::number("chap_password", "…", must));
    }
    Ok(Some(user.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portal_has_a_port_in_the_end() {
        for (given, expected) in [
            ("san", "san:3260"),
            ("10.0.0.9", "10.0.0.9:3260"),
            ("10.0.0.9:3261", "10.0.0.9:3261"),
            ("fd00::9", "[fd00::9]:3260"),
            ("[fd00::9]", "[fd00::9]:3260"),
            ("[fd00::9]:1", "[fd00::9]:1"),
        ] {
            assert_eq!(portals(&[given.to_owned()]).unwrap(), [expected]);
        }
        for bad in [
            "",
            "SAN",
            "-p",
            "san:",
            "san:0",
            "san:70000",
            "a b",
            "san,1",
            "[::",
        ] {
            assert!(portals(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn target_is_of_a_known_type() {
        for good in [
            "iqn.2026-01.org.example:vm",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
        ] {
            assert_eq!(target(Some(good)).unwrap(), good);
        }
        let long = format!("iqn.{}", "a".repeat(220));
        for bad in [
            "",
            "vm",
            "iqn.",
            "iqn.a b",
            "iqn.a;b",
            "-o",
            "iqn.a/../b",
            &long,
        ] {
            assert!(target(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn volume_group_fits_into_a_device_name() {
        let name = |text: &str| PoolName::try_from(text.to_owned()).unwrap();
        assert_eq!(volume_group(None, &name("san")).unwrap(), "pindah-san");
        assert_eq!(volume_group(Some("vg0"), &name("san")).unwrap(), "vg0");
        assert!(volume_group(None, &name(&"a".repeat(60))).is_err());
        for bad in ["", ".", "..", "-a", "a/b", "a b"] {
            assert!(volume_group(Some(bad), &name("san")).is_err(), "{bad}");
        }
    }

    #[test]
    fn password_is_never_repeated() {
        let password = Secret::from("two words".to_owned());
        let error = chap(Some("u"), Some(&password)).unwrap_err().to_string();
        assert!(error.starts_with("chap_password = …: must be"), "{error}");
        assert!(chap(Some("a b"), Some(&Secret::from("p".to_owned()))).is_err());
    }
}
