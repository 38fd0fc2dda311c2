//! `pindah report`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::Method;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

use super::output::{self, Output, duration, figure, table};
use crate::api::ReportFormat;
use crate::client::Client;
use crate::domain::Advice;
use crate::report::{Period, Report, ReportRow, UsageFigures};

/// Of which time, and in which form.
#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// Begin: how long ago (15d, 12h), a day (2026-11-01) or a time in RFC 3339.
    #[arg(long, value_name = "TIME", default_value = "15d")]
    since: String,
    /// End, in the same way; absent: now.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Compare with another time: so long before the begin (15d), or TIME..TIME.
    #[arg(long, value_name = "PERIOD")]
    compare: Option<String>,
    /// Print CSV, a line a guest or node and period.
    #[arg(long, conflicts_with = "html")]
    csv: bool,
    /// Write a page to print.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// `15d`, `12h`, `30m` or `2w`.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_s = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(Duration::from_secs(u64::from(number) * unit_s))
}

/// A time as people write it; how long ago counts from `now`.
fn parse_time(text: &str, now: OffsetDateTime) -> anyhow::Result<OffsetDateTime> {
    if let Some(ago) = parse_duration(text) {
        return now.checked_sub(ago.try_into()?).context("too long ago");
    }
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let midnight = format!("{text}T00:00:00Z");
    let day = OffsetDateTime::parse(&midnight, &Rfc3339).map(OffsetDateTime::date);
    match day {
        Ok(day) => Ok(Date::midnight(day).assume_utc()),
        Err(_) => bail!(
            "{text:?} is no time: write how long ago (15d, 12h), a day (2026-11-01) or a time \
             (2026-11-01T08:00:00Z)"
        ),
    }
}

/// The two times of a period to compare with one that begins at `since`.
fn parse_period(
    text: &str,
    since: OffsetDateTime,
    now: OffsetDateTime,
) -> anyhow::Result<(OffsetDateTime, OffsetDateTime)> {
    if let Some((from, to)) = text.split_once("..") {
        return Ok((parse_time(from, now)?, parse_time(to, now)?));
    }
    match parse_duration(text) {
        Some(length) => {
            let from = since.checked_sub(length.try_into()?);
            Ok((from.context("too long ago")?, since))
        }
        None => bail!("{text:?} is no period: write how long (15d), or TIME..TIME"),
    }
}

impl ReportArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let now = OffsetDateTime::now_utc();
        let since = parse_time(&self.since, now)?;
        let mut times = vec![("since", since)];
        if let Some(until) = &self.until {
            times.push(("until", parse_time(until, now)?));
        }
        if let Some(period) = &self.compare {
            let (from, to) = parse_period(period, since, now)?;
            times.extend([("compare_since", from), ("compare_until", to)]);
        }
        let mut query = Vec::new();
        for (name, time) in times {
            query.push((name, time.format(&Rfc3339)?));
        }
        let request = client.request(Method::GET, "/report").query(&query);
        let text = async |format: ReportFormat| {
            let request = request.try_clone().context("cannot ask twice")?;
            let answer = client.send(request.query(&[("format", format)])).await?;
            anyhow::Ok(answer.text().await?)
        };
        if let Some(path) = &self.html {
            let page = text(ReportFormat::Html).await?;
            return std::fs::write(path, page)
                .with_context(|| format!("cannot write {}", path.display()));
        }
        if self.csv {
            output::print(text(ReportFormat::Csv).await?.trim_end())
        } else {
            let report: Report = client.data(request).await?;
            output.show(&report, show)
        }
    }
}

fn show(report: &Report) -> String {
    let period = |period: &Period| format!("{} to {}", period.since, period.until);
    let mut head = period(&report.period);
    if let Some(compared) = &report.compared {
        head = format!("{head}, compared with {}", period(compared));
    }
    let mut parts = vec![head];
    if !report.missing_nodes.is_empty() {
        let missing = report.missing_nodes.join(", ");
        parts.push(format!("not heard of in time, and missing: {missing}"));
    }
    if !report.nodes.is_empty() {
        parts.push(rows("NODE", &report.nodes));
    }
    parts.push(rows("GUEST", &report.guests));
    parts.extend(report.advice.as_ref().map(advise));
    parts.join("\n\n")
}

fn rows(kind: &str, rows: &[ReportRow]) -> String {
    let head = [
        kind,
        "CPU %",
        "95 %",
        "MAX",
        "MEMORY %",
        "95 %",
        "MAX",
        "NET kbit/s",
        "95 %",
        "MAX",
        "DISK KiB/s",
        "95 %",
        "MAX",
        "MEASURED",
    ];
    let lines = rows.iter().flat_map(|row| {
        let before = row.before.iter();
        let before = before.map(|before| cells("  compared", before));
        std::iter::once(cells(&row.name, &row.usage)).chain(before)
    });
    table(&head, lines)
}

fn cells(name: &str, usage: &UsageFigures) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    for column in usage.columns() {
        let known = column.map(|known| [known.average, known.p95, known.maximum].map(Some));
        cells.extend(known.unwrap_or([None; 3]).map(figure));
    }
    cells.push(duration(usage.measured_s));
    cells
}

fn advise(advice: &Advice) -> String {
    let mut lines = Vec::new();
    for size in &advice.sizes {
        lines.push(format!("{}: {}: {}", size.guest, size.reason, size.command));
    }
    if !advice.measured_too_short.is_empty() {
        let names = advice.measured_too_short.join(", ");
        lines.push(format!(
            "measured for less than a day, and not judged: {names}"
        ));
    }
    for loss in &advice.losses {
        lines.push(format!("if {} dies: {}", loss.node, loss.summary));
    }
    for (number, place) in advice.places.iter().enumerate() {
        let rank = if number == 0 {
            "a new guest goes best to"
        } else {
            "or to"
        };
        lines.push(format!(
            "{rank} {}: {} MiB free",
            place.node, place.free_mib
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let seconds = |text| parse_time(text, now).map(OffsetDateTime::unix_timestamp);
        assert_eq!(seconds("15d").unwrap(), 1_800_000_000 - 15 * 86_400);
        assert_eq!(seconds("90m").unwrap(), 1_800_000_000 - 5400);
        assert_eq!(seconds("2026-11-01").unwrap(), 1_793_491_200);
        assert_eq!(seconds("2026-11-01T01:00:00+01:00").unwrap(), 1_793_491_200);
        for text in [
            "",
            "d",
            "5",
            "-1d",
            "soon",
            "2026-13-01",
            "9999999999d",
            "1é",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
        let (from, to) = parse_period("1d", now, now).unwrap();
        assert_eq!((to - from).whole_hours(), 24);
        assert!(parse_period("2026-10-01..2026-10-16", now, now).is_ok());
        assert!(parse_period("before", now, now).is_err());
    }

    #[test]
    fn table_has_both_periods_and_advice() {
        let text = show(&crate::report::example());
        for word in [
            "compared with",
            "NODE",
            "GUEST",
            "  compared",
            "518",
            "node2",
            "15 d",
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}
