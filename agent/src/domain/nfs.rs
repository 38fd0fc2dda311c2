//! What an NFS pool's record may say.

use std::net::IpAddr;
use std::path::{Component, Path};

use super::{Invalid, is_label};

/// Longest path of an export, in bytes.
const EXPORT_MAX: usize = 255;
/// Longest options, in bytes.
const OPTIONS_MAX: usize = 255;
/// Options of nfs(5) that an administrator may set: none that lets the client give up, see another
/// version of the protocol, or trust what it has not found.
const OPTIONS: [&str; 22] = [
    "acdirmax",
    "acdirmin",
    "acregmax",
    "acregmin",
    "actimeo",
    "clientaddr",
    "max_connect",
    "nconnect",
    "noac",
    "noatime",
    "nordirplus",
    "noresvport",
    "nosharecache",
    "port",
    "proto",
    "rdirplus",
    "resvport",
    "retrans",
    "rsize",
    "sec",
    "timeo",
    "wsize",
];
/// Needed by [`OPTIONS`], and for encryption.
const XPRTSEC: &str = "xprtsec";

/// A host name or an address.
pub(super) fn server(server: Option<&str>) -> Result<String, Invalid> {
    let Some(server) = server else {
        let must = "must say the server of a pool of the kind nfs";
        return Err(Invalid::number("server", "null", must));
    };
    if is_host(server) {
        return Ok(server.to_owned());
    }
    let must = "must be a host name in lower case or an address";
    Err(Invalid::text("server", server, must))
}

/// Whether it is a host name or an address.
pub(super) fn is_host(text: &str) -> bool {
    let named = !text.is_empty()
        && text.len() <= 253
        && text
            .split('.')
            .all(|part| is_label(part) || is_number_label(part));
    named || text.parse::<IpAddr>().is_ok()
}

/// A version of the protocol. With 3 a disk's locks would be those of another protocol, which a
/// server forgets when it restarts, and a request that is sent again may be carried out twice.
pub(super) fn version(version: Option<u8>, read_only: bool) -> Result<Option<u8>, Invalid> {
    match version {
        Some(3) if !read_only => {
            let must = "must be 4 for a pool that holds disks; with 3 it can be read_only";
            Err(Invalid::number("version", 3, must))
        }
        None | Some(3 | 4) => Ok(version),
        Some(other) => Err(Invalid::number("version", other, "must be 3 or 4")),
    }
}

/// As in `1and1.example`.
fn is_number_label(part: &str) -> bool {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !part.is_empty()
        && part.len() <= 63
        && part.starts_with(|c: char| c.is_ascii_digit())
        && !part.ends_with('-')
        && part.chars().all(valid)
}

/// An absolute path without detours, of printable characters.
pub(super) fn export(export: Option<&str>) -> Result<String, Invalid> {
    let Some(export) = export else {
        let must = "must say the export of a pool of the kind nfs";
        return Err(Invalid::number("export", "null", must));
    };
    let path = Path::new(export);
    let straight = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let printable = export.chars().all(|c| c.is_ascii_graphic() && c != '\\');
    if path.is_absolute() && straight && printable && export.len() <= EXPORT_MAX {
        let tidy: std::path::PathBuf = path.components().collect();
        return Ok(tidy.display().to_string());
    }
    let must = "must be an absolute path on the server of at most 255 printable ASCII characters, \
                without spaces and ..";
    Err(Invalid::text("export", export, must))
}

/// Options that [`OPTIONS`] has.
pub(super) fn options(options: Option<&str>) -> Result<String, Invalid> {
    let options = options.unwrap_or_default();
    let valid = |option: &str| {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value_valid = value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c));
        value_valid && (OPTIONS.contains(&name) || name == XPRTSEC)
    };
    let all_valid = options.is_empty() || options.split(',').all(valid);
    if all_valid && options.len() <= OPTIONS_MAX {
        return Ok(options.to_owned());
    }
    let must = format!(
        "must be options of nfs(5), separated by commas, out of {} and {XPRTSEC}; the others are \
         Pindah's to choose",
        OPTIONS.join(", ")
    );
    Err(Invalid::text("options", options, must))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_a_name_or_an_address() {
        for good in ["nas", "nas.example.org", "1nas.lan", "10.0.0.9", "fd00::9"] {
            assert_eq!(server(Some(good)).unwrap(), good);
        }
        for bad in [
            "",
            "-o",
            "nas:/x",
            "NAS",
            "nas..org",
            "a b",
            "nas,soft",
            "[fd00::9]",
        ] {
            assert!(server(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn export_is_a_path_that_mount_takes_as_one() {
        assert_eq!(export(Some("/srv//vm/")).unwrap(), "/srv/vm");
        assert_eq!(export(Some("/")).unwrap(), "/");
        for bad in ["", "srv", "/a/../b", "/a b", "/a\n", "/a\\040", "/ä"] {
            assert!(export(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn option_that_could_lose_data_is_refused() {
        assert_eq!(options(None).unwrap(), "");
        let good = "nconnect=4,sec=krb5p,xprtsec=tls,proto=tcp6";
        assert_eq!(options(Some(good)).unwrap(), good);
        for bad in [
            "soft",
            "softerr",
            "vers=3",
            "nfsvers=4.0",
            "lookupcache=all",
            "nolock",
            "local_lock=all",
            "suid",
            "remount",
            "bind",
            "x-systemd.automount",
            "rsize=1,,wsize=1",
            "rsize=$(id)",
            "context=\"a,b\"",
        ] {
            let message = options(Some(bad)).unwrap_err().to_string();
            assert!(message.contains("Pindah's to choose"), "{message}");
        }
    }
}
