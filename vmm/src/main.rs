//! `pindah-vmm`: see `pindah-vmm --help`.

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let config = pindah_vmm::config::Config::load(path.as_ref()).unwrap();
    let resources = pindah_vmm::vm::resources::Resources::open(&config).unwrap();
    let vm = pindah_vmm::vm::Vm::build(&config, resources).unwrap();
    vm.lock_disks().unwrap();
    vm.boot().unwrap();
    let r = vm.run();
    eprintln!("{r:?}");
}
