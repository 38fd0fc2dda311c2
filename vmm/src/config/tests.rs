use pindah_vmm_api::{CpusConfig, MemoryBacking};
use proptest::prelude::*;

use super::*;
use crate::arch::x86_64::layout;
use crate::arch::x86_64::topology::Topology;

fn toml(text: &str) -> Result<Config, String> {
    Config::parse(text, Format::Toml, "vm.toml").map_err(|error| error.to_string())
}

fn json(text: &str) -> Result<Config, String> {
    Config::parse(text, Format::Json, "vm.json").map_err(|error| error.to_string())
}

const SMALLEST: &str = "boot.kernel = '/k'\nmemory.size_mib = 16\n";

/// Text after [`SMALLEST`] and the message that it must give.
const REFUSED_TOML: &[(&str, &str)] = &[
    // Syntax and shape.
    ("x = ", "vm.toml:3:5: string values must be quoted"),
    ("colour = 1", "vm.toml:3:1: colour: unknown field `colour`"),
    (
        "[cpus]\ncuont = 1",
        "vm.toml:4:1: cpus.cuont: unknown field `cuont`, expected one of `count`",
    ),
    (
        "rng = 1",
        "vm.toml:3:7: rng: invalid type: integer `1`, expected a boolean",
    ),
    (
        "[cpus]\ncount = '2'",
        "vm.toml:4:9: cpus.count: invalid type: string \"2\", expected u8",
    ),
    (
        "[cpus]\ncount = 300",
        "vm.toml:4:9: cpus.count: invalid value: integer `300`, expected u8",
    ),
    (
        "[cpus]\ncount = -1",
        "vm.toml:4:9: cpus.count: invalid value: integer `-1`, expected u8",
    ),
    (
        "[[disks]]\npath = '/d'",
        "vm.toml:3:1: disks[0]: missing field `format`",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'vmdk'",
        "vm.toml:5:10: disks[0].format: unknown variant `vmdk`, expected `raw` or `qcow2`",
    ),
    ("name = 'a'\nname = 'b'", "vm.toml:4:1: duplicate key"),
    // Names and ids.
    (
        "name = ''",
        "vm.toml:3:8: name = \"\": must be 1 to 63 letters",
    ),
    (
        "name = '../x'",
        "vm.toml:3:8: name = \"../x\": must be 1 to 63 letters",
    ),
    (
        "[[disks]]\nid = 'a'\npath = '/d'\nformat = 'raw'\n[[nets]]\nid = 'a'\ntap = 't'",
        "vm.toml:8:6: nets[0].id = \"a\": is disks[0].id too; ids must differ",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\n[[disks]]\nid = 'disk0'\npath = '/e'\nformat = 'raw'",
        "vm.toml:7:6: disks[1].id = \"disk0\": is disks[0].id too",
    ),
    (
        "[[nets]]\nid = 'rng'\ntap = 't'",
        "vm.toml:4:6: nets[0].id = \"rng\": is the id of a device that every guest may have",
    ),
    // CPUs.
    (
        "[cpus]\ncount = 0",
        "vm.toml:4:9: cpus.count = 0: must be 1 to 64",
    ),
    (
        "[cpus]\ncount = 65",
        "vm.toml:4:9: cpus.count = 65: must be 1 to 64",
    ),
    (
        "[cpus]\ncount = 3\nthreads_per_core = 2",
        "vm.toml:5:20: cpus.threads_per_core = 2: must divide cpus.count = 3",
    ),
    (
        "[cpus]\ncount = 4\nthreads_per_core = 0",
        "vm.toml:5:20: cpus.threads_per_core = 0: must divide",
    ),
    (
        "[cpus]\ncount = 4\nthreads_per_core = 2\ncores_per_socket = 4",
        "vm.toml:6:20: cpus.cores_per_socket = 4: must divide cpus.count / cpus.threads_per_core = 4 / 2",
    ),
    (
        "[cpus]\ncores_per_socket = 0",
        "vm.toml:4:20: cpus.cores_per_socket = 0: must divide",
    ),
    // Boot.
    (
        "boot.firmware = '/f'",
        "vm.toml:3:17: boot.firmware: does not go with boot.kernel",
    ),
    (
        "boot.initrd = ''",
        "vm.toml:3:15: boot.initrd = \"\": must be a path",
    ),
    (
        "boot.cmdline = \"a\\u0000b\"",
        "vm.toml:3:16: boot.cmdline = (3 bytes): must be at most 2047 bytes without NUL",
    ),
    // Memory.
    (
        "memory.huge_page_kib = 2048",
        "vm.toml:3:24: memory.huge_page_kib: needs memory.backing = \"hugetlb\"",
    ),
    (
        "memory.backing = 'memfd'\nmemory.mergeable = true",
        "vm.toml:4:20: memory.mergeable: needs memory.backing = \"anonymous\"",
    ),
    (
        "memory.backing = 'hugetlb'\nmemory.huge_page_kib = 4",
        "vm.toml:4:24: memory.huge_page_kib = 4: must be 2048 (2 MiB) or 1048576 (1 GiB)",
    ),
    (
        "memory.backing = 'hugetlb'\nmemory.huge_page_kib = 1048576",
        "vm.toml:2:19: memory.size_mib = 16: must be a multiple of the huge page size, 1024 MiB",
    ),
    (
        "balloon.target_mib = 1",
        "vm.toml:3:22: balloon.target_mib = 1: must leave the guest 16 MiB, so at most 0",
    ),
    // Disks.
    (
        "[[disks]]\npath = ''\nformat = 'raw'",
        "vm.toml:4:8: disks[0].path = \"\": must be a path",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\nserial = '123456789012345678901'",
        "vm.toml:6:10: disks[0].serial = \"123456789012345678901\": must be at most 20 printable ASCII",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\nserial = 'é'",
        "vm.toml:6:10: disks[0].serial = \"é\": must be at most 20 printable ASCII",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\nqueues = 17",
        "vm.toml:6:10: disks[0].queues = 17: must be 1 to 16",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\nqueue_size = 100",
        "vm.toml:6:14: disks[0].queue_size = 100: must be a power of two from 2 to 1024",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\nlimits = { iops = 9 }",
        "vm.toml:6:19: disks[0].limits.iops = 9: must be 10 to 1000000",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\n[disks.limits]\nbandwidth_bytes_per_s = 65535",
        "vm.toml:7:25: disks[0].limits.bandwidth_bytes_per_s = 65535: must be 65536 to 1099511627776",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\nqueue_size = 1",
        "vm.toml:6:14: disks[0].queue_size = 1: must be a power of two",
    ),
    (
        "[[disks]]\npath = '/d'\nformat = 'raw'\n[[disks]]\npath = '/d'\nformat = 'raw'\nread_only = true",
        "vm.toml:7:8: disks[1].path = \"/d\": is an earlier disk's too",
    ),
    // Nets.
    (
        "[[nets]]\ntap = 'sixteen-letters-'",
        "vm.toml:4:7: nets[0].tap = \"sixteen-letters-\": must be an interface's name",
    ),
    (
        "[[nets]]\ntap = 'a/b'",
        "vm.toml:4:7: nets[0].tap = \"a/b\": must be an interface's name",
    ),
    (
        "[[nets]]\ntap = 't'\nmac = '52:54:00:00:00'",
        "vm.toml:5:7: nets[0].mac = \"52:54:00:00:00\": must be six octets",
    ),
    (
        "[[nets]]\ntap = 't'\nmac = '52:54:00:00:00:+1'",
        "vm.toml:5:7: nets[0].mac = \"52:54:00:00:00:+1\": must be six octets",
    ),
    (
        "[[nets]]\ntap = 't'\nmac = '53:54:00:00:00:01'",
        "vm.toml:5:7: nets[0].mac = \"53:54:00:00:00:01\": must be a unicast address",
    ),
    (
        "[[nets]]\ntap = 't'\nmac = '52:54:00:00:00:01'\n[[nets]]\ntap = 'u'\nmac = '52-54-00-00-00-01'",
        "vm.toml:8:7: nets[1].mac = \"52:54:00:00:00:01\": is nets[0].mac too",
    ),
    (
        "[[nets]]\ntap = 't'\n[[nets]]\ntap = 't'",
        "vm.toml:6:7: nets[1].tap = \"t\": is nets[0].tap too",
    ),
    // Consoles.
    (
        "serial = 'stdio'\nconsole = 'stdio'",
        "vm.toml:4:11: console: leads where serial leads",
    ),
    (
        "serial = { file = '' }",
        "vm.toml:3:10: serial = \"\": must be a path",
    ),
    (
        "serial = { fiel = '/x' }",
        "vm.toml:3:12: serial: unknown variant `fiel`",
    ),
];

