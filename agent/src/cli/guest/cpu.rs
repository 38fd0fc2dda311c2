//! `--cpu-weight` and `--cpu-limit`, for `guest create` and `guest edit`.

use clap::Args;

use crate::domain::CpuLimits;

/// What a guest may take of its node's processors.
#[derive(Debug, Args)]
pub(super) struct CpuFlags {
    /// Its share when guests compete, against the 100 of each other one; none: 100.
    #[arg(long, value_name = "N|none", value_parser = weight)]
    cpu_weight: Option<Limit>,
    /// The most that it gets: 150% of one CPU, or 1.5 CPUs; none: all.
    #[arg(long, value_name = "N%|N|none", value_parser = limit)]
    cpu_limit: Option<Limit>,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

impl CpuFlags {
    /// The limits with what the flags say; `None`: they say nothing.
    pub(super) fn apply(&self, mut limits: CpuLimits) -> Option<CpuLimits> {
        if self.cpu_weight.is_none() && self.cpu_limit.is_none() {
            return None;
        }
        if let Some(Limit(weight)) = self.cpu_weight {
            limits.weight = weight;
        }
        if let Some(Limit(percent)) = self.cpu_limit {
            limits.limit_percent = percent;
        }
        Some(limits)
    }
}

fn weight(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => match text.parse() {
            Ok(weight) => Ok(Limit(Some(weight))),
            Err(_) => Err("a weight is a number from 1 to 10000, or none".to_owned()),
        },
    }
}

fn limit(text: &str) -> Result<Limit, String> {
    let percent = match (text, text.strip_suffix('%')) {
        ("none", _) => return Ok(Limit(None)),
        (_, Some(percent)) => percent.parse().ok(),
        (cpus, None) => cpus.parse().ok().map(|cpus: f64| cpus * 100.0),
    };
    match percent {
        Some(percent) if (0.0..=1e6).contains(&percent) => Ok(Limit(Some(percent.round() as u64))),
        _ => {
            Err("a limit is a number of CPUs, as in 1.5, a part of one, as in 150%, or none".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_cpus_or_per_cent_of_one_or_none() {
        for (text, expected) in [
            ("150%", Some(Limit(Some(150)))),
            ("1.5", Some(Limit(Some(150)))),
            ("2", Some(Limit(Some(200)))),
            ("none", Some(Limit(None))),
            ("-1", None),
            ("much", None),
            ("NaN", None),
            ("%", None),
        ] {
            assert_eq!(limit(text).ok(), expected, "{text}");
        }
        assert_eq!(weight("none"), Ok(Limit(None)));
        assert!(weight("-1").is_err());
    }

    #[test]
    fn flags_change_what_they_name() {
        let flags = CpuFlags {
            cpu_weight: None,
            cpu_limit: Some(Limit(None)),
        };
        let limits = CpuLimits {
            weight: Some(50),
            limit_percent: Some(150),
        };
        let changed = flags.apply(limits).unwrap();
        assert_eq!((changed.weight, changed.limit_percent), (Some(50), None));
    }
}
