//! What comes out of Debian's packages.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::{Cache, run, text};

pub(super) const MIRROR: &str = "http://deb.debian.org/debian";

/// Which build of a Debian kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// `linux-image-amd64`: everything is a module.
    Generic,
    /// `linux-image-cloud-amd64`: for virtual machines, much built in.
    Cloud,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generic => "generic",
            Self::Cloud => "cloud",
        })
    }
}

/// An unmodified Debian kernel.
#[derive(Clone, Debug, Hash)]
pub struct Kernel {
    /// `"6.1"` or `"6.12"`.
    pub version: String,
    /// Its build.
    pub flavour: Flavour,
    /// What `uname -r` says in it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Its modules, with `modules.dep`.
    pub modules: PathBuf,
}

/// Modules that neither servers nor guests can have a use for.
const NEEDLESS_MODULES: [&str; 24] = [
    "sound",
    "drivers/accel",
    "drivers/bluetooth",
    "drivers/comedi",
    "drivers/firewire",
    "drivers/gpu",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/isdn",
    "drivers/media",
    "drivers/mfd",
    "drivers/mmc",
    "drivers/mtd",
    "drivers/net/can",
    "drivers/net/ethernet",
    "drivers/net/usb",
    "drivers/net/wireless",
    "drivers/nfc",
    "drivers/platform",
    "drivers/power",
    "drivers/soundwire",
    "drivers/staging",
    "drivers/thunderbolt",
];

/// Kernels of Debian 12 and 13.
pub(super) fn kernels(cache: &Cache) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    for (suite, version) in [("bookworm", "6.1"), ("trixie", "6.12")] {
        let path = extracted(cache, suite)?;
        for flavour in [Flavour::Generic, Flavour::Cloud] {
            kernels.push(kernel(&path.join(flavour.to_string()), version, flavour)?);
        }
    }
    Ok(kernels)
}

/// Debian's statically linked busybox, which runs under any kernel.
pub(super) fn busybox(cache: &Cache) -> Result<PathBuf> {
    Ok(extracted(cache, "bookworm")?.join("busybox"))
}

fn kernel(path: &Path, version: &str, flavour: Flavour) -> Result<Kernel> {
    let modules = only_entry(&path.join("lib/modules"))?;
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(Kernel {
        version: version.to_string(),
        flavour,
        release,
        image: path.join("vmlinuz"),
        modules,
    })
}

fn only_entry(path: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(path)
        .with_context(|| format!("reading {}", path.display()))?
        .next();
    Ok(entry
        .with_context(|| format!("{} is empty", path.display()))??
        .path())
}

/// `<flavour>/{vmlinuz,lib/modules/<release>}` and `busybox` of a suite.
fn extracted(cache: &Cache, suite: &str) -> Result<PathBuf> {
    let packages = "linux-image-amd64,linux-image-cloud-amd64,busybox-static";
    let inputs = (suite, packages, NEEDLESS_MODULES, MIRROR);
    cache.get(&format!("debian-{suite}"), &inputs, |path| {
        let root = path.join("root");
        bootstrap(suite, "extract", packages, &root, &[])?;
        let busybox = ["usr/bin/busybox", "bin/busybox"].map(|place| root.join(place));
        let busybox = busybox.iter().find(|place| place.is_file());
        fs::copy(
            busybox.context("the package has no busybox")?,
            path.join("busybox"),
        )?;
        let merged = root.join("usr/lib/modules");
        let trees = if merged.is_dir() {
            merged
        } else {
            root.join("lib/modules")
        };
        for entry in fs::read_dir(&trees)? {
            take_kernel(&root, &entry?.path(), path)?;
        }
        fs::remove_dir_all(&root)?;
        Ok(())
    })
}

fn take_kernel(root: &Path, modules: &Path, to: &Path) -> Result<()> {
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let flavour = if release.contains("-cloud-") {
        Flavour::Cloud
    } else {
        Flavour::Generic
    };
    let to = to.join(flavour.to_string());
    fs::create_dir_all(to.join("lib/modules"))?;
    fs::copy(
        root.join(format!("boot/vmlinuz-{release}")),
        to.join("vmlinuz"),
    )
    .with_context(|| format!("taking kernel {release}"))?;
    for name in NEEDLESS_MODULES {
        let needless = modules.join("kernel").join(name);
        if needless.is_dir() {
            fs::remove_dir_all(needless)?;
        }
    }
    fs::rename(modules, to.join("lib/modules").join(&release))?;
    run("depmod", &["-b", text(&to), &release])
}

/// Makes a Debian root in the directory `to`.
pub(super) fn bootstrap(
    suite: &str,
    variant: &str,
    packages: &str,
    to: &Path,
    more: &[&str],
) -> Result<()> {
    let variant = format!("--variant={variant}");
    let include = format!("--include={packages}");
    // In namespaces of its own: no mount and no process of it can stay behind.
    let mut arguments = vec![
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "mmdebstrap",
        "--mode=root",
        "--format=dir",
        &variant,
        &include,
        "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=Acquire::Retries \"3\"",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
    ];
    arguments.extend(more);
    arguments.extend([suite, text(to), MIRROR]);
    run("unshare", &arguments)
}
