//! Which disk the answers mean.

use std::path::Path;

use thiserror::Error;

use super::Disk;
use crate::answers::{DiskWish, Pick};

/// Why no disk was chosen.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChooseError {
    /// There is none to which all applies.
    #[error("no disk is what the answers ask for: {}", .0.join("; "))]
    None(Vec<String>),
    /// There are several.
    #[error("{} are all what the answers ask for: say more about the one that is meant, or pick = \"smallest\" or \"largest\"", .0.join(", "))]
    Several(Vec<String>),
    /// It cannot be used.
    #[error("{disk} {obstacle}")]
    Obstacle {
        /// Its title.
        disk: String,
        /// Why not.
        obstacle: String,
    },
    /// Something is on it.
    #[error("{disk} is not blank: {}; only disk.erase = true lets it be destroyed", content.join(", "))]
    NotBlank {
        /// Its title.
        disk: String,
        /// What is on it.
        content: Vec<String>,
    },
    /// Another disk has a Pindah, so that the machine would not know which one to start.
    #[error(
        "{0} has another Pindah on it, and the machine would start now this one, now that: take it out, or run `wipefs --all {0}` in a shell if nothing on it is needed"
    )]
    Twin(String),
}

/// The disk that `wish` means, ready to be written.
///
/// # Errors
/// [`ChooseError`].
pub fn choose<'a>(wish: &DiskWish, disks: &'a [Disk]) -> Result<&'a Disk, ChooseError> {
    let mut fitting = Vec::new();
    let mut reasons = Vec::new();
    for disk in disks {
        match misfit(wish, disk) {
            None => fitting.push(disk),
            Some(reason) => reasons.push(format!("{} {reason}", disk.title())),
        }
    }
    if reasons.is_empty() && fitting.is_empty() {
        reasons.push("the machine shows none at all; is its controller's driver missing?".into());
    }
    let disk = match (wish.pick, &*fitting) {
        (_, []) => return Err(ChooseError::None(reasons)),
        (_, [disk]) => disk,
        (Some(Pick::Smallest), _) => extreme(&fitting, |disk| disk.size_bytes)?,
        (Some(Pick::Largest), _) => extreme(&fitting, |disk| u64::MAX - disk.size_bytes)?,
        (None, _) => return Err(several(&fitting)),
    };
    check(disk, disks, wish.erase)?;
    Ok(disk)
}

/// Whether `disk` of `disks` may be written.
///
/// # Errors
/// [`ChooseError`], without [`ChooseError::None`] and [`ChooseError::Several`].
pub(crate) fn check(disk: &Disk, disks: &[Disk], erase: bool) -> Result<(), ChooseError> {
    if let Some(obstacle) = disk.obstacle() {
        return Err(ChooseError::Obstacle {
            disk: disk.title(),
            obstacle,
        });
    }
    if !erase && !disk.content.is_empty() {
        return Err(ChooseError::NotBlank {
            disk: disk.title(),
            content: disk.content.clone(),
        });
    }
    // No machine starts from a file.
    let mut others = disks
        .iter()
        .filter(|other| other.path != disk.path && !other.is_loop);
    match others.find(|other| other.has_pindah()) {
        Some(twin) => Err(ChooseError::Twin(twin.path.clone())),
        None => Ok(()),
    }
}

fn several(disks: &[&Disk]) -> ChooseError {
    ChooseError::Several(disks.iter().map(|disk| disk.title()).collect())
}

/// The one with the least `rank`, if it is one alone.
fn extreme<'a>(disks: &[&'a Disk], rank: impl Fn(&Disk) -> u64) -> Result<&'a Disk, ChooseError> {
    let least = disks.iter().map(|disk| rank(disk)).min();
    let best: Vec<&Disk> = disks
        .iter()
        .copied()
        .filter(|disk| Some(rank(disk)) == least)
        .collect();
    match &*best {
        [disk] => Ok(disk),
        _ => Err(several(&best)),
    }
}

