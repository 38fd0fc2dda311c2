//! Pictures of the installer and of a node's console, for the README: of a machine's screen, with
//! keys pressed on its keyboard.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::Lab;
use crate::bare::{BareServer, Bus, Firmware, Medium};

const BOOT_LIMIT: Duration = Duration::from_secs(300);
const INSTALL_LIMIT: Duration = Duration::from_secs(900);
const DISK_BYTES: u64 = 32 << 30;
const PASSWORD: &str = "a long password";

/// Installs the ISO at `iso` by hand, starts what was installed, and leaves pictures in `to`.
///
/// # Errors
/// If the machine does not do what it should.
pub fn take(iso: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let lab = Lab::new("pictures")?;
    let _dhcp = lab.dhcp()?;
    let disk = lab.directory().join("disk.img");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    let server = lab.bare_server("installer", Firmware::Bios);
    let server = server.medium(Medium::Dvd, iso).disk(Bus::Sata, &disk);
    let mut server = server.start()?;
    let port = server.port().clone();
    install_by_hand(&mut server, to)?;
    drop(server);

    let server = lab.bare_server("node", Firmware::Bios).port(&port);
    let mut server = server.disk(Bus::Sata, &disk).start()?;
    // The serial line shows the same.
    server.wait_for("agent        running", BOOT_LIMIT)?;
    server.wait_for("login:", BOOT_LIMIT)?;
    picture(&mut server, &to.join("console.png"))
}

fn install_by_hand(server: &mut BareServer, to: &Path) -> Result<()> {
    // The serial line has an installer of its own, with the same first page.
    server.wait_for("This machine (1 of 7)", BOOT_LIMIT)?;
    picture(server, &to.join("installer-machine.png"))?;
    server.press(&["ret"])?;
    picture(server, &to.join("installer-disk.png"))?;
    server.press(&["ret"; 2])?;
    picture(server, &to.join("installer-network.png"))?;
    server.press(&["ret"; 6])?;
    type_in(server, "node1")?;
    server.press(&["ret"; 2])?;
    for _ in 0..2 {
        type_in(server, PASSWORD)?;
        server.press(&["ret"])?;
    }
    server.press(&["ret", "right", "ret", "ret", "ret", "ret"])?;
    server.press(&["right"])?;
    picture(server, &to.join("installer-summary.png"))?;
    server.press(&["ret"])?;
    let end = Instant::now() + INSTALL_LIMIT;
    // Nothing is asked before the end, and then the machine goes off.
    while server.wait_until_off(Duration::from_secs(10)).is_err() {
        if Instant::now() > end {
            bail!("the installation by hand does not end");
        }
        // It may have gone off meanwhile.
        let _ = server.press(&["ret"]);
    }
    Ok(())
}

fn type_in(server: &mut BareServer, text: &str) -> Result<()> {
    for c in text.chars() {
        let key = if c == ' ' {
            "spc".to_string()
        } else {
            c.to_string()
        };
        server.press(&[key.as_str()])?;
    }
    Ok(())
}

/// Takes it when the screen stands still, but for a cursor that blinks: keys take their time.
fn picture(server: &mut BareServer, path: &Path) -> Result<()> {
    let new = path.with_extension("new");
    let mut seen: [Vec<u8>; 2] = Default::default();
    let mut still = 0;
    let end = Instant::now() + BOOT_LIMIT;
    while still < 5 {
        if Instant::now() > end {
            bail!("the screen does not stand still");
        }
        thread::sleep(Duration::from_secs(1));
        server.take_picture(&new)?;
        let shown = fs::read(&new)?;
        if seen.contains(&shown) {
            still += 1;
        } else {
            still = 0;
            seen = [std::mem::take(&mut seen[1]), shown];
        }
    }
    fs::rename(new, path)?;
    Ok(())
}
