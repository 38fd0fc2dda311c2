//! Sockets, cores and threads, and the APIC ids that say the same (Intel SDM volume 3, 10.9.1).

use pindah_vmm_api::CpusConfig;

/// Shape of the processors. Invariant: `vcpus` fills whole sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs in all.
    pub vcpus: u8,
    /// Threads a core.
    pub threads_per_core: u8,
    /// Cores a socket.
    pub cores_per_socket: u8,
}

impl Topology {
    /// From a validated configuration.
    pub fn new(config: &CpusConfig) -> Self {
        let threads_per_core = config.threads_per_core.max(1);
        let all_in_one = (config.count / threads_per_core).max(1);
        Self {
            vcpus: config.count,
            threads_per_core,
            cores_per_socket: config.cores_per_socket.unwrap_or(all_in_one).max(1),
        }
    }

    /// Bits of an APIC id that number the threads of a core.
    pub fn thread_bits(&self) -> u32 {
        bits(u32::from(self.threads_per_core))
    }

    /// Bits of an APIC id that number the cores of a socket and their threads.
    pub fn socket_bits(&self) -> u32 {
        self.thread_bits() + bits(u32::from(self.cores_per_socket))
    }

    /// Logical processors a socket.
    pub fn threads_per_socket(&self) -> u32 {
        u32::from(self.threads_per_core) * u32::from(self.cores_per_socket)
    }

    /// APIC id of vCPU `index`. Ids have gaps where a count is no power of two.
    pub fn apic_id(&self, index: u8) -> u32 {
        let (index, threads) = (u32::from(index), u32::from(self.threads_per_core));
        let thread = index % threads;
        let core = index / threads % u32::from(self.cores_per_socket);
        let socket = index / self.threads_per_socket();
        socket << self.socket_bits() | core << self.thread_bits() | thread
    }
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_id_of_three_cores_with_two_threads_leaves_a_gap() {
        let topology = Topology {
            vcpus: 12,
            threads_per_core: 2,
            cores_per_socket: 3,
        };
        let ids: Vec<u32> = (0..12).map(|index| topology.apic_id(index)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn topology_without_wishes_is_one_socket() {
        let config = CpusConfig {
            count: 6,
            ..CpusConfig::default()
        };
        let topology = Topology::new(&config);
        assert_eq!(topology.cores_per_socket, 6);
        assert_eq!((topology.thread_bits(), topology.socket_bits()), (0, 3));
    }
}
