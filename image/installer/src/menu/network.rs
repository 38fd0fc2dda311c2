//! The node's network: what the installer asked, once more.

use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::Context as _;

use super::Dialog;
use crate::answers::{self, Addressing, Network};
use crate::hardware::{self, Link};
use crate::install::network_files;
use crate::program;

/// Where systemd-networkd reads it, on the state partition.
const DIRECTORY: &str = "/etc/systemd/network";
/// How the names of the installer's files begin.
const PREFIX: &str = "10-pindah";

/// Asks for all of it and sets it. Nothing changes before the last answer.
///
/// # Errors
/// It cannot be written, or systemd-networkd does not take it.
pub(super) fn change(dialog: &mut Dialog<impl BufRead, impl Write>) -> anyhow::Result<()> {
    let mut links = hardware::links("/".as_ref());
    // Those carry a network of guests.
    links.retain(|link| {
        !Path::new("/sys/class/net")
            .join(&link.name)
            .join("master")
            .exists()
    });
    let Some((link, network)) = ask(dialog, &links)? else {
        return Ok(());
    };
    let gone = write(DIRECTORY.as_ref(), &network, link)?;
    for name in gone {
        // It may be gone already.
        let _ = program::run("networkctl", &["delete", &name], b"");
    }
    program::run("networkctl", &["reload"], b"")?;
    program::run("networkctl", &["reconfigure", &link.name], b"")?;
    // The agent tells the other nodes its address when it starts; guests run on meanwhile.
    program::run(
        "systemctl",
        &["--no-block", "try-restart", "pindahd.service"],
        b"",
    )?;
    dialog.say("It is set. The console shows the address in a moment, or that there is none.")?;
    Ok(())
}

/// None if nothing is to change.
fn ask<'a>(
    dialog: &mut Dialog<impl BufRead, impl Write>,
    links: &'a [Link],
) -> anyhow::Result<Option<(&'a Link, Network)>> {
    if links.is_empty() {
        dialog.say("There is no network card, or all of them are guests'.")?;
        return Ok(None);
    }
    for (number, link) in (1..).zip(links) {
        dialog.say(&format!("  {number}  {}", link.title()))?;
    }
    let link = dialog.ask_for("Interface (empty: change nothing): ", |text| {
        let number = text.parse::<usize>().ok().and_then(|it| it.checked_sub(1));
        let link = number.and_then(|number| links.get(number));
        link.ok_or_else(|| format!("write a number from 1 to {}", links.len()))
    })?;
    let Some(link) = link else {
        return Ok(None);
    };
    let vlan = dialog.ask_for("VLAN (empty: untagged): ", answers::vlan)?;
    let prompt = "Address with prefix, as 192.168.0.11/24 (empty: by DHCP): ";
    let addressing = match dialog.ask_for(prompt, answers::address)? {
        None => Addressing::Dhcp,
        Some((address, prefix)) => {
            let gateway = dialog.ask_for("Gateway (empty: none): ", |text| {
                let gateway = answers::ip("gateway", text)?;
                answers::check_gateway(address, prefix, gateway).map(|()| gateway)
            })?;
            Addressing::Static {
                address,
                prefix,
                gateway,
            }
        }
    };
    let dns = dialog.ask_for(
        "Name servers (empty: none, or DHCP's): ",
        answers::name_servers,
    )?;
    let network = Network {
        vlan,
        addressing,
        dns: dns.unwrap_or_default(),
        ..Network::default()
    };
    let confirmed = dialog.ask("Type yes to set this: ")?;
    Ok((confirmed.as_deref() == Some("yes")).then_some((link, network)))
}

/// Writes it in the place of what was there, and returns the names of VLANs' interfaces that are
/// no more.
fn write(directory: &Path, network: &Network, link: &Link) -> anyhow::Result<Vec<String>> {
    let failed = || format!("cannot write {}", directory.display());
    let mut gone = Vec::new();
    for entry in fs::read_dir(directory).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        if path.extension().is_some_and(|it| it == "netdev") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let named = text.lines().find_map(|line| line.strip_prefix("Name="));
            gone.extend(named.map(str::to_owned));
        }
        fs::remove_file(&path).with_context(failed)?;
    }
    for (name, text) in network_files(network, link) {
        fs::write(directory.join(name), text).with_context(failed)?;
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Vec<Link> {
        let link = |name: &str, mac: &str| Link {
            name: name.to_owned(),
            mac: mac.to_owned(),
            driver: "tg3".to_owned(),
            carrier: true,
            speed_mbit_s: None,
        };
        vec![
            link("eno1", "00:00:00:00:00:01"),
            link("eno2", "00:00:00:00:00:02"),
        ]
    }

    fn asked(typed: &str) -> (Option<(String, Network)>, String) {
        let (links, mut shown) = (links(), Vec::new());
        let answer = ask(&mut Dialog::new(typed.as_bytes(), &mut shown), &links).unwrap();
        let answer = answer.map(|(link, network)| (link.name.clone(), network));
        (answer, String::from_utf8(shown).unwrap())
    }

    #[test]
    fn wrong_answers_are_asked_again() {
        let typed = "3\n2\n5000\n20\n10.0.0.7\n10.0.0.7/24\n10.1.0.1\n10.0.0.1\nx\n10.0.0.1, 9.9.9.9\nyes\n";
        let (answer, shown) = asked(typed);
        let (link, network) = answer.unwrap();
        assert_eq!(
            (&*link, network.vlan, network.dns.len()),
            ("eno2", Some(20), 2)
        );
        let gateway = Some([10, 0, 0, 1].into());
        let (address, prefix) = ([10, 0, 0, 7].into(), 24);
        let expected = Addressing::Static {
            address,
            prefix,
            gateway,
        };
        assert_eq!(network.addressing, expected);
        for message in [
            "from 1 to 2",
            "from 1 to 4094",
            "192.168.0.11/24\"",
            "not in the network",
        ] {
            assert!(shown.contains(message), "no {message:?} in {shown}");
        }
    }

    #[test]
    fn nothing_changes_without_the_word() {
        for typed in ["", "\n", "1\n\n\n\nno\n", "1\n\n\n\n"] {
            assert!(asked(typed).0.is_none(), "{typed:?}");
        }
        let (link, network) = asked("1\n\n\n\nyes\n").0.unwrap();
        assert_eq!((&*link, network), ("eno1", Network::default()));
    }

    #[test]
    fn old_files_go_and_their_vlan_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let names = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        fs::write(directory.path().join("80-dhcp.network"), "").unwrap();
        let vlan = Network {
            vlan: Some(20),
            ..Network::default()
        };
        assert!(
            write(directory.path(), &vlan, &links()[0])
                .unwrap()
                .is_empty()
        );
        assert_eq!(names().len(), 4);
        let gone = write(directory.path(), &Network::default(), &links()[0]).unwrap();
        assert_eq!(gone, ["vlan20"]);
        assert_eq!(names(), ["10-pindah.network", "80-dhcp.network"]);
    }
}
