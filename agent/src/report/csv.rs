//! The report for a spreadsheet: a line a guest or node and period (RFC 4180).

use csv::Writer;

use super::{Report, ReportRow, UsageFigures};

const HEAD: [&str; 17] = [
    "kind",
    "name",
    "since",
    "until",
    "measured_s",
    "cpu_percent_average",
    "cpu_percent_p95",
    "cpu_percent_max",
    "memory_percent_average",
    "memory_percent_p95",
    "memory_percent_max",
    "network_kbit_s_average",
    "network_kbit_s_p95",
    "network_kbit_s_max",
    "disk_kib_s_average",
    "disk_kib_s_p95",
    "disk_kib_s_max",
];

/// The report as CSV; what is not known is empty.
pub fn csv(report: &Report) -> String {
    let mut writer = Writer::from_writer(Vec::new());
    // Nothing that is written to memory fails, and all lines have the head's length.
    let _ = writer.write_record(HEAD);
    for (kind, rows) in [("node", &report.nodes), ("guest", &report.guests)] {
        for row in rows {
            for line in lines(report, kind, row) {
                let _ = writer.write_record(line);
            }
        }
    }
    let bytes = writer.into_inner().unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

fn lines(report: &Report, kind: &str, row: &ReportRow) -> Vec<Vec<String>> {
    let now = Some((&report.period, row.usage));
    let before = report.compared.as_ref().zip(row.before);
    let periods = now.into_iter().chain(before);
    let lines = periods.map(|(period, usage)| {
        let mut line = vec![
            kind.to_owned(),
            row.name.clone(),
            period.since.clone(),
            period.until.clone(),
            usage.measured_s.to_string(),
        ];
        line.extend(figures(&usage));
        line
    });
    lines.collect()
}

fn figures(usage: &UsageFigures) -> Vec<String> {
    let columns = usage.columns().into_iter();
    let all = columns.flat_map(|column| {
        let known = column.map(|known| [known.average, known.p95, known.maximum]);
        let texts = known.map(|known| known.map(|figure| figure.to_string()));
        texts.unwrap_or_default()
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn each_guest_has_a_line_a_period() {
        let csv = csv(&example());
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 4, "{csv}");
        let columns = |line: &str| line.split(',').count();
        assert!(
            lines.iter().all(|line| columns(line) == HEAD.len()),
            "{csv}"
        );
        assert_eq!(
            lines[2],
            "guest,web,2026-11-01T00:00:00Z,2026-11-16T00:00:00Z,1296000,\
             1,2,3,32,64,96,518,1036,1554,,,"
        );
        assert!(lines[3].starts_with("guest,web,2026-10-01"), "{csv}");
        assert!(lines[3].contains(",4,8,12,"), "{csv}");
    }
}
