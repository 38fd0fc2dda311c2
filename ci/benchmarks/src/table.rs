//! The figures as a person reads them: a line for each case and metric, a column for each subject.

use std::fmt::Write;

use crate::record::Record;
use crate::subject::PINDAH;

/// Title of the last column: how many times better we are than the best peer.
const COMPARISON: &str = "pindah/best peer";

/// All figures of one bench: medians, with the range of the runs in brackets.
pub fn format(bench: &str, records: &[Record]) -> String {
    let subjects = distinct(records.iter().map(|record| record.subject.as_str()));
    let mut rows = vec![heading(&subjects)];
    let lines = distinct(
        records
            .iter()
            .map(|record| (record.case.as_str(), record.metric.name())),
    );
    for (case, metric) in lines {
        let of_line: Vec<&Record> = records
            .iter()
            .filter(|record| record.case == case && record.metric.name() == metric)
            .collect();
        rows.push(row(case, metric, &subjects, &of_line));
    }
    let runs = records.iter().map(|record| record.runs).max().unwrap_or(0);
    let mut text = format!("\n{bench}: median [range] of {runs} runs\n");
    text.push_str(&align(&rows));
    text
}

fn heading(subjects: &[&str]) -> Vec<String> {
    let titles = ["case", "metric"].into_iter();
    let titles = titles.chain(subjects.iter().copied()).chain([COMPARISON]);
    titles.map(str::to_owned).collect()
}

fn row(case: &str, metric: &str, subjects: &[&str], records: &[&Record]) -> Vec<String> {
    let mut cells = vec![case.to_owned(), metric.to_owned()];
    for subject in subjects {
        let record = records.iter().find(|record| record.subject == *subject);
        cells.push(record.map_or_else(|| "-".to_owned(), |record| cell(record)));
    }
    cells.push(comparison(records).unwrap_or_default());
    cells
}

fn cell(record: &Record) -> String {
    let (min, max) = (number(record.min), number(record.max));
    let mut text = format!("{} [{min} {max}]", number(record.median));
    if !record.tuning.is_empty() {
        let _ = write!(text, " {}", record.tuning);
    }
    text
}

/// Other builds of ours are no peers.
fn comparison(records: &[&Record]) -> Option<String> {
    let ours = records.iter().find(|record| record.subject == PINDAH)?;
    let peers = records
        .iter()
        .filter(|record| !record.subject.starts_with(PINDAH));
    let advantages = peers.map(|peer| ours.metric.advantage(ours.median, peer.median));
    let worst = advantages.filter(|a| a.is_finite()).reduce(f64::min)?;
    Some(format!("{worst:.2}"))
}

/// With groups of three digits, or with three significant ones.
fn number(value: f64) -> String {
    match value {
        _ if value >= 1000.0 => grouped(value.round() as u64),
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Two spaces between columns; no space at the end of a line.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        let cells = rows.iter().filter_map(|row| row.get::<usize>(column));
        let lens = cells.map(|cell: &String| cell.chars().count());
        lens.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Each once, in the order of first appearance.
fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Metric;

    fn record(subject: &str, metric: Metric, median: f64) -> Record {
        Record {
            bench: "block".to_owned(),
            case: "seqread".to_owned(),
            subject: subject.to_owned(),
            metric,
            unit: metric.unit(),
            median,
            min: median / 2.0,
            max: median * 2.0,
            runs: 5,
            tuning: "",
        }
    }

    #[test]
    fn format_puts_subjects_beside_each_other() {
        let records = [
            record("pindah", Metric::Iops, 20000.0),
            record("pindah", Metric::LatencyP99Us, 50.0),
            record("pindah-base", Metric::Iops, 1.0),
            record("qemu-q35", Metric::Iops, 10000.0),
            record("qemu-q35", Metric::LatencyP99Us, 25.0),
        ];
        let expected = "
block: median [range] of 5 runs
case     metric          pindah                  pindah-base       qemu-q35               pindah/best peer
seqread  iops            20,000 [10,000 40,000]  1.00 [0.50 2.00]  10,000 [5,000 20,000]  2.00
seqread  latency_p99_us  50.0 [25.0 100]         -                 25.0 [12.5 50.0]       0.50
";
        assert_eq!(format("block", &records), expected);
    }

    #[test]
    fn number_has_three_digits_at_least() {
        let texts = [0.123, 12.34, 123.4, 1234.5, 1_234_567.0].map(number);
        assert_eq!(texts, ["0.12", "12.3", "123", "1,235", "1,234,567"]);
    }
}
