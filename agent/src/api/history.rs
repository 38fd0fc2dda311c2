//! What guests and nodes took, for graphs: a guest's from all nodes that it was on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use axum::extract::State;
use futures_util::future::join_all;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::extract::{Path, Query, within_query};
use super::nodes::require_this;
use super::permit::{FromPeer, GuestFor, Look, Viewer};
use super::{Api, ApiError, Data, ErrorBody, ErrorCode};
use crate::causes::chain;
use crate::clock::now_unix_ms;
use crate::metrics::history::{
    Bucket, Figure, Grid, History, HistoryError, NODE, Quantity, Resolution, from_wire, to_wire,
};
use crate::peer::{PeerError, Peers};

/// How long nodes may take for their parts.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most steps in an answer.
const POINTS_MAX: usize = 1000;
/// What is shown if nothing is said, in seconds.
const DEFAULT_S: u64 = 3600;

/// Which time, and how finely.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    /// Begin, in RFC 3339 (with `Z`, or `+` written as `%2B`); absent: an hour before the end.
    #[param(format = DateTime, example = "2026-11-01T08:00:00Z")]
    from: Option<String>,
    /// End; absent: now.
    #[param(format = DateTime, example = "2026-11-01T09:00:00Z")]
    to: Option<String>,
    /// At most so many steps, 2 to 1000; absent: 1000.
    #[param(minimum = 2, maximum = 1000)]
    points: Option<usize>,
}

/// What a guest or node took, step by step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryView {
    /// Begin of the first step, in RFC 3339: what was asked for, or a little before.
    pub from: String,
    /// End of the last step.
    pub to: String,
    /// Length of a step, in seconds: the finest that is kept for this time and gives no more
    /// steps than were asked for.
    pub step_s: u64,
    /// A number a step; null: it was off, or nobody measured.
    pub series: Series,
    /// Nodes that have not told what they know in time: what was measured there is missing.
    pub missing_nodes: Vec<String>,
}

/// Mean and maximum of each step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Series {
    /// CPU time: of a guest 100 is one processor of its node, of a node all of its processors.
    pub cpu_percent: Vec<Option<f64>>,
    /// Its maximum.
    pub cpu_percent_max: Vec<Option<f64>>,
    /// Memory in use, in bytes: what the guest says itself, or else what its process holds.
    pub memory_bytes: Vec<Option<f64>>,
    /// Its maximum.
    pub memory_bytes_max: Vec<Option<f64>>,
    /// The same, of the RAM that it had.
    pub memory_percent: Vec<Option<f64>>,
    /// Its maximum.
    pub memory_percent_max: Vec<Option<f64>>,
    /// Received, in bit/s.
    pub network_rx_bit_s: Vec<Option<f64>>,
    /// Its maximum.
    pub network_rx_bit_s_max: Vec<Option<f64>>,
    /// Sent, in bit/s.
    pub network_tx_bit_s: Vec<Option<f64>>,
    /// Its maximum.
    pub network_tx_bit_s_max: Vec<Option<f64>>,
    /// Read from disks, in bytes a second.
    pub disk_read_bytes_s: Vec<Option<f64>>,
    /// Its maximum.
    pub disk_read_bytes_s_max: Vec<Option<f64>>,
    /// Written to disks, in bytes a second.
    pub disk_write_bytes_s: Vec<Option<f64>>,
    /// Its maximum.
    pub disk_write_bytes_s_max: Vec<Option<f64>>,
}

