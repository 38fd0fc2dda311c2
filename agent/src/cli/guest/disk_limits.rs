//! `pindah guest disk limit`, and the limits of a new guest's disks.

use clap::Args;
use reqwest::{Method, header};

use super::{path, segment};
use crate::api::{Data, GuestView};
use crate::cli::output::Output;
use crate::cli::size::parse_bytes;
use crate::client::Client;
use crate::domain::{Disk, DiskLimits};

/// Limits of a new guest's disks.
#[derive(Debug, Args)]
pub(super) struct NewDiskLimits {
    /// Most that each of its disks reads and writes in a second, as in 20M.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    disk_bandwidth: Option<u64>,
    /// Most requests of each of its disks in a second.
    #[arg(long, value_name = "N")]
    disk_iops: Option<u64>,
}

impl NewDiskLimits {
    pub(super) fn limits(&self) -> DiskLimits {
        DiskLimits {
            bandwidth_bytes_per_s: self.disk_bandwidth,
            iops: self.disk_iops,
        }
    }
}

/// Which disk, and its limits.
#[derive(Debug, Args)]
pub(in crate::cli) struct LimitArguments {
    /// Name or UUID.
    guest: String,
    /// The disk, as in disk0.
    disk: String,
    #[command(flatten)]
    limits: LimitFlags,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct LimitFlags {
    /// Most that it reads and writes in a second, as in 20M; none: no limit.
    #[arg(long, value_name = "SIZE|none", value_parser = bandwidth)]
    bandwidth: Option<Limit>,
    /// Most requests in a second, flushes included; none: no limit.
    #[arg(long, value_name = "N|none", value_parser = iops)]
    iops: Option<Limit>,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

fn bandwidth(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        size => parse_bytes(size).map(|bytes| Limit(Some(bytes))),
    }
}

fn iops(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        number => number
            .parse()
            .map(|number| Limit(Some(number)))
            .map_err(|_| {
                let (least, most) = pindah_vmm_api::DiskLimits::IOPS.into_inner();
                format!("must be a number from {least} to {most}, or none")
            }),
    }
}

impl LimitFlags {
    /// The limits with what the flags say.
    fn apply(&self, mut limits: DiskLimits) -> DiskLimits {
        if let Some(Limit(bandwidth)) = self.bandwidth {
            limits.bandwidth_bytes_per_s = bandwidth;
        }
        if let Some(Limit(iops)) = self.iops {
            limits.iops = iops;
        }
        limits
    }
}

fn find<'a>(guest: &'a GuestView, id: &str) -> anyhow::Result<&'a Disk> {
    let disk = guest.disks.iter().find(|disk| disk.id == id);
    disk.ok_or_else(|| anyhow::anyhow!("guest {} has no disk {id}", guest.name))
}

impl LimitArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let id = segment(&self.disk)?.to_owned();
        let (guest, etag) = client
            .get_tagged::<GuestView>(&path(&self.guest, "")?)
            .await?;
        let limits = self.limits.apply(find(&guest, &id)?.limits);
        let path = path(&self.guest, &format!("/disks/{id}/limits"))?;
        let request = client
            .request(Method::PUT, &path)
            .header(header::IF_MATCH, etag)
            .json(&limits);
        let limited: Data<GuestView> = client.send(request).await?.json().await?;
        output.show(&limited.data, |guest| {
            if limits.is_empty() {
                format!("{id} of {} has no limits", guest.name)
            } else {
                format!("{id} of {} takes at most {limits}", guest.name)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: LimitFlags,
    }

    fn apply(line: &str, limits: DiskLimits) -> Result<DiskLimits, String> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(line.flags.apply(limits))
    }

    #[test]
    fn flags_set_what_they_name_and_none_lifts_it() {
        let both = apply("--bandwidth 20M --iops 500", DiskLimits::default()).unwrap();
        assert_eq!(both.to_string(), "20 MiB/s, 500 IOPS");
        let slower = apply("--bandwidth 512K", both).unwrap();
        assert_eq!(slower.to_string(), "512 KiB/s, 500 IOPS");
        let lifted = apply("--bandwidth none", both).unwrap();
        assert_eq!(lifted.to_string(), "500 IOPS");
        assert!(apply("--iops none", lifted).unwrap().is_empty());
    }

    #[test]
    fn wrong_flags_are_refused_with_the_reason() {
        for (line, expected) in [
            ("", "required arguments were not provided"),
            ("--bandwidth 20", "needs a unit"),
            (
                "--iops many",
                "must be a number from 10 to 1000000, or none",
            ),
        ] {
            let message = apply(line, DiskLimits::default()).unwrap_err();
            assert!(message.contains(expected), "{line} gives {message}");
        }
    }
}
