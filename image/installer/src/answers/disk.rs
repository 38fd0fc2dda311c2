//! Which disk is meant.

use toml::Spanned;

use super::file::DiskFile;
use super::mistake::Mistakes;
use super::size;

/// Which of several disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The one with the least space.
    Smallest,
    /// The one with the most.
    Largest,
}

/// The disk that is meant: one to which all of this applies. Without anything it is the only one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskWish {
    /// Its device file, or a link to it.
    pub path: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// A part of its model's name, in letters of either case.
    pub model: Option<String>,
    /// Its least size in bytes.
    pub min_bytes: Option<u64>,
    /// Its largest size in bytes.
    pub max_bytes: Option<u64>,
    /// Which one, if it is several.
    pub pick: Option<Pick>,
    /// What is on it may be destroyed.
    pub erase: bool,
}

impl DiskWish {
    pub(super) fn validate(file: DiskFile, mistakes: &mut Mistakes<'_>) -> Self {
        let upper = file.max_size.as_ref().map(Spanned::span);
        let wish = Self {
            path: mistakes.read(file.path, |path| {
                let device = path.starts_with("/dev/") && !path.split('/').any(|part| part == "..");
                let advice =
                    || format!("disk.path = {path:?}: write a path below /dev, as \"/dev/sda\"");
                device.then(|| path.to_owned()).ok_or_else(advice)
            }),
            serial: mistakes.read(file.serial, |text| some("serial", text)),
            model: mistakes.read(file.model, |text| some("model", text)),
            min_bytes: mistakes.read(file.min_size, |text| bytes("min_size", text)),
            max_bytes: mistakes.read(file.max_size, |text| bytes("max_size", text)),
            pick: mistakes.read(file.pick, |text| match text {
                "smallest" => Ok(Pick::Smallest),
                "largest" => Ok(Pick::Largest),
                _ => Err(format!(
                    "disk.pick = {text:?}: write \"smallest\" or \"largest\""
                )),
            }),
            erase: file.erase,
        };
        if let (Some(min), Some(max), Some(place)) = (wish.min_bytes, wish.max_bytes, upper)
            && max < min
        {
            mistakes.add(
                place,
                "disk.max_size is less than disk.min_size, so no disk fits: make it larger",
            );
        }
        wish
    }
}

fn some(field: &str, text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err(format!(
            "disk.{field} is empty: write it, or leave the line out"
        ));
    }
    Ok(text.to_owned())
}

fn bytes(field: &str, text: &str) -> Result<u64, String> {
    size::parse(text).ok_or_else(|| {
        format!("disk.{field} = {text:?}: write a whole number and M, G or T, as \"100G\"")
    })
}