#[test]
fn refused_toml_says_where_what_and_what_is_allowed() {
    for (text, expected) in REFUSED_TOML {
        match toml(&format!("{SMALLEST}{text}")) {
            Ok(_) => panic!("{text:?} is taken"),
            Err(message) => assert!(
                message.starts_with(expected),
                "{text:?}\n gives {message:?}\nwanted {expected:?}"
            ),
        }
    }
}

#[test]
fn refused_whole_files_say_why() {
    for (text, expected) in [
        ("", "vm.toml:1:1: missing field `memory`"),
        (
            "memory.size_mib = 16",
            "vm.toml: boot: there is nothing to boot",
        ),
        (
            "boot.kernel = '/k'\nmemory.size_mib = 15",
            "vm.toml:2:19: memory.size_mib = 15: must be 16 to 4194304 (MiB)",
        ),
        (
            "boot.kernel = '/k'\nmemory.size_mib = 9223372036854775807",
            "vm.toml:2:19: memory.size_mib = 9223372036854775807: must be",
        ),
        (
            "boot.kernel = '/k'\nmemory.size_mib = '1G'",
            "vm.toml:2:19: memory.size_mib: invalid type: string \"1G\", expected u64",
        ),
        (
            "boot.firmware = '/f'\nboot.cmdline = 'x'\nmemory.size_mib = 16",
            "vm.toml:2:16: boot.cmdline: needs boot.kernel",
        ),
        (
            "boot.firmware = '/f'\nboot.initrd = 'x'\nmemory.size_mib = 16",
            "vm.toml:2:15: boot.initrd: needs boot.kernel",
        ),
        (
            "boot.firmware = '/f'\nboot.protocol = 'pvh'\nmemory.size_mib = 16",
            "vm.toml:2:17: boot.protocol: needs boot.kernel",
        ),
    ] {
        let message = toml(text).unwrap_err();
        assert!(message.starts_with(expected), "{text:?} gives {message:?}");
    }
}

