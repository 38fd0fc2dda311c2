//! The VLANs of a guest's interface (IEEE 802.1Q).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;

/// Most ranges of a trunk.
const RANGES_MAX: usize = 64;
/// The VLANs that there are.
const IDS: std::ops::RangeInclusive<u16> = 1..=4094;

/// The VLANs of an interface; without any it has what is untagged on its network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Vlan {
    /// The VLAN of the guest's untagged frames, 1 to 4094; absent: what is untagged on the network,
    /// or with a trunk none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4094)]
    pub access: Option<u16>,
    /// VLANs whose frames the guest sends and gets with their tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["10", "20-29"]))]
    pub trunk: Vec<VlanRange>,
}

impl Vlan {
    /// Refuses what no bridge can do.
    pub(super) fn check(&self, field: &str) -> Result<(), Invalid> {
        if let Some(access) = self.access
            && !IDS.contains(&access)
        {
            let must = "must be 1 to 4094";
            return Err(Invalid::number(format!("{field}.access"), access, must));
        }
        if self.trunk.len() > RANGES_MAX {
            let must = format!("must be at most {RANGES_MAX} ranges");
            let count = self.trunk.len();
            return Err(Invalid::number(format!("{field}.trunk"), count, must));
        }
        let mut taken: Vec<VlanRange> = Vec::new();
        if let Some(access) = self.access {
            let (first, last) = (access, access);
            taken.push(VlanRange { first, last });
        }
        for range in &self.trunk {
            if taken.iter().any(|other| range.meets(*other)) {
                let must = "must name each VLAN once, and not the untagged one";
                let range = range.to_string();
                return Err(Invalid::text(format!("{field}.trunk"), &range, must));
            }
            taken.push(*range);
        }
        Ok(())
    }
}

impl std::fmt::Display for Vlan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges: Vec<String> = self.trunk.iter().map(ToString::to_string).collect();
        match (self.access, ranges.is_empty()) {
            (None, true) => formatter.write_str("untagged"),
            (Some(access), true) => write!(formatter, "VLAN {access}"),
            (None, false) => write!(formatter, "VLANs {} tagged", ranges.join(",")),
            (Some(access), false) => {
                write!(formatter, "VLAN {access}, {} tagged", ranges.join(","))
            }
        }
    }
}

/// VLANs in a row, as text: `20` or `20-29`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VlanRange {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl VlanRange {
    fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl TryFrom<String> for VlanRange {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last))
                if IDS.contains(&first) && IDS.contains(&last) && first <= last =>
            {
                Ok(Self { first, last })
            }
            _ => {
                let must = "must be a VLAN, 1 to 4094, or a range, as in 20-29";
                Err(Invalid::text("vlan", &text, must))
            }
        }
    }
}

impl From<VlanRange> for String {
    fn from(range: VlanRange) -> Self {
        range.to_string()
    }
}

impl std::fmt::Display for VlanRange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Vlan, String> {
        let vlan: Vlan = serde_json::from_str(json).map_err(|error| error.to_string())?;
        vlan.check("vlan").map_err(|error| error.to_string())?;
        Ok(vlan)
    }

    #[test]
    fn vlans_are_read_and_shown() {
        for (json, shown) in [
            ("{}", "untagged"),
            (r#"{"access":20}"#, "VLAN 20"),
            (r#"{"trunk":["10","20-29"]}"#, "VLANs 10,20-29 tagged"),
            (r#"{"access":1,"trunk":["4094"]}"#, "VLAN 1, 4094 tagged"),
        ] {
            let vlan = check(json).unwrap();
            assert_eq!(vlan.to_string(), shown);
            assert_eq!(serde_json::to_string(&vlan).unwrap(), json);
        }
    }

    #[test]
    fn what_is_no_vlan_is_refused() {
        for (json, expected) in [
            (r#"{"access":0}"#, "vlan.access = 0: must be 1 to 4094"),
            (r#"{"access":4095}"#, "must be 1 to 4094"),
            (r#"{"access":70000}"#, "invalid value"),
            (r#"{"trunk":["30-20"]}"#, "vlan = \"30-20\""),
            (r#"{"trunk":["x"]}"#, "vlan = \"x\""),
            (r#"{"trunk":["0-5"]}"#, "must be a VLAN"),
            (
                r#"{"trunk":["10-20","15"]}"#,
                "vlan.trunk = \"15\": must name each",
            ),
            (
                r#"{"access":12,"trunk":["10-20"]}"#,
                "and not the untagged one",
            ),
            (r#"{"native":1}"#, "unknown field"),
        ] {
            let message = check(json).unwrap_err();
            assert!(message.contains(expected), "{json} gives {message}");
        }
    }
}
