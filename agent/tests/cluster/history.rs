//! A guest's history, which lies on the nodes that it was on.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::harness::host_can;
use super::traveller::Traveller;

/// Of which times, in seconds, the guest's memory is known, as `by` joins them, and who did not tell.
fn steps(traveller: &Traveller, by: usize) -> (Vec<u64>, Value) {
    let (_, body) = traveller.site.get(by, "/guests/web/history");
    let history = &body["data"];
    let from = history["from"].as_str().unwrap_or_default();
    let from = OffsetDateTime::parse(from, &Rfc3339);
    let from_s = from.map_or(0, OffsetDateTime::unix_timestamp) as u64;
    let series = history["series"]["memory_bytes"].as_array();
    let series = series.into_iter().flatten().enumerate();
    let known = series.filter(|(_, step)| !step.is_null());
    let known = known
        .map(|(number, _)| from_s + number as u64 * 10)
        .collect();
    (known, history["missing_nodes"].clone())
}

#[test]
fn history_of_a_guest_that_has_moved_is_joined_from_its_nodes() {
    if !host_can() {
        return;
    }
    let mut traveller = Traveller::new("hi", 3, 4);
    traveller.wait_until_it_beats(1, 3);
    let wait = |traveller: &Traveller, more_than: usize| {
        let mut known = Vec::new();
        traveller.site.wait(1, "it is not measured", || {
            known = steps(traveller, 3).0;
            known.len() > more_than
        });
        known
    };
    // Two steps: the second one may be known to both nodes.
    let before = wait(&traveller, 1).len();
    traveller.migrate(3, &["--to", "node2"]);
    traveller.wait_until_it_beats(2, 3);
    let there = traveller.show(2);
    assert_eq!(there["node"], "node2");
    wait(&traveller, before + 1);

    // So is the report, from whichever node it is asked for.
    let (status, body) = traveller.site.get(3, "/report");
    assert_eq!(status, 200, "{body}");
    let report = &body["data"];
    assert_eq!(
        report["nodes"].as_array().map(Vec::len),
        Some(3),
        "{report}"
    );
    let measured_s = report["guests"][0]["usage"]["measured_s"].as_u64();
    assert!(measured_s >= Some(60), "{report}");
    let losses = report["advice"]["losses"].as_array().expect("losses");
    assert_eq!(losses.len(), 1, "{report}");
    assert_eq!(
        (&losses[0]["node"], &losses[0]["fits"]),
        (&"node2".into(), &true.into())
    );

    // Without the node that it was on there is less, and who is missing is said.
    let (all, missing) = steps(&traveller, 2);
    assert_eq!(missing, serde_json::json!([]));
    let part = format!(
        "/history?guest={}&slot_s=10&from_s=0&to_s=9",
        traveller.uuid
    );
    assert_eq!(traveller.site.get(1, &part).0, 403, "that is for nodes");
    traveller.site.kill_agent(1);
    let (mut known, mut missing) = (Vec::new(), Value::Null);
    traveller.site.wait(2, "node1 is not missed", || {
        (known, missing) = steps(&traveller, 2);
        missing == serde_json::json!(["node1"])
    });
    assert!(
        known[0] > all[0],
        "node2 knows its own part: {known:?} of {all:?}"
    );
    let (status, body) = traveller.site.get(3, "/nodes/node1/history");
    assert_eq!(status, 502, "{body}");

    traveller.site.start(1);
    // Its end was sudden: the minute that it was in may be lost, and nothing else.
    traveller.site.wait(2, "node1 does not tell", || {
        steps(&traveller, 2).1 == serde_json::json!([])
    });
    traveller.site.wait_ready(2);
    traveller.delete(2);
}
