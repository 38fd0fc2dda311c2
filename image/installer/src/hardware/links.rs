//! Network interfaces.

use std::path::Path;

use super::{Finding, Level, read};

/// An interface of a network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its MAC address, in lower case.
    pub mac: String,
    /// Its driver.
    pub driver: String,
    /// A cable leads to something that is on.
    pub carrier: bool,
    /// In Mbit/s, while there is a link and the card says it.
    pub speed_mbit_s: Option<u64>,
}

impl Link {
    /// One line for people.
    pub fn title(&self) -> String {
        let state = match (self.carrier, self.speed_mbit_s) {
            (false, _) => "no link".to_owned(),
            (true, Some(speed)) => format!("{speed} Mbit/s"),
            (true, None) => "link".to_owned(),
        };
        format!("{} ({}, {}, {state})", self.name, self.mac, self.driver)
    }
}

/// The interfaces of cards, by name; no bridges, bonds and the like.
pub fn links(root: &Path) -> Vec<Link> {
    let directory = root.join("sys/class/net");
    let entries = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten();
    let mut links: Vec<Link> = entries
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| link(root, &entry.file_name().into_string().ok()?))
        .collect();
    links.sort_by(|one, other| one.name.cmp(&other.name));
    links
}

fn link(root: &Path, name: &str) -> Option<Link> {
    let file = |file: &str| read(root, &format!("sys/class/net/{name}/{file}"));
    // ARPHRD_ETHER
    if file("type") != "1" {
        return None;
    }
    let driver = root.join(format!("sys/class/net/{name}/device/driver"));
    let driver = std::fs::read_link(driver).ok();
    let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    Some(Link {
        name: name.to_owned(),
        mac: file("address").to_lowercase(),
        driver: driver.unwrap_or_else(|| "unknown driver".to_owned()),
        carrier: file("carrier") == "1",
        speed_mbit_s: file("speed").parse().ok().filter(|speed| *speed > 0),
    })
}

pub(super) fn findings(links: &[Link]) -> Vec<Finding> {
    if links.is_empty() {
        let text =
            "no card is seen: plug one in, or ask for a newer image if its driver is missing";
        return vec![Finding::new(Level::Bad, "Network", text)];
    }
    let linked = links.iter().any(|link| link.carrier);
    let mut findings: Vec<Finding> = links
        .iter()
        .map(|link| match link.speed_mbit_s {
            Some(speed) if link.carrier && speed < 100 => {
                let text = format!("{}: slow, check cable and switch", link.title());
                Finding::new(Level::Warning, "Network", text)
            }
            _ => Finding::new(Level::Good, "Network", link.title()),
        })
        .collect();
    if !linked {
        let text = "no interface has a link: plug in a cable, or check the switch";
        findings.push(Finding::new(Level::Warning, "Network", text));
    }
    findings
}
