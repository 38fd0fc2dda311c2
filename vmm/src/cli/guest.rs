//! A guest by flags: the same wire configuration that a file gives, validated by the same rules.

use std::path::PathBuf;

use clap::Args;
use pindah_vmm::config::Config;
use pindah_vmm_api::{
    BalloonConfig, Baseline, BootConfig, BootProtocol, CpusConfig, DiskConfig, DiskLimits,
    MemoryConfig, NetConfig, ResetPolicy, SerialConfig, VmConfig,
};

use super::options::{OptionError, Options, parse_choice, parse_mib, parse_serial, parse_size};

/// The guest, by a configuration file or by flags.
#[derive(Debug, Args)]
pub struct MachineArguments {
    /// Configuration of the guest, TOML or JSON; takes the place of the guest's flags.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    guest: GuestArguments,
}

impl MachineArguments {
    /// The valid configuration.
    pub fn load(self) -> anyhow::Result<Config> {
        Ok(match self.config {
            Some(path) => Config::load(&path)?,
            None => Config::try_from(self.guest.into_config())?,
        })
    }
}

/// The guest, where no configuration file says what it is.
#[derive(Debug, Args)]
#[group(id = "guest", multiple = true, conflicts_with = "config")]
pub struct GuestArguments {
    /// Name in logs and events.
    #[arg(long, default_value = "guest")]
    name: String,
    /// Number of vCPUs, 1 to 64.
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u8,
    /// Threads a core.
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads_per_core: u8,
    /// Cores a socket [default: all].
    #[arg(long, value_name = "N")]
    cores_per_socket: Option<u8>,
    /// CPU features: host, x86-64-v1, x86-64-v2 or x86-64-v3.
    #[arg(long, default_value = "host", value_parser = parse_choice::<Baseline>)]
    baseline: Baseline,
    /// RAM: SIZE[,backing=anonymous|memfd|hugetlb][,huge_page=2M|1G][,prefault][,mergeable].
    #[arg(long, default_value = "512M", value_name = "SIZE[,…]", value_parser = parse_memory)]
    memory: MemoryConfig,
    /// bzImage or ELF to boot; without it the first disk's own boot loader is started.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// How the kernel is entered: auto, linux or pvh.
    #[arg(long, default_value = "auto", value_parser = parse_choice::<BootProtocol>)]
    protocol: BootProtocol,
    /// Firmware that boots the disk [default: Debian's SeaBIOS].
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// A disk: path=FILE,format=raw|qcow2[,readonly][,cache=direct|buffered][,serial=TEXT]
    /// [,queues=N][,queue_size=N][,on_error=report|pause][,bandwidth=SIZE][,iops=N][,id=NAME].
    /// bandwidth and iops are its limits a second, reads and writes together. May be repeated.
    #[arg(long, value_name = "OPTIONS", value_parser = parse_disk, verbatim_doc_comment)]
    disk: Vec<DiskConfig>,
    /// A network: tap=NAME[,mac=ADDRESS][,queues=N][,queue_size=N][,vhost=auto|on|off]
    /// [,id=NAME]. May be repeated.
    #[arg(long, value_name = "OPTIONS", value_parser = parse_net, verbatim_doc_comment)]
    net: Vec<NetConfig>,
    /// The serial port: stdio, off, file:PATH or socket:PATH [default: stdio, or off where
    /// --console has stdio].
    #[arg(long, value_parser = parse_serial)]
    serial: Option<SerialConfig>,
    /// A virtio console, hvc0 in Linux: stdio, off, file:PATH or socket:PATH.
    #[arg(long, value_parser = parse_serial)]
    console: Option<SerialConfig>,
    /// A balloon, from the start of this size.
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true,
          default_missing_value = "0M", value_parser = parse_mib)]
    balloon: Option<u64>,
    /// No virtio-rng.
    #[arg(long)]
    no_rng: bool,
    /// What a reset that the guest asks for does: reset or exit.
    #[arg(long, default_value = "reset", value_parser = parse_choice::<ResetPolicy>)]
    on_reset: ResetPolicy,
}

