//! The pages, what each asks, and what it makes of the answers.

use crate::answers::{self, Addressing, Answers, Cluster, DiskWish, End, Network, Nic, Root};
use crate::install::choose_link;
use crate::machine::Machine;

use super::form::{Form, Row};

/// The pages in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// What the machine has.
    Hardware,
    /// Which disk.
    Disk,
    /// How it is reached.
    Network,
    /// What it is called, and where it is.
    Name,
    /// Who may log in.
    Access,
    /// What it becomes part of.
    Cluster,
    /// All of it once more.
    Summary,
}

/// What must be typed before anything is destroyed.
pub(super) const ERASE: &str = "ERASE";

impl Page {
    /// All, in their order.
    pub const ALL: [Self; 7] = [
        Self::Hardware,
        Self::Disk,
        Self::Network,
        Self::Name,
        Self::Access,
        Self::Cluster,
        Self::Summary,
    ];

    /// Its headline.
    pub fn title(self) -> &'static str {
        match self {
            Self::Hardware => "This machine",
            Self::Disk => "Disk",
            Self::Network => "Network",
            Self::Name => "Name and place",
            Self::Access => "Access",
            Self::Cluster => "Cluster",
            Self::Summary => "Summary",
        }
    }

    /// What it asks on `machine`.
    pub(super) fn form(self, machine: &Machine) -> Form {
        Form::new(match self {
            Self::Hardware => Vec::new(),
            Self::Disk => {
                let titles = machine.disks.iter().map(crate::disks::Disk::title);
                let free = machine.disks.iter().position(|it| it.obstacle().is_none());
                vec![
                    Row::choice("Disk", titles.collect(), free.unwrap_or(0)),
                    Row::text("If it is not blank, type ERASE", ""),
                ]
            }
            Self::Network => {
                let links = &machine.hardware.links;
                let first = choose_link(&Nic::default(), links).ok();
                let first = links.iter().position(|link| Some(link) == first);
                let titles = links.iter().map(crate::hardware::Link::title);
                let ways = ["by DHCP", "fixed"].map(str::to_owned).to_vec();
                vec![
                    Row::choice("Interface", titles.collect(), first.unwrap_or(0)),
                    Row::text("VLAN (empty: untagged)", ""),
                    Row::choice("Address", ways, 0),
                    Row::text("Fixed address/prefix", ""),
                    Row::text("Gateway", ""),
                    Row::text("Name servers", ""),
                ]
            }
            Self::Name => vec![Row::text("Host name", ""), Row::text("Time zone", "UTC")],
            Self::Access => vec![
                Row::secret("Password of root"),
                Row::secret("Once more"),
                Row::text("SSH key (or empty)", ""),
            ],
            Self::Cluster => {
                let modes = ["none", "begin a new one", "join one"].map(str::to_owned);
                let witness = ["no", "yes: it votes and runs no guests"].map(str::to_owned);
                vec![
                    Row::choice("Cluster", modes.to_vec(), 0),
                    Row::text("Join: a node's address", ""),
                    Row::text("Join: token", ""),
                    Row::choice("Join: as a witness", witness.to_vec(), 0),
                ]
            }
            Self::Summary => {
                let ends = End::ALL.map(|(name, _)| name.to_owned());
                vec![Row::choice("Afterwards", ends.to_vec(), 0)]
            }
        })
    }

    /// Writes what is in `form` into `answers`.
    ///
    /// # Errors
    /// A sentence: what to write instead.
    pub(super) fn read(
        self,
        form: &Form,
        machine: &Machine,
        answers: &mut Answers,
    ) -> Result<(), String> {
        match self {
            Self::Hardware => {}
            Self::Disk => answers.disk = disk(form, machine)?,
            Self::Network => answers.network = network(form, machine)?,
            Self::Name => {
                let name = form.text_of(0).trim();
                if !answers::is_host_name(name) {
                    return Err(format!("host name {name:?}: {}", answers::HOST_NAME_MUST));
                }
                let zones = machine.root.join("usr/share/zoneinfo");
                answers.time_zone = answers::zone(&zones, form.text_of(1).trim())?;
                name.clone_into(&mut answers.host_name);
            }
            Self::Access => answers.root = root(form)?,
            Self::Cluster => answers.cluster = cluster(form)?,
            Self::Summary => answers.end = End::ALL[form.choice_of(0)].1,
        }
        Ok(())
    }
}

fn disk(form: &Form, machine: &Machine) -> Result<DiskWish, String> {
    let disk = machine.disks.get(form.choice_of(0));
    let disk = disk.ok_or("the machine has no disk: plug one in and start it again")?;
    let erase = form.text_of(1).trim() == ERASE;
    let checked = crate::disks::check(disk, &machine.disks, erase);
    match checked {
        Err(crate::disks::ChooseError::NotBlank { .. }) => {
            return Err(format!(
                "{} is not blank: type {ERASE} if all that is on it may be destroyed",
                disk.path
            ));
        }
        checked => checked.map_err(|error| error.to_string())?,
    }
    Ok(DiskWish {
        path: Some(disk.path.clone()),
        erase,
        ..DiskWish::default()
    })
}

fn network(form: &Form, machine: &Machine) -> Result<Network, String> {
    let link = machine.hardware.links.get(form.choice_of(0));
    let link = link.ok_or("the machine has no network card: plug one in and start it again")?;
    let filled = |row: usize| Some(form.text_of(row).trim()).filter(|text| !text.is_empty());
    let vlan = filled(1).map(answers::vlan);
    let addressing = if form.choice_of(2) == 0 {
        Addressing::Dhcp
    } else {
        let (address, prefix) = answers::address(form.text_of(3).trim())?;
        let gateway = filled(4)
            .map(|text| answers::ip("gateway", text))
            .transpose()?;
        if let Some(gateway) = gateway {
            answers::check_gateway(address, prefix, gateway)?;
        }
        Addressing::Static {
            address,
            prefix,
            gateway,
        }
    };
    Ok(Network {
        nic: Nic {
            name: None,
            mac: Some(link.mac.clone()),
        },
        vlan: vlan.transpose()?,
        addressing,
        dns: answers::name_servers(form.text_of(5))?,
    })
}

fn root(form: &Form) -> Result<Root, String> {
    let (password, again) = (form.text_of(0), form.text_of(1));
    let key = form.text_of(2).trim();
    if password != again {
        return Err("the two passwords differ: type them again".to_owned());
    }
    if password.is_empty() && key.is_empty() {
        return Err("nobody could log in: type a password or an SSH key".to_owned());
    }
    let hash = Some(password)
        .filter(|it| !it.is_empty())
        .map(answers::hash);
    let key = Some(key).filter(|it| !it.is_empty()).map(answers::ssh_key);
    Ok(Root {
        password_hash: hash.transpose()?,
        ssh_keys: key.transpose()?.into_iter().collect(),
    })
}

fn cluster(form: &Form) -> Result<Cluster, String> {
    Ok(match form.choice_of(0) {
        0 => Cluster::Single,
        1 => Cluster::New,
        _ => Cluster::Join {
            address: answers::node_address(form.text_of(1).trim())?,
            token: answers::join_token(form.text_of(2))?,
            witness: form.choice_of(3) == 1,
        },
    })
}
