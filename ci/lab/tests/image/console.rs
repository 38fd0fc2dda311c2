//! The console of an installed node.

use pindah_lab::Lab;
use pindah_lab::bare::{BareServer, Bus, Firmware};
use pindah_lab::network::HOST_ADDRESS;

use crate::{
    ANSWERS, BOOT_LIMIT, PASSWORD, blank_disk, check_api, check_node, installed,
    no_unit_has_failed, take_shell, with_dvd,
};

/// Answers what is asked, each when it is asked.
fn converse(server: &mut BareServer, lines: &[(&str, &str)]) {
    for (asked, answer) in lines {
        server.wait_for(asked, BOOT_LIMIT).unwrap();
        server.type_text(&format!("{answer}\r")).unwrap();
    }
}

#[test]
#[ignore = "lab"]
fn full_node_that_finds_no_dhcp_gets_its_address_and_password_on_the_console() {
    const NEW: &str = "another password";
    let lab = Lab::new("image-console").unwrap();
    let disk = blank_disk(&lab, "disk.img");

    // An address that somebody has is refused before anything is written.
    let taken = format!("{ANSWERS}\nnetwork.address = '{HOST_ADDRESS}/24'\n");
    let refused = with_dvd(&lab, "refused", Firmware::Bios).disk(Bus::Sata, &disk);
    let mut refused = refused.answers(&taken).start().unwrap();
    refused
        .wait_for(
            &format!("{HOST_ADDRESS} is in use on this network"),
            BOOT_LIMIT,
        )
        .unwrap();
    drop(refused);

    let mut server = installed(&lab, &disk).start().unwrap();
    let port = server.port().clone();
    server
        .wait_for("none: no network card has got one", BOOT_LIMIT)
        .unwrap();
    let address = format!("{}/24", port.address);
    let lines = [
        ("node1 login:", "root"),
        ("Password:", PASSWORD),
        ("Number:", "1"),
        ("Interface", "1"),
        ("VLAN", ""),
        ("Address", address.as_str()),
        ("Gateway", HOST_ADDRESS),
        ("Name servers", ""),
        ("Type yes", "yes"),
        ("It is set", ""),
        ("Number:", "2"),
        ("New password", NEW),
        ("Once more", NEW),
    ];
    converse(&mut server, &lines);
    server.wait_for("The password is set", BOOT_LIMIT).unwrap();
    take_shell(&mut server, "node1");
    check_api(&lab, &mut server);
    check_node(&mut server);
    server.type_text("exit\r").unwrap();
    converse(&mut server, &[("Number:", "6"), ("Type yes", "yes")]);
    server.wait_until_off(BOOT_LIMIT).unwrap();

    // What was set is there at the next start, in the rescue system too.
    let again = |name: &str| {
        let server = lab.bare_server(name, Firmware::Bios).port(&port);
        server.disk(Bus::Sata, &disk).start().unwrap()
    };
    let mut server = again("again");
    converse(&mut server, &[("node1 login:", "root"), ("Password:", NEW)]);
    take_shell(&mut server, "node1");
    check_api(&lab, &mut server);
    drop(server);

    let mut server = again("rescue");
    server.wait_for("Rescue: a shell", BOOT_LIMIT).unwrap();
    server.type_text("\x1b[B\x1b[B\r").unwrap();
    server.wait_for("Slot B", BOOT_LIMIT).unwrap();
    server.type_text("\r").unwrap();
    converse(&mut server, &[("Give root password for maintenance", NEW)]);
    server.wait_for("root@node1", BOOT_LIMIT).unwrap();
    server.run("! systemctl -q is-active pindahd").unwrap();
    server.run("test -s /state/etc/shadow").unwrap();
    no_unit_has_failed(&mut server);
}
