//! Interrupt routing: GSIs to I/O APIC pins and MSI messages, and eventfds that raise them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// Pins of the I/O APIC.
const IOAPIC_PINS: u32 = 24;

/// KVM's routing table, which can only be set as a whole.
pub struct IrqRouter {
    vm: Arc<VmFd>,
    /// Message address and data by GSI.
    messages: Mutex<BTreeMap<u32, (u64, u32)>>,
}

impl IrqRouter {
    /// A router with the PC's fixed lines: each ISA interrupt at the PIC and at the same pin of
    /// the I/O APIC, but the timer's at pin 2 (the MADT says so too).
    ///
    /// # Errors
    /// KVM refuses the table.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Self> {
        let router = Self {
            vm,
            messages: Mutex::default(),
        };
        router.set(&BTreeMap::new())?;
        Ok(router)
    }

    fn set(&self, messages: &BTreeMap<u32, (u64, u32)>) -> io::Result<()> {
        let mut entries = fixed_entries();
        for (&gsi, &(address, data)) in messages {
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = address as u32;
            entry.u.msi.address_hi = (address >> 32) as u32;
            entry.u.msi.data = data;
            entries.push(entry);
        }
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }

    /// Lets `event` raise the message `(address, data)` by way of `gsi`.
    ///
    /// # Errors
    /// KVM refuses the route or the irqfd.
    pub fn connect_message(
        &self,
        gsi: u32,
        event: &EventFd,
        address: u64,
        data: u32,
    ) -> io::Result<()> {
        let mut messages = self.messages.lock().expect("no panic under this lock");
        let before = messages.insert(gsi, (address, data));
        if before != Some((address, data))
            && let Err(refused) = self.set(&messages)
        {
            // What the table does not hold must not count as routed the next time.
            messages.remove(&gsi);
            return Err(refused);
        }
        Ok(self.vm.register_irqfd(event, gsi)?)
    }

    /// `event` raises nothing any more, and collects instead.
    ///
    /// # Errors
    /// KVM knows of no such pair.
    pub fn disconnect_message(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(event, gsi)?)
    }
}

fn fixed_entries() -> Vec<kvm_irq_routing_entry> {
    let pin = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = irqchip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let master = (0..8)
        .filter(|&gsi| gsi != 2)
        .map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
    let slave = (8..16).map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
    let ioapic = (0..IOAPIC_PINS)
        .filter(|&gsi| gsi != 2)
        .map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    master.chain(slave).chain(ioapic).collect()
}
