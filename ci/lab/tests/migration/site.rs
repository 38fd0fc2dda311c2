//! Two servers, a NAS and a guest that moves between them.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pindah_lab::Flavour::Generic;
use pindah_lab::guest::{Guest, GuestBuilder};
use pindah_lab::nas::Nas;
use pindah_lab::{Lab, Output, Server, start_all};
use pindah_vmm_api::{DiskFormat, VmConfig};

use crate::load::clock_offset;

/// The guest's address on the lab's switch.
pub const ADDRESS: &str = "10.9.0.130";
/// A move takes seconds; a loaded host may need much longer.
pub const MOVE_LIMIT: Duration = Duration::from_secs(600);

const KEYS: &str = "/srv/nas/keys";
const PORT: u16 = 4444;
const MEMORY_MIB: u32 = 1024;

/// Sites use up the host: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The small office.
pub struct Site {
    lab: Lab,
    servers: [Server; 2],
    disk: String,
    _nas: Nas,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    /// Servers of these CPU models, whose clocks nobody keeps right, with the NAS mounted, keys for
    /// migration, and a tap for the guest.
    pub fn new(name: &str, cpu_models: [&str; 2]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::new(name).unwrap();
        let nas = lab.nas().unwrap();
        let server =
            |name: &str, model: &str| lab.server(name).memory_mib(MEMORY_MIB).cpu_model(model);
        let [first, second] = cpu_models;
        let servers = start_all([server("one", first), server("two", second)]).unwrap();
        for server in &servers {
            nas.mount(server).unwrap();
            let tap = "ip tuntap add guest0 mode tap vnet_hdr && \
                       ip link set dev guest0 master br0 up";
            server.check(tap).unwrap();
        }
        servers[1].check("date -s '5 seconds'").unwrap();
        let vmm = servers[0].program("pindah-vmm");
        let [one, two] = [servers[0].address(), servers[1].address()];
        servers[0]
            .check(&format!("{vmm} keys {KEYS} {one} {two}"))
            .unwrap();
        let disk = nas.put(&lab.artifacts().work_disk().unwrap(), "guest.raw");
        Self {
            disk: disk.unwrap(),
            servers,
            lab,
            _nas: nas,
            _turn: turn,
        }
    }

    /// The harness's host, on the same switch.
    pub fn host(&self) -> Server {
        self.lab.host().unwrap()
    }

    /// Where the harness keeps what is of this site; made anew each time.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }

    /// The guest as each server starts or receives it.
    fn guest(&self, at: usize, change: &dyn Fn(&mut VmConfig)) -> GuestBuilder<'_> {
        let kernel = self.lab.artifacts().kernel("6.12", Generic).unwrap();
        let guest = self.servers[at].guest("guest").cpus(2).memory_mib(384);
        let guest = guest.kernel(self.lab.artifacts(), &kernel).unwrap();
        let guest = guest.cmdline("root=/dev/vda rw init=/lab-init");
        let guest = guest.disk(&self.disk, DiskFormat::Raw).net("guest0");
        guest.configure(change)
    }
}

/// A guest, and where it is.
pub struct Traveller<'a> {
    site: &'a Site,
    change: &'a dyn Fn(&mut VmConfig),
    at: usize,
    guest: Option<Guest<'a>>,
}

impl<'a> Traveller<'a> {
    /// Boots it on the first server.
    pub fn start(site: &'a Site, change: &'a dyn Fn(&mut VmConfig)) -> Self {
        let mut guest = site.guest(0, change).start().unwrap();
        guest.wait_ready().unwrap();
        guest
            .check(&format!(
                "ip addr add {ADDRESS}/24 dev eth0 && ip link set eth0 up"
            ))
            .unwrap();
        Self {
            site,
            change,
            at: 0,
            guest: Some(guest),
        }
    }

    /// Where it is.
    pub fn guest(&mut self) -> &mut Guest<'a> {
        self.guest.as_mut().expect("only the end takes it")
    }

    /// By how much its wall clock is ahead of its server's, and by how much that may be wrong, in
    /// seconds.
    pub fn clock_offset(&mut self) -> (f64, f64) {
        let server = &self.site.servers[self.at];
        clock_offset(self.guest(), server)
    }

    /// Tries to move it to the other server; what the client said, and the VMM there.
    pub fn try_move(&mut self) -> (Output, Guest<'a>) {
        let to = 1 - self.at;
        // The VMM that waits must have let go of the port that it waited on before.
        let port = PORT + to as u16;
        let arriving = self.site.guest(to, self.change);
        let arriving = arriving.receive(&format!("0.0.0.0:{port}"), KEYS).unwrap();
        let address = self.site.servers[to].address();
        let client = self.guest().send(&format!("{address}:{port}"), KEYS);
        let output = client.unwrap().wait(MOVE_LIMIT).unwrap();
        (output, arriving)
    }

    /// Moves it to the other server. The downtime by the VMM, as its report has it.
    pub fn move_over(&mut self) -> String {
        let (output, arriving) = self.try_move();
        let output = output.ok().unwrap();
        let left = self.guest.take().expect("it is somewhere");
        assert_eq!(left.wait_end().unwrap().status, 5);
        self.guest = Some(arriving);
        self.at = 1 - self.at;
        let text = output.text();
        println!("{text}");
        let (_, rest) = text
            .split_once("the guest stood for ")
            .unwrap_or_else(|| panic!("no downtime in the report: {text}"));
        let time = rest.split([',', '\n']).next();
        time.unwrap_or_default().to_string()
    }

    /// Switches it off.
    pub fn power_off(mut self) {
        let guest = self.guest.take().expect("it is somewhere");
        guest.power_off().unwrap();
    }
}