/// Why `disk` is not what `wish` says; a sentence without its subject.
fn misfit(wish: &DiskWish, disk: &Disk) -> Option<String> {
    let resolved = wish.path.as_ref().map(|path| {
        let target = std::fs::canonicalize(path);
        target.unwrap_or_else(|_| path.into())
    });
    if let (Some(wanted), Some(resolved)) = (&wish.path, resolved)
        && resolved != Path::new(&disk.path)
    {
        return Some(format!("is not {wanted}"));
    }
    if let Some(serial) = &wish.serial
        && *serial != disk.serial
    {
        return Some(format!("has the serial number {:?}", disk.serial));
    }
    if let Some(model) = &wish.model
        && !disk.model.to_lowercase().contains(&model.to_lowercase())
    {
        return Some(format!("is no {model}"));
    }
    if wish.min_bytes.is_some_and(|min| disk.size_bytes < min) {
        return Some("is smaller than min_size".to_owned());
    }
    if wish.max_bytes.is_some_and(|max| disk.size_bytes > max) {
        return Some("is larger than max_size".to_owned());
    }
    let named = wish.path.is_some() || wish.serial.is_some();
    if named {
        return None;
    }
    if disk.removable {
        return Some("is removable: name its path or serial if it is meant".to_owned());
    }
    if disk.is_loop {
        return Some("is a file: name its path if it is meant".to_owned());
    }
    // One that cannot be used at all is not what anybody means who names none.
    disk.obstacle()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &str, gib: u64, model: &str) -> Disk {
        Disk {
            path: path.to_owned(),
            size_bytes: gib << 30,
            model: model.to_owned(),
            serial: format!("S{gib}"),
            ..Disk::default()
        }
    }

    fn disks() -> Vec<Disk> {
        let mut stick = disk("/dev/sdc", 8, "DataTraveler");
        stick.removable = true;
        stick.used_by = Some("/dev/sdc1 is mounted at /run/live/medium".into());
        vec![
            disk("/dev/sda", 320, "LOGICAL VOLUME"),
            disk("/dev/sdb", 931, "ST1000DM003"),
            stick,
        ]
    }

    fn chosen(wish: &DiskWish, disks: &[Disk]) -> Result<String, String> {
        let chosen = choose(wish, disks).map(|disk| disk.path.clone());
        chosen.map_err(|error| error.to_string())
    }

    #[test]
    fn disk_is_found_by_whatever_the_answers_say() {
        let wish = DiskWish::default;
        let path = |path: &str| Some(path.to_owned());
        for (wish, expected) in [
            (
                DiskWish {
                    path: path("/dev/sdb"),
                    ..wish()
                },
                "/dev/sdb",
            ),
            (
                DiskWish {
                    serial: path("S320"),
                    ..wish()
                },
                "/dev/sda",
            ),
            (
                DiskWish {
                    model: path("st1000"),
                    ..wish()
                },
                "/dev/sdb",
            ),
            (
                DiskWish {
                    min_bytes: Some(400 << 30),
                    ..wish()
                },
                "/dev/sdb",
            ),
            (
                DiskWish {
                    max_bytes: Some(400 << 30),
                    ..wish()
                },
                "/dev/sda",
            ),
            (
                DiskWish {
                    pick: Some(Pick::Smallest),
                    ..wish()
                },
                "/dev/sda",
            ),
            (
                DiskWish {
                    pick: Some(Pick::Largest),
                    ..wish()
                },
                "/dev/sdb",
            ),
        ] {
            assert_eq!(chosen(&wish, &disks()).as_deref(), Ok(expected), "{wish:?}");
        }
    }

    #[test]
    fn several_and_none_are_told_with_all_disks() {
        let several = chosen(&DiskWish::default(), &disks()).unwrap_err();
        assert!(
            several.starts_with("/dev/sda (320.0 GiB, LOGICAL VOLUME), /dev/sdb"),
            "{several}"
        );
        assert!(several.contains("pick = "), "{several}");
        let wish = DiskWish {
            serial: Some("X".into()),
            ..DiskWish::default()
        };
        let none = chosen(&wish, &disks()).unwrap_err();
        assert!(
            none.contains("/dev/sda (320.0 GiB, LOGICAL VOLUME) has the serial number \"S320\"")
        );
        assert!(chosen(&wish, &[]).unwrap_err().contains("driver missing"));
        let twins = [disk("/dev/sda", 5, "x"), disk("/dev/sdb", 5, "x")];
        let wish = DiskWish {
            pick: Some(Pick::Smallest),
            ..DiskWish::default()
        };
        assert!(chosen(&wish, &twins).unwrap_err().contains("say more"));
    }

    #[test]
    fn disks_in_use_small_or_not_blank_are_refused() {
        let named = |erase| DiskWish {
            path: Some("/dev/sda".into()),
            erase,
            ..DiskWish::default()
        };
        let mut all = disks();
        all[0].content = vec!["partition 1: ntfs \"Windows\"".into()];
        let refused = chosen(&named(false), &all).unwrap_err();
        assert!(
            refused.contains("is not blank: partition 1: ntfs \"Windows\""),
            "{refused}"
        );
        assert_eq!(chosen(&named(true), &all).as_deref(), Ok("/dev/sda"));
        all[0].used_by = Some("/dev/sda1 is swap".into());
        let refused = chosen(&named(true), &all).unwrap_err();
        assert!(
            refused.ends_with("is in use: /dev/sda1 is swap"),
            "{refused}"
        );
        all[0].used_by = None;
        all[0].size_bytes = 2 << 30;
        let refused = chosen(&named(true), &all).unwrap_err();
        assert!(
            refused.ends_with("is too small: 3.6 GiB are needed"),
            "{refused}"
        );
        let stick = DiskWish {
            path: Some("/dev/sdc".into()),
            erase: true,
            ..DiskWish::default()
        };
        assert!(
            chosen(&stick, &all)
                .unwrap_err()
                .contains("/run/live/medium")
        );
    }

    #[test]
    fn second_pindah_is_refused_on_another_disk_only() {
        let mut all = disks();
        all[0].partition_names = vec!["pindah-esp".into()];
        let largest = DiskWish {
            pick: Some(Pick::Largest),
            ..DiskWish::default()
        };
        assert!(
            chosen(&largest, &all)
                .unwrap_err()
                .contains("wipefs --all /dev/sda")
        );
        let smallest = DiskWish {
            pick: Some(Pick::Smallest),
            ..DiskWish::default()
        };
        assert_eq!(chosen(&smallest, &all).as_deref(), Ok("/dev/sda"));
    }
}
