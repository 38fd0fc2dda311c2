//! Configurations as text: TOML and JSON that is nearly right.

use pindah_vmm::config::{Config, Format};
use pindah_vmm_api::VmConfig;
use serde_json::{Map, Value, json};

use crate::input::Input;

const FIELDS: [(&str, &[&str]); 13] = [
    ("name", &[]),
    (
        "cpus",
        &["count", "threads_per_core", "cores_per_socket", "baseline"],
    ),
    (
        "memory",
        &[
            "size_mib",
            "backing",
            "huge_page_kib",
            "prefault",
            "mergeable",
        ],
    ),
    (
        "boot",
        &["kernel", "initrd", "cmdline", "protocol", "firmware"],
    ),
    (
        "disks",
        &[
            "id",
            "path",
            "format",
            "queues",
            "queue_size",
            "serial",
            "cache",
        ],
    ),
    (
        "nets",
        &["id", "tap", "mac", "queue_pairs", "queue_size", "vhost"],
    ),
    ("serial", &["file", "socket"]),
    ("console", &["file", "socket"]),
    ("rng", &[]),
    (
        "balloon",
        &["target_mib", "free_page_reporting", "stats_interval_s"],
    ),
    ("on_reset", &[]),
    ("unknown", &["a"]),
    ("", &[""]),
];

/// Runs one case.
pub fn run(data: &[u8]) {
    let input = &mut Input::new(data);
    let (text, format) = text(input);
    let Ok(config) = Config::parse(&text, format, "fuzz") else {
        return;
    };
    // The wire form is a fixed point.
    let wire = serde_json::to_string(&*config).expect("what was parsed can be written");
    let again = Config::parse(&wire, Format::Json, "wire").expect("a valid configuration");
    assert_eq!(again, config);
    let decoded: VmConfig = serde_json::from_str(&wire).expect("the same type");
    assert_eq!(decoded, *config);
}

fn text(input: &mut Input) -> (String, Format) {
    if input.chance(8) {
        let text = String::from_utf8_lossy(&input.bytes(200)).into_owned();
        return (text, input.pick(&[Format::Toml, Format::Json]));
    }
    let mut table = Map::new();
    if !input.chance(16) {
        table.insert("memory".to_owned(), json!({ "size_mib": 64 }));
    }
    for _ in 0..input.below(8) {
        let (name, fields) = input.pick(&FIELDS);
        let value = field(input, name, fields);
        table.insert(name.to_owned(), value);
    }
    let (mut text, format) = if input.chance(2) {
        (Value::Object(table).to_string(), Format::Json)
    } else {
        (toml_of(&table), Format::Toml)
    };
    if input.chance(8) && !text.is_empty() {
        let at = input.below(text.len());
        let with = String::from_utf8_lossy(&input.bytes(4)).into_owned();
        if text.is_char_boundary(at) {
            text.insert_str(at, &with);
        }
    }
    (text, format)
}

fn field(input: &mut Input, name: &str, fields: &[&str]) -> Value {
    if fields.is_empty() || input.chance(12) {
        return scalar(input);
    }
    let object = |input: &mut Input| {
        let mut object = Map::new();
        match name {
            "disks" => {
                object.insert("path".to_owned(), json!("disk.img"));
            }
            "nets" => {
                object.insert("tap".to_owned(), json!(format!("tap{}", input.below(4))));
            }
            "memory" => {
                object.insert("size_mib".to_owned(), json!(64));
            }
            _ => {}
        }
        for _ in 0..input.below(4) {
            object.insert(input.pick(fields).to_owned(), scalar(input));
        }
        Value::Object(object)
    };
    match name {
        "disks" | "nets" => (0..input.below(5)).map(|_| object(input)).collect(),
        _ => object(input),
    }
}

fn scalar(input: &mut Input) -> Value {
    const WORDS: [&str; 22] = [
        "",
        "guest",
        "host",
        "x86-64-v2",
        "memfd",
        "hugetlb",
        "anonymous",
        "raw",
        "qcow2",
        "direct",
        "buffered",
        "linux",
        "pvh",
        "auto",
        "off",
        "stdio",
        "exit",
        "reset",
        "52:54:00:12:34:56",
        "/dev/null",
        "console=ttyS0",
        "disk0",
    ];
    match input.below(8) {
        0 | 1 => json!(input.pick(&[1, 2, 4, 16, 64, 256, 1024, 2048])),
        2 => json!(input.edge() >> 1),
        3 => json!(-(input.edge() as i32 as i64)),
        4..=6 => json!(input.pick(&WORDS)),
        _ => input.pick(&[true, false]).into(),
    }
}

/// JSON's values in TOML's syntax: inline tables.
fn toml_of(table: &Map<String, Value>) -> String {
    let lines = table
        .iter()
        .map(|(key, value)| format!("{key:?} = {}\n", inline(value)));
    lines.collect()
}

fn inline(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let pairs = object
                .iter()
                .map(|(key, value)| format!("{key:?} = {}", inline(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}