impl GuestArguments {
    /// The wire form.
    pub fn into_config(self) -> VmConfig {
        let serial = self.serial.unwrap_or(match self.console {
            Some(SerialConfig::Stdio) => SerialConfig::Off,
            _ => SerialConfig::Stdio,
        });
        VmConfig {
            name: self.name,
            cpus: CpusConfig {
                count: self.cpus,
                threads_per_core: self.threads_per_core,
                cores_per_socket: self.cores_per_socket,
                baseline: self.baseline,
                features: None,
            },
            memory: self.memory,
            boot: BootConfig {
                kernel: self.kernel,
                initrd: self.initrd,
                cmdline: self.cmdline,
                protocol: self.protocol,
                firmware: self.firmware,
            },
            disks: self.disk,
            nets: self.net,
            serial,
            console: self.console,
            rng: !self.no_rng,
            balloon: self.balloon.map(|target_mib| BalloonConfig {
                target_mib,
                ..BalloonConfig::default()
            }),
            on_reset: self.on_reset,
        }
    }
}

fn parse_memory(text: &str) -> Result<MemoryConfig, OptionError> {
    let known = ["size", "backing", "huge_page", "prefault", "mergeable"];
    let mut options = Options::parse(text, Some("size"), &known)?;
    let huge_page = options.take("huge_page", parse_size)?;
    Ok(MemoryConfig {
        size_mib: options
            .take("size", parse_mib)?
            .ok_or(OptionError::Missing("size"))?,
        backing: options.choice("backing")?.unwrap_or_default(),
        huge_page_kib: huge_page.map(|bytes| bytes >> 10),
        prefault: options.flag("prefault")?,
        mergeable: options.flag("mergeable")?,
    })
}

fn parse_disk(text: &str) -> Result<DiskConfig, OptionError> {
    let known = [
        "path",
        "format",
        "readonly",
        "cache",
        "serial",
        "queues",
        "queue_size",
        "on_error",
        "bandwidth",
        "iops",
        "id",
    ];
    let mut options = Options::parse(text, None, &known)?;
    Ok(DiskConfig {
        id: options.text("id"),
        path: options
            .text("path")
            .ok_or(OptionError::Missing("path"))?
            .into(),
        format: options
            .choice("format")?
            .ok_or(OptionError::Missing("format"))?,
        read_only: options.flag("readonly")?,
        cache: options.choice("cache")?.unwrap_or_default(),
        serial: options.text("serial"),
        queues: options.number("queues")?.unwrap_or(1),
        queue_size: options.number("queue_size")?.unwrap_or(256),
        on_error: options.choice("on_error")?.unwrap_or_default(),
        limits: DiskLimits {
            bandwidth_bytes_per_s: options.take("bandwidth", parse_size)?,
            iops: options.number("iops")?,
        },
    })
}

