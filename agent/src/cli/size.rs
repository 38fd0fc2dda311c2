//! Sizes as people write them.

/// MiB of `512M`, `8G` or `1T`.
pub(super) fn parse_mib(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let shift = match unit.as_str() {
        "M" | "MB" | "MIB" => 0,
        "G" | "GB" | "GIB" => 10,
        "T" | "TB" | "TIB" => 20,
        _ => return Err(format!("{text:?} needs a unit, as in 512M, 8G or 1T")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a size, as in 512M, 8G or 1T"))?;
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
        }
    }
}