impl Series {
    fn new(steps: &[Option<Bucket>]) -> Self {
        let all = |quantity: Quantity, of: fn(Figure) -> f64| {
            let digits = if matches!(quantity, Quantity::CpuPercent | Quantity::MemoryPercent) {
                10.0
            } else {
                1.0
            };
            let rounded = |value: f64| (value * digits).round() / digits;
            let figures = steps.iter();
            let figures = figures.map(|step| step.as_ref()?.get(quantity));
            figures.map(|figure| figure.map(of).map(rounded)).collect()
        };
        let mean = |quantity| all(quantity, |figure| figure.mean);
        let max = |quantity| all(quantity, |figure| figure.max);
        Self {
            cpu_percent: mean(Quantity::CpuPercent),
            cpu_percent_max: max(Quantity::CpuPercent),
            memory_bytes: mean(Quantity::MemoryBytes),
            memory_bytes_max: max(Quantity::MemoryBytes),
            memory_percent: mean(Quantity::MemoryPercent),
            memory_percent_max: max(Quantity::MemoryPercent),
            network_rx_bit_s: mean(Quantity::NetworkRx),
            network_rx_bit_s_max: max(Quantity::NetworkRx),
            network_tx_bit_s: mean(Quantity::NetworkTx),
            network_tx_bit_s_max: max(Quantity::NetworkTx),
            disk_read_bytes_s: mean(Quantity::DiskRead),
            disk_read_bytes_s_max: max(Quantity::DiskRead),
            disk_write_bytes_s: mean(Quantity::DiskWrite),
            disk_write_bytes_s_max: max(Quantity::DiskWrite),
        }
    }
}

impl From<HistoryError> for ApiError {
    fn from(error: HistoryError) -> Self {
        Self::of(ErrorCode::Unavailable, &error)
    }
}

/// A time in a query, in seconds since the Unix epoch.
pub(super) fn time_s(field: &str, text: &str) -> Result<u64, ApiError> {
    let refused = |code| {
        let text: String = text.chars().take(64).collect();
        let message = format!(
            "{field} = {text:?}: must be a time since 1970 in RFC 3339, as in 2026-11-01T08:00:00Z"
        );
        ApiError::new(code, message)
    };
    let time = OffsetDateTime::parse(text, &Rfc3339);
    let time = time.map_err(|_| refused(ErrorCode::BadRequest))?;
    u64::try_from(time.unix_timestamp()).map_err(|_| refused(ErrorCode::InvalidValue))
}

/// A time of ours, in RFC 3339.
pub(super) fn time_text(time_s: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(time_s as i64);
    let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_default()
}

/// The two times of a query.
pub(super) fn stretch(
    (from_name, from): (&str, Option<&str>),
    (to_name, to): (&str, Option<&str>),
    default_s: u64,
) -> Result<Range<u64>, ApiError> {
    let now_s = now_unix_ms() / 1000;
    let to_s = to.map_or(Ok(now_s), |text| time_s(to_name, text))?;
    let from_s = match from {
        Some(text) => time_s(from_name, text)?,
        None => to_s.saturating_sub(default_s),
    };
    if from_s >= to_s {
        let (from, to) = (time_text(from_s), time_text(to_s));
        let message = format!("{from_name} = {from}: must be before {to_name}, which is {to}");
        return Err(ApiError::new(ErrorCode::InvalidValue, message));
    }
    Ok(from_s..to_s)
}

impl HistoryQuery {
    fn grid(&self) -> Result<Grid, ApiError> {
        let points = self.points.unwrap_or(POINTS_MAX);
        within_query("points", points, 2..=POINTS_MAX)?;
        let (from, to) = (self.from.as_deref(), self.to.as_deref());
        let times_s = stretch(("from", from), ("to", to), DEFAULT_S)?;
        let now_s = now_unix_ms() / 1000;
        Ok(Grid::fit(times_s.start, times_s.end, points, now_s))
    }
}

/// Puts what was measured into its steps.
fn steps(grid: &Grid, parts: &[BTreeMap<u64, Bucket>]) -> Vec<Option<Bucket>> {
    let mut steps = vec![None; grid.steps];
    for (slot, bucket) in parts.iter().flatten() {
        if let Some(step) = grid.step_of(slot * grid.resolution.slot_s()) {
            let step: &mut Option<Bucket> = &mut steps[step];
            step.get_or_insert_default().merge(bucket);
        }
    }
    steps
}