fn parse_net(text: &str) -> Result<NetConfig, OptionError> {
    let known = ["tap", "mac", "queues", "queue_size", "vhost", "id"];
    let mut options = Options::parse(text, None, &known)?;
    Ok(NetConfig {
        id: options.text("id"),
        tap: options.text("tap").ok_or(OptionError::Missing("tap"))?,
        mac: options.text("mac"),
        queue_pairs: options.number("queues")?.unwrap_or(1),
        queue_size: options.number("queue_size")?.unwrap_or(256),
        vhost: options.choice("vhost")?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use pindah_vmm::config::Config;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        guest: GuestArguments,
        #[arg(long)]
        config: Option<PathBuf>,
    }

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let arguments = [&["x"], arguments].concat();
        let line = Line::try_parse_from(arguments).map_err(|error| error.to_string())?;
        Config::try_from(line.guest.into_config()).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_give_what_the_same_file_gives() {
        let flags = config(&[
            "--name=web",
            "--cpus=4",
            "--threads-per-core=2",
            "--memory=2G,backing=memfd,prefault",
            "--kernel=/k",
            "--initrd=/i",
            "--cmdline=-x console=ttyS0",
            "--protocol=pvh",
            "--disk=path=/a,,b,format=raw,readonly,serial=s1,queues=2,id=root",
            "--disk=path=/c,format=qcow2,cache=buffered,on_error=pause,bandwidth=20M,iops=500",
            "--net=tap=t0,mac=52:54:00:00:00:01,queues=2,vhost=off",
            "--serial=file:/log",
            "--balloon=256M",
            "--no-rng",
            "--on-reset=exit",
            "--baseline=x86-64-v2",
        ])
        .unwrap();
        let file = r#"
            name = "web"
            cpus = { count = 4, threads_per_core = 2, baseline = "x86-64-v2" }
            memory = { size_mib = 2048, backing = "memfd", prefault = true }
            boot = { kernel = "/k", initrd = "/i", cmdline = "-x console=ttyS0", protocol = "pvh" }
            serial = { file = "/log" }
            balloon = { target_mib = 256 }
            rng = false
            on_reset = "exit"
            [[disks]]
            id = "root"
            path = "/a,b"
            format = "raw"
            read_only = true
            serial = "s1"
            queues = 2
            [[disks]]
            path = "/c"
            format = "qcow2"
            cache = "buffered"
            on_error = "pause"
            limits = { bandwidth_bytes_per_s = 20_971_520, iops = 500 }
            [[nets]]
            tap = "t0"
            mac = "52:54:00:00:00:01"
            queue_pairs = 2
            vhost = "off"
        "#;
        let file = Config::parse(file, pindah_vmm::config::Format::Toml, "x").unwrap();
        assert_eq!(flags, file);
    }

    #[test]
    fn serial_port_is_on_the_terminal_unless_the_console_is() {
        let serial = |arguments: &[&str]| {
            config(&[&["--kernel=/k"], arguments].concat())
                .unwrap()
                .serial
                .clone()
        };
        assert_eq!(serial(&[]), SerialConfig::Stdio);
        assert_eq!(serial(&["--console=stdio"]), SerialConfig::Off);
        assert_eq!(serial(&["--serial=off"]), SerialConfig::Off);
    }

    #[test]
    fn wrong_flags_are_refused_with_the_flag_and_the_reason() {
        for (argument, expected) in [
            ("--memory=512", "is not a size: a number and a unit"),
            ("--memory=16M,huge=2M", "unknown option \"huge\""),
            ("--disk=format=raw", "option \"path\" is missing"),
            ("--disk=path=/a", "option \"format\" is missing"),
            (
                "--disk=path=/a,format=vmdk",
                "unknown variant `vmdk`, expected `raw` or `qcow2`",
            ),
            (
                "--disk=path=/a,format=raw,queues=x",
                "queues=x: invalid digit",
            ),
            (
                "--disk=path=/a,format=raw,queues=99",
                "disks[0].queues = 99: must be 1 to 16",
            ),
            (
                "--disk=path=/a,format=raw,bandwidth=20",
                "bandwidth=20: \"20\" is not a size",
            ),
            ("--net=mac=52:54:00:00:00:01", "option \"tap\" is missing"),
            (
                "--net=tap=t0,mac=x",
                "nets[0].mac = \"x\": must be six octets",
            ),
            (
                "--serial=pty",
                "is none of stdio, off, file:PATH and socket:PATH",
            ),
            ("--cpus=65", "cpus.count = 65: must be 1 to 64"),
            ("--baseline=x86-64-v9", "unknown variant `x86-64-v9`"),
            ("--config=/x", "cannot be used with"),
        ] {
            let message = config(&["--kernel=/k", argument]).unwrap_err();
            assert!(message.contains(expected), "{argument} gives {message}");
        }
    }
}