#[test]
fn refused_json_says_where_what_and_what_is_allowed() {
    for (text, expected) in [
        ("", "vm.json:1:1: EOF while parsing a value"),
        ("{\n \"memory\": }", "vm.json:2:12: memory: expected value"),
        (
            "{\"memory\": {\"size_mib\": 16},\n \"x\": 1}",
            "vm.json:2:4: x: unknown field `x`",
        ),
        (
            "{\"boot\": {\"kernel\": \"/k\"},\n \"memory\": {\"size_mib\": 16}} trailing",
            "vm.json:2:30: trailing characters",
        ),
        (
            "{\"boot\": {\"kernel\": \"/k\"},\n \"memory\": {\"size_mib\": 15}}",
            "vm.json:2:25: memory.size_mib = 15: must be 16",
        ),
        (
            "{\"boot\": {\"kernel\": \"/k\"}, \"memory\": {\"size_mib\": 16}, \"nets\": [\n{\"tap\": \"a\"},\n{\"tap\": \"b\", \"mac\": \"x\"}]}",
            "vm.json:3:21: nets[1].mac = \"x\": must be six octets",
        ),
    ] {
        let message = json(text).unwrap_err();
        assert!(message.starts_with(expected), "{text:?} gives {message:?}");
    }
}

#[test]
fn more_devices_than_slots_are_refused() {
    let nets = |count: usize| {
        let tables = (0..count).map(|number| format!("[[nets]]\ntap = 't{number}'\n"));
        tables.collect::<Vec<_>>().concat()
    };
    toml(&format!("{SMALLEST}{}", nets(layout::MAX_NETS))).unwrap();
    let message = toml(&format!("{SMALLEST}{}", nets(layout::MAX_NETS + 1))).unwrap_err();
    assert!(message.contains("nets: 9 are too many"), "{message}");
}

