//! What a disk says of its own health (`smartctl --json`).

use serde::Deserialize;

use crate::program;

/// A disk's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Smart {
    /// It expects to live; hours that it has run, if it counts them.
    Good(Option<u64>),
    /// It expects to fail or has begun to; in words.
    Bad(String),
    /// It does not say: none, or behind a RAID controller that keeps it.
    Silent,
}

/// Attributes that are 0 on a disk whose surface is whole, with what they count.
const SPOILT: [(u64, &str); 3] = [
    (5, "sectors replaced"),
    (197, "sectors that cannot be read"),
    (198, "sectors that cannot be read, found offline"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    smart_status: Option<Status>,
    power_on_time: Option<PowerOn>,
    ata_smart_attributes: Attributes,
    scsi_grown_defect_list: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Status {
    passed: bool,
}

#[derive(Debug, Deserialize)]
struct PowerOn {
    hours: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attributes {
    table: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
struct Attribute {
    id: u64,
    raw: Raw,
}

#[derive(Debug, Deserialize)]
struct Raw {
    value: u64,
}

impl Smart {
    /// Asks the disk at `path`.
    pub fn of(path: &str) -> Self {
        let arguments = ["--json", "--info", "--health", "--attributes", path];
        // Its exit status is a set of bits that its answer says in more words.
        let output = program::output("smartctl", &arguments, b"");
        output.map_or(Self::Silent, |output| Self::parse(&output.stdout))
    }

    fn parse(json: &[u8]) -> Self {
        let answer: Answer = serde_json::from_slice(json).unwrap_or_default();
        let attributes = &answer.ata_smart_attributes.table;
        let spoilt = SPOILT.iter().filter_map(|(id, what)| {
            // The upper bytes are the maker's own.
            let found = attributes.iter().find(|it| it.id == *id)?.raw.value & 0xffff_ffff;
            (found > 0).then(|| format!("{found} {what}"))
        });
        let mut signs: Vec<String> = spoilt.collect();
        if let Some(defects) = answer.scsi_grown_defect_list.filter(|defects| *defects > 0) {
            signs.push(format!("{defects} sectors replaced"));
        }
        match answer.smart_status {
            Some(Status { passed: false }) => {
                signs.insert(0, "it expects to fail soon".to_owned());
                Self::Bad(signs.join(", "))
            }
            _ if !signs.is_empty() => Self::Bad(signs.join(", ")),
            Some(_) => Self::Good(answer.power_on_time.map(|time| time.hours)),
            None => Self::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_read_from_what_smartctl_prints() {
        let good = br#"{"smart_status": {"passed": true}, "power_on_time": {"hours": 41000},
            "ata_smart_attributes": {"table": [{"id": 5, "raw": {"value": 0, "string": "0"}}]}}"#;
        assert_eq!(Smart::parse(good), Smart::Good(Some(41000)));
        let worn = br#"{"smart_status": {"passed": true},
            "ata_smart_attributes": {"table": [{"id": 197, "raw": {"value": 8, "string": "8"}}]}}"#;
        assert_eq!(
            Smart::parse(worn),
            Smart::Bad("8 sectors that cannot be read".into())
        );
        let failing = br#"{"smart_status": {"passed": false}, "scsi_grown_defect_list": 3}"#;
        let words = "it expects to fail soon, 3 sectors replaced";
        assert_eq!(Smart::parse(failing), Smart::Bad(words.into()));
        let unknown =
            br#"{"smartctl": {"messages": [{"string": "Unable to detect device type"}]}}"#;
        assert_eq!(Smart::parse(unknown), Smart::Silent);
        assert_eq!(Smart::parse(b""), Smart::Silent);
    }
}
