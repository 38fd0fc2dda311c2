//! Servers that start by network.

use std::fs;

use pindah_lab::bare::{Bus, Firmware};
use pindah_lab::network::HOST_ADDRESS;
use pindah_lab::{Lab, repository};

use crate::{ANSWERS, blank_disk, check_api, check_node, log_in, wait_until_installed};

#[test]
#[ignore = "lab"]
fn full_server_is_installed_by_network_with_the_answers_of_its_card() {
    let lab = Lab::new("image-netboot").unwrap();
    let directory = lab.directory().join("netboot");
    copy_tree(&repository().join("image/out/netboot"), &directory);
    let answers = format!("set answers=pindah.answer=http://{HOST_ADDRESS}/{{mac}}.toml\n");
    fs::write(directory.join("answers.cfg"), answers).unwrap();
    let _dhcp = lab.network_boot(&directory).unwrap();

    let disk = blank_disk(&lab, "disk.img");
    let installer = lab.bare_server("installer", Firmware::Bios).network_boot();
    let port = lab.network().add_port().unwrap();
    fs::write(directory.join(format!("{}.toml", port.mac)), ANSWERS).unwrap();
    let installer = installer
        .port(&port)
        .disk(Bus::Sata, &disk)
        .start()
        .unwrap();
    wait_until_installed(installer);

    let server = lab.bare_server("node1", Firmware::Bios).port(&port);
    let mut server = server.disk(Bus::Sata, &disk).start().unwrap();
    log_in(&mut server);
    check_api(&lab, &mut server);
    check_node(&mut server);
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).expect("run image/build first") {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