#[test]
fn smallest_configuration_has_the_documented_defaults() {
    let config = toml(SMALLEST).unwrap();
    assert_eq!(config.name, "guest");
    assert_eq!(config.memory.size_mib, 16);
    assert_eq!(config.memory.backing, MemoryBacking::Anonymous);
    assert_eq!(config.cpus, CpusConfig::default());
    assert_eq!(config.serial, SerialConfig::Off);
    assert!(config.rng && config.console.is_none() && config.balloon.is_none());
}

#[test]
fn full_configuration_fills_in_what_follows_from_it() {
    let config = toml(
        r#"
        name = "web-1"
        serial = { socket = "/run/serial" }
        console = "stdio"
        [cpus]
        count = 8
        threads_per_core = 2
        cores_per_socket = 2
        baseline = "x86-64-v2"
        [memory]
        size_mib = 4096
        backing = "hugetlb"
        huge_page_kib = 1048576
        [balloon]
        target_mib = 512
        [[disks]]
        path = "/d0"
        format = "raw"
        queue_size = 1024
        [[disks]]
        path = "/d1"
        format = "qcow2"
        cache = "buffered"
        [[nets]]
        tap = "tap0"
        [[nets]]
        tap = "tap1"
        mac = "52-54-00-AB-CD-EF"
        "#,
    )
    .unwrap();
    let ids = config.disks.iter().map(|disk| disk.id.as_deref());
    assert!(ids.eq([Some("disk0"), Some("disk1")]));
    assert_eq!(config.nets[1].mac.as_deref(), Some("52:54:00:ab:cd:ef"));
    let derived = config.nets[0].mac.as_deref().unwrap();
    assert!(derived.starts_with("52:54:00:"), "{derived}");
}

#[test]
fn wire_form_of_a_configuration_validates_to_the_same() {
    let config = toml(&format!(
        "{SMALLEST}[[nets]]\ntap = 't'\n[[nets]]\ntap = 'u'\n"
    ))
    .unwrap();
    assert_ne!(config.nets[0].mac, config.nets[1].mac);
    let again = Config::try_from((*config).clone()).unwrap();
    assert_eq!(again, config);
    let text = serde_json::to_string(&*config).unwrap();
    assert_eq!(json(&text).unwrap(), config);
}

#[test]
fn format_follows_extension_then_content() {
    for (path, text, format) in [
        ("a.json", "", Format::Json),
        ("a.toml", "{", Format::Toml),
        ("a.conf", " \n{}", Format::Json),
        ("a", "name = 'x'", Format::Toml),
    ] {
        assert_eq!(Format::of(Path::new(path), text), format, "{path}");
    }
}

#[test]
fn unreadable_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.toml");
    let error = Config::load(&missing).unwrap_err();
    assert!(error.to_string().contains("missing.toml"), "{error}");
    let long = directory.path().join("long.toml");
    std::fs::write(&long, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
    assert!(matches!(
        Config::load(&long),
        Err(ConfigError::TooLong { .. })
    ));
    let binary = directory.path().join("binary.toml");
    std::fs::write(&binary, b"name = \"\xff\"").unwrap();
    let error = Config::load(&binary).unwrap_err().to_string();
    assert!(error.ends_with("not UTF-8 from byte 8 on"), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_taken_or_refused(text in "[a-z0-9\\[\\]{}=:\"'., \n#é]{0,200}") {
        let _ = toml(&text);
        let _ = json(&text);
    }

    #[test]
    fn any_cpu_topology_that_is_taken_multiplies_to_the_count(
        count in 0_u8..=70, threads in 0_u8..=70, cores in proptest::option::of(0_u8..=70),
    ) {
        let cores = cores.map_or(String::new(), |cores| format!("cores_per_socket = {cores}\n"));
        let text = format!("{SMALLEST}[cpus]\ncount = {count}\nthreads_per_core = {threads}\n{cores}");
        if let Ok(config) = toml(&text) {
            prop_assert!((1..=64).contains(&count));
            let topology = Topology::new(&config.cpus);
            prop_assert_eq!(u32::from(count) % topology.threads_per_socket(), 0);
        }
    }
}
