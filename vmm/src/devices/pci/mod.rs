//! PCI: configuration mechanism 1, one bus, functions with BARs and MSI-X.

pub mod bus;
pub mod config;
pub mod msix;
pub mod piix;

/// One PCI function as the bus sees it. Called from vCPU threads.
pub trait PciFunction: Send + Sync {
    /// Reads 1, 2 or 4 bytes of configuration space that do not cross a dword.
    fn config_read(&self, offset: u8, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes of configuration space that do not cross a dword.
    fn config_write(&self, offset: u8, data: &[u8]);
}
