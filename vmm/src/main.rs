//! `pindah-vmm`: see `pindah-vmm --help`.

fn main() {}