fn answer(
    grid: &Grid,
    parts: &[BTreeMap<u64, Bucket>],
    missing_nodes: Vec<String>,
) -> Data<HistoryView> {
    let data = HistoryView {
        from: time_text(grid.from_s),
        to: time_text(grid.to_s()),
        step_s: grid.step_s,
        series: Series::new(&steps(grid, parts)),
        missing_nodes,
    };
    Data { data }
}

/// The nodes that may have something to tell beside this one.
pub(super) async fn other_nodes(api: &Api) -> Result<Vec<(Peers, String)>, ApiError> {
    let Some(peers) = api.peers() else {
        return Ok(Vec::new());
    };
    let nodes = peers.all().await?.into_iter();
    let others = nodes.filter(|node| node.name != api.node && !node.witness);
    Ok(others.map(|node| (peers.clone(), node.name)).collect())
}

/// Looks into this node's file, for so long at most.
pub(super) async fn look<T: Send + 'static>(
    api: &Api,
    deadline: Duration,
    read: impl FnOnce(&History) -> Result<T, HistoryError> + Send + 'static,
) -> Result<T, ApiError> {
    let history = api.history.clone();
    let read = tokio::task::spawn_blocking(move || read(&history));
    match tokio::time::timeout(deadline, read).await {
        Ok(Ok(read)) => Ok(read?),
        Ok(Err(error)) => Err(ApiError::new(ErrorCode::Internal, error.to_string())),
        Err(_) => {
            let message = format!(
                "the disk of node {} has not answered for {} s",
                api.node,
                deadline.as_secs()
            );
            Err(ApiError::new(ErrorCode::Unavailable, message))
        }
    }
}

/// What this node knows.
async fn read_here(
    api: &Api,
    subject: Uuid,
    resolution: Resolution,
    times_s: Range<u64>,
) -> Result<BTreeMap<u64, Bucket>, ApiError> {
    look(api, DEADLINE, move |history| {
        history.read(subject, resolution, &times_s)
    })
    .await
}

async fn read_there(
    peers: &Peers,
    node: &str,
    subject: Uuid,
    grid: &Grid,
) -> Result<BTreeMap<u64, Bucket>, PeerError> {
    let (slot_s, from_s, to_s) = (grid.resolution.slot_s(), grid.from_s, grid.to_s());
    let path = format!("/history?guest={subject}&slot_s={slot_s}&from_s={from_s}&to_s={to_s}");
    let request = peers.request(node, Method::GET, &path).await?;
    let bytes = peers.bytes(node, request).await?;
    from_wire(&bytes, grid.resolution).map_err(|error| PeerError::Answer {
        node: node.to_owned(),
        reason: chain(&error),
    })
}

/// What a guest took. It is joined from all nodes that it was on; `missing_nodes` names those that
/// did not answer in time.
#[utoipa::path(get, path = "/api/v1/guests/{guest}/history", tag = "metrics",
    params(("guest" = String, Path, description = "Name or UUID"), HistoryQuery),
    responses((status = 200, body = Data<HistoryView>), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn guest_history(
    State(api): State<Api>,
    on: GuestFor<Look>,
    Query(query): Query<HistoryQuery>,
) -> Result<Data<HistoryView>, ApiError> {
    let grid = query.grid()?;
    let subject = on.stored.value.uuid;
    let others = other_nodes(&api).await?;
    let asked = others.iter().map(async |(peers, node)| {
        let read = read_there(peers, node, subject, &grid);
        match tokio::time::timeout(DEADLINE, read).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(error)) => {
                tracing::debug!("history of {subject}: {}", chain(&error));
                Err(node.clone())
            }
            Err(_) => Err(node.clone()),
        }
    });
    let here = read_here(&api, subject, grid.resolution, grid.from_s..grid.to_s());
    let (here, there) = futures_util::join!(here, join_all(asked));
    let (mut parts, mut missing) = (Vec::new(), Vec::new());
    let here = here.map_err(|_| api.node.clone());
    for part in there.into_iter().chain([here]) {
        match part {
            Ok(part) => parts.push(part),
            Err(node) => missing.push(node),
        }
    }
    Ok(answer(&grid, &parts, missing))
}

