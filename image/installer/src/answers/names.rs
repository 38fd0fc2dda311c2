//! Host names and time zones.

use std::path::Path;

/// What [`is_host_name`] asks for.
pub(crate) const HOST_NAME_MUST: &str = "it must be 1 to 63 lower-case letters, digits and \
                                         hyphens, from a letter on, and not \"localhost\"";

/// Whether `name` is what `pindahd` takes for a node's name.
pub(crate) fn is_host_name(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(valid)
        && name != "localhost"
}

/// The time zone of this name: looked up in `zones` if there are any.
///
/// # Errors
/// A sentence that says what to write.
pub(crate) fn zone(zones: &Path, zone: &str) -> Result<String, String> {
    if zone_is_in(zones, zone) {
        return Ok(zone.to_owned());
    }
    Err(format!(
        "time_zone = {zone:?}: there is no such zone; write one that `timedatectl list-timezones` \
         prints, as \"Asia/Jakarta\" or \"UTC\""
    ))
}

/// Whether there is such a zone in `zones`, or could be if that has none.
pub(crate) fn zone_is_in(zones: &Path, zone: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || "/_+-".contains(c);
    let sound = zone.starts_with(|c: char| c.is_ascii_uppercase())
        && !zone.ends_with('/')
        && !zone.contains("//")
        && zone.chars().all(valid);
    sound && (!zones.join("UTC").is_file() || zones.join(zone).is_file())
}
