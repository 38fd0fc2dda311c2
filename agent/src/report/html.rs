//! The report for paper: one page of HTML without scripts, which any browser prints or saves as PDF.

use maud::{DOCTYPE, Markup, html as markup};

use super::{Period, Report, ReportRow, UsageFigures};
use crate::domain::{Advice, Figures};

const STYLE: &str = "
@page { size: A4 landscape; margin: 15mm }
body { font: 11pt/1.4 system-ui, sans-serif; color: #111; margin: 2em auto; max-width: 70em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 1.6em; break-after: avoid }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .2em .5em; text-align: right; border-bottom: 1px solid #bbb }
th:first-child, td:first-child { text-align: left }
thead { display: table-header-group } tr { break-inside: avoid }
.before td { color: #555 } .before td:first-child { padding-left: 1.5em }
.note { color: #555 } code { font-size: .95em }
";

/// The report as HTML; whatever stands in it is text.
pub fn html(report: &Report) -> String {
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "Pindah: " (period(&report.period)) }
                style { (STYLE) }
            }
            body {
                h1 { "What guests and nodes took" }
                p {
                    (period(&report.period))
                    @if let Some(compared) = &report.compared {
                        ", compared with " (period(compared))
                    }
                }
                @if !report.missing_nodes.is_empty() {
                    p { strong { "Not heard of in time, and missing: " (report.missing_nodes.join(", ")) } }
                }
                @if !report.nodes.is_empty() {
                    h2 { "Nodes" }
                    (table(&report.nodes))
                }
                h2 { "Guests" }
                (table(&report.guests))
                p.note {
                    "CPU: 100 % are all virtual CPUs of a guest, all processors of a node. Network and \
                     disk: both directions. Average and 95th percentile of minutes, or of hours where \
                     minutes are no more kept; maximum of 10 seconds."
                }
                @if let Some(advice) = &report.advice { (advise(advice)) }
            }
        }
    };
    page.into_string()
}

fn period(period: &Period) -> String {
    format!("{} to {}", period.since, period.until)
}

fn table(rows: &[ReportRow]) -> Markup {
    markup! {
        table {
            thead {
                tr {
                    th rowspan="2" {}
                    @for name in ["CPU %", "Memory %", "Network kbit/s", "Disk KiB/s"] {
                        th colspan="3" { (name) }
                    }
                    th rowspan="2" { "Measured" }
                }
                tr { @for _ in 0..4 { th { "average" } th { "95 %" } th { "maximum" } } }
            }
            tbody {
                @for row in rows {
                    tr { td { (row.name) } (cells(&row.usage)) }
                    @if let Some(before) = &row.before {
                        tr.before { td { "compared" } (cells(before)) }
                    }
                }
            }
        }
    }
}

fn cells(usage: &UsageFigures) -> Markup {
    let shown = |known: Option<Figures>| {
        known.map_or_else(
            || ["–"; 3].map(str::to_owned),
            |known| [known.average, known.p95, known.maximum].map(|figure| figure.to_string()),
        )
    };
    let hours = (usage.measured_s as f64 / 360.0).round() / 10.0;
    markup! {
        @for column in usage.columns() { @for figure in shown(column) { td { (figure) } } }
        td { (hours) " h" }
    }
}

fn advise(advice: &Advice) -> Markup {
    markup! {
        h2 { "Advice" }
        @if advice.sizes.is_empty() {
            p { "No guest that was measured for a day has too much or too little." }
        }
        @else {
            ul { @for size in &advice.sizes {
                li { (size.guest) ": " (size.reason) ". " code { (size.command) } }
            } }
        }
        @if !advice.measured_too_short.is_empty() {
            p.note {
                "Measured for less than a day, and not judged: " (advice.measured_too_short.join(", "))
            }
        }
        @if !advice.losses.is_empty() {
            h2 { "If a node dies" }
            ul { @for loss in &advice.losses { li { strong { (loss.node) } ": " (loss.summary) } } }
        }
        @if !advice.places.is_empty() {
            h2 { "Room for a new guest, the best first" }
            ol { @for place in &advice.places {
                li {
                    (place.node) ": " (place.free_mib) " MiB free; " (place.memory_percent)
                    " % of its memory is promised"
                    @if let Some(cpu) = place.cpu_percent { ", CPU " (cpu) " %" }
                }
            } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn page_has_both_periods_and_escapes_what_it_is_given() {
        let page = html(&example());
        for word in ["web", "node1", "compared", "518", "1554", "360 h", "node2"] {
            assert!(page.contains(word), "{word} in {page}");
        }
        assert!(
            page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
            "{page}"
        );
        assert!(!page.contains("<script"), "{page}");
    }
}
