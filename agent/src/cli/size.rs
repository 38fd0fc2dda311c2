//! Sizes as people write them.

/// Bytes of `512K`, `20M`, `8G` or `1T`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    parse(text, 0, "512K, 20M or 8G")
}

/// MiB of `512M`, `8G` or `1T`.
pub(super) fn parse_mib(text: &str) -> Result<u64, String> {
    parse(text, 20, "512M, 8G or 1T")
}

/// In units of 2 to the power `unit`; smaller ones are not known.
fn parse(text: &str, unit: u32, examples: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let given = text[digits.len()..].to_ascii_uppercase();
    let given = match given.as_str() {
        "K" | "KB" | "KIB" => Some(10),
        "M" | "MB" | "MIB" => Some(20),
        "G" | "GB" | "GIB" => Some(30),
        "T" | "TB" | "TIB" => Some(40),
        _ => None,
    };
    let Some(shift) = given.and_then(|given: u32| given.checked_sub(unit)) else {
        return Err(format!("{text:?} needs a unit, as in {examples}"));
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a size, as in {examples}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_needs_number_and_unit() {
        assert_eq!(parse_mib("512M"), Ok(512));
        assert_eq!(parse_mib("8g"), Ok(8192));
        assert_eq!(parse_mib("1TiB"), Ok(1 << 20));
        assert_eq!(parse_bytes("512K"), Ok(512 << 10));
        assert_eq!(parse_bytes("1tb"), Ok(1 << 40));
        for text in [
            "",
            "8",
            "G",
            "-1G",
            "1.5G",
            "1X",
            "99999999999999999T",
            "1é",
        ] {
            assert!(parse_mib(text).is_err(), "{text}");
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert!(parse_mib("512K").is_err());
    }
}
