//! Which version runs, and which is older.

use std::sync::LazyLock;

use semver::Version;

use super::UpdateError;

/// Where an image says what it is (os-release(5)).
const OS_RELEASE: &str = "/etc/os-release";

/// The version of the image that runs here, if it is one of Pindah's.
static IMAGE: LazyLock<Option<String>> = LazyLock::new(|| {
    let os_release = std::fs::read_to_string(OS_RELEASE).ok()?;
    image_version(&os_release).map(str::to_owned)
});

/// The version of Pindah that this node runs: the image's, or else the agent's own.
pub fn installed_version() -> &'static str {
    IMAGE.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"))
}

/// Whether an image of Pindah runs here, installed or not.
pub(super) fn is_image() -> bool {
    IMAGE.is_some()
}

fn image_version(os_release: &str) -> Option<&str> {
    let value = |key: &str| {
        let mut lines = os_release.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"'))
    };
    (value("IMAGE_ID") == Some("pindah"))
        .then(|| value("IMAGE_VERSION"))
        .flatten()
}

/// Whether `found` is older than `installed`. What is no version itself is older than all.
///
/// # Errors
/// [`UpdateError::Version`]: `found` is none.
pub(super) fn is_older(found: &str, installed: &str) -> Result<bool, UpdateError> {
    let parsed = Version::parse(found).map_err(|_| UpdateError::Version(found.to_owned()))?;
    // Builds of one version are alike.
    let older = |installed: Version| parsed.cmp_precedence(&installed).is_lt();
    Ok(Version::parse(installed).is_ok_and(older))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_image_s_if_it_is_ours() {
        let ours = "NAME=\"Debian\"\nIMAGE_ID=pindah\nIMAGE_VERSION=\"0.2.0\"\n";
        assert_eq!(image_version(ours), Some("0.2.0"));
        assert_eq!(image_version("IMAGE_ID=other\nIMAGE_VERSION=7\n"), None);
        assert_eq!(image_version("IMAGE_ID=pindah\n"), None);
        assert_eq!(image_version(""), None);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (found, installed, older) in [
            ("0.9.0", "0.10.0", true),
            ("0.10.0", "0.9.0", false),
            ("0.2.0", "0.2.0", false),
            ("0.2.0-rc.1", "0.2.0", true),
            ("0.2.0", "0.2.0-rc.1", false),
            ("0.2.0+1", "0.2.0+2", false),
            ("0.1.0", "unknown", false),
        ] {
            let found_older = is_older(found, installed).unwrap();
            assert_eq!(found_older, older, "{found} after {installed}");
        }
        for none in ["", "1.2", "v1.2.3", "1.2.3 "] {
            assert!(is_older(none, "0.1.0").is_err(), "{none:?}");
        }
    }
}