/// What a node took, its guests included.
#[utoipa::path(get, path = "/api/v1/nodes/{node}/history", tag = "metrics",
    params(("node" = String, Path), HistoryQuery),
    responses((status = 200, body = Data<HistoryView>), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn node_history(
    State(api): State<Api>,
    _: Viewer,
    Path(name): Path<String>,
    Query(query): Query<HistoryQuery>,
) -> Result<Data<HistoryView>, ApiError> {
    require_this(&api, &name)?;
    let grid = query.grid()?;
    let times_s = grid.from_s..grid.to_s();
    let here = read_here(&api, NODE, grid.resolution, times_s).await?;
    Ok(answer(&grid, &[here], Vec::new()))
}

/// What another node asks for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PartQuery {
    /// The guest.
    guest: Uuid,
    /// Length of a slot, in seconds: 10, 60 or 3600.
    slot_s: u64,
    /// Begin, in seconds since the Unix epoch.
    from_s: u64,
    /// End.
    to_s: u64,
}

/// What was measured of a guest on the node that is asked; for nodes.
#[utoipa::path(get, path = "/api/v1/history", tag = "nodes", params(PartQuery),
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 400, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn history_part(
    State(api): State<Api>,
    _: FromPeer,
    Query(query): Query<PartQuery>,
) -> Result<Vec<u8>, ApiError> {
    let resolution = Resolution::of_slot(query.slot_s).ok_or_else(|| {
        let message = format!("slot_s = {}: must be 10, 60 or 3600", query.slot_s);
        ApiError::new(ErrorCode::BadRequest, message)
    })?;
    let times_s = query.from_s..query.to_s;
    let part = read_here(&api, query.guest, resolution, times_s).await?;
    Ok(to_wire(&part, resolution))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::history::QUANTITIES;

    #[test]
    fn what_two_nodes_measured_is_one_series_with_its_gaps() {
        let grid = Grid::fit(1_799_999_400, 1_800_000_000, 10, 1_800_000_000);
        assert_eq!((grid.step_s, grid.steps), (60, 10));
        let first = grid.from_s / 60;
        let cpu = |percent| Bucket::sample([Some(percent); QUANTITIES]);
        let one = BTreeMap::from([(first, cpu(10.0)), (first + 1, cpu(10.0))]);
        let other = BTreeMap::from([(first + 1, cpu(20.0)), (first + 3, cpu(40.04))]);
        let series = Series::new(&steps(&grid, &[one, other]));
        let expected = [Some(10.0), Some(15.0), None, Some(40.0), None];
        assert_eq!(series.cpu_percent[..5], expected);
        assert_eq!(series.cpu_percent_max[1], Some(20.0));
        assert_eq!(series.network_rx_bit_s.len(), 10);
    }

    #[test]
    fn times_that_are_none_are_refused_by_name() {
        let refused = |from, to| stretch(("from", from), ("to", to), 60).is_err();
        assert!(refused(Some("yesterday"), None));
        assert!(refused(Some("1969-01-01T00:00:00Z"), None));
        assert!(refused(
            Some("2026-01-01T00:00:00Z"),
            Some("2026-01-01T01:00:00+01:00")
        ));
        let whole = stretch(
            ("from", Some("2026-01-01T00:00:00Z")),
            ("to", Some("2026-01-01T08:00:00+07:00")),
            60,
        );
        let whole = whole.ok().unwrap();
        assert_eq!(whole.end - whole.start, 3600);
        assert_eq!(time_text(whole.end), "2026-01-01T01:00:00Z");
    }
}
