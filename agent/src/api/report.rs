//! The report: what guests and nodes took over days, from all nodes, and what follows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::future::{OptionFuture, join_all};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::extract::Query;
use super::history::{look, other_nodes, stretch, time_text};
use super::permit::{FromPeer, Known};
use super::{Api, ApiError, Data, ErrorBody, ErrorCode};
use crate::causes::chain;
use crate::clock::now_unix_ms;
use crate::cluster::{NodeStatus, node_status};
use crate::domain::{Advice, Guest, GuestUse, NodeUse, PoolName, PoolRecord, advise};
use crate::guests::promised_mib;
use crate::metrics::history::{NODE, Tallies};
use crate::peer::Peers;
use crate::report::{Period, Report, ReportRow, UsageFigures, csv, html};
use crate::security::Principal;
use crate::store::Collection;

/// How long nodes may take for their parts.
const DEADLINE: Duration = Duration::from_secs(20);
/// What is reported if nothing is said, in seconds.
const DEFAULT_S: u64 = 15 * 86_400;

/// Which time, and in which form.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ReportQuery {
    /// Begin, in RFC 3339 (with `Z`, or `+` written as `%2B`); absent: 15 days before the end.
    #[param(format = DateTime)]
    since: Option<String>,
    /// End; absent: now.
    #[param(format = DateTime)]
    until: Option<String>,
    /// Begin of the time to compare with.
    #[param(format = DateTime)]
    compare_since: Option<String>,
    /// Its end; absent: `since`.
    #[param(format = DateTime)]
    compare_until: Option<String>,
    /// Absent: JSON.
    #[serde(default)]
    #[param(inline)]
    format: ReportFormat,
}

/// In which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportFormat {
    /// In the envelope of all answers.
    #[default]
    Json,
    /// A line a guest or node and period.
    Csv,
    /// A page to print.
    Html,
}

/// What all nodes know of one stretch of time.
#[derive(Default)]
struct Told {
    guests: BTreeMap<Uuid, Tallies>,
    nodes: BTreeMap<String, Tallies>,
    missing: Vec<String>,
}

impl Told {
    fn take_in(&mut self, node: String, told: Result<Vec<Tallies>, String>) {
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!("the report misses node {node}: {error}");
                self.missing.push(node);
                return;
            }
        };
        for tallies in told {
            if tallies.uuid == NODE {
                self.nodes.insert(node.clone(), tallies);
            } else {
                let guest = self.guests.entry(tallies.uuid).or_default();
                guest.merge(&tallies);
            }
        }
    }
}

async fn told_here(api: &Api, times_s: Range<u64>) -> Result<Vec<Tallies>, ApiError> {
    let now_s = now_unix_ms() / 1000;
    look(api, DEADLINE, move |history| history.tally(&times_s, now_s)).await
}

async fn told_there(
    peers: &Peers,
    node: &str,
    times_s: &Range<u64>,
) -> Result<Vec<Tallies>, String> {
    let path = format!(
        "/history/tally?from_s={}&to_s={}",
        times_s.start, times_s.end
    );
    let told = peers.ask(node, Method::GET, &path, None::<&()>);
    match tokio::time::timeout(DEADLINE, told).await {
        Ok(told) => told.map_err(|error| chain(&error)),
        Err(_) => Err("it does not answer in time".to_owned()),
    }
}

async fn gather(api: &Api, times_s: &Range<u64>) -> Result<Told, ApiError> {
    let others = other_nodes(api).await?;
    let asked = others
        .iter()
        .map(|(peers, node)| told_there(peers, node, times_s));
    let (here, there) = futures_util::join!(told_here(api, times_s.clone()), join_all(asked));
    let mut known = Told::default();
    known.take_in(api.node.clone(), here.map_err(ApiError::into_message));
    for ((_, node), told) in others.iter().zip(there) {
        known.take_in(node.clone(), told);
    }
    Ok(known)
}

/// What guests and nodes took, and advice that follows from it: for who has roles for single guests
/// only, about these guests and without advice.
#[utoipa::path(get, path = "/api/v1/report", tag = "metrics", params(ReportQuery),
    responses((status = 200, content(
        (Data<Report> = "application/json"), (String = "text/csv"), (String = "text/html"))),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn show_report(
    State(api): State<Api>,
    Known(principal): Known,
    Query(query): Query<ReportQuery>,
) -> Result<Response, ApiError> {
    let (since, until) = (query.since.as_deref(), query.until.as_deref());
    let times_s = stretch(("since", since), ("until", until), DEFAULT_S)?;
    let compared_s = match (&query.compare_since, &query.compare_until) {
        (None, None) => None,
        (None, Some(_)) => {
            let message = "compare_until needs compare_since";
            return Err(ApiError::new(ErrorCode::InvalidValue, message));
        }
        (Some(from), to) => {
            let begin = time_text(times_s.start);
            let to = to.as_deref().unwrap_or(&begin);
            let from = ("compare_since", Some(from.as_str()));
            Some(stretch(from, ("compare_until", Some(to)), DEFAULT_S)?)
        }
    };
    let report = report(&api, &principal, &times_s, compared_s.as_ref()).await?;
    let (kind, text) = match query.format {
        ReportFormat::Json => return Ok(Data { data: report }.into_response()),
        ReportFormat::Csv => ("text/csv; charset=utf-8", csv(&report)),
        ReportFormat::Html => ("text/html; charset=utf-8", html(&report)),
    };
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

fn period(times_s: &Range<u64>) -> Period {
    Period {
        since: time_text(times_s.start),
        until: time_text(times_s.end),
    }
}

async fn report(
    api: &Api,
    principal: &Principal,
    times_s: &Range<u64>,
    compared_s: Option<&Range<u64>>,
) -> Result<Report, ApiError> {
    let before = OptionFuture::from(compared_s.map(|times_s| gather(api, times_s)));
    let (now, before) = futures_util::join!(gather(api, times_s), before);
    let (now, before) = (now?, before.transpose()?);
    let (mut guests, _) = api.visible_guests(principal, None, usize::MAX).await?;
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    let of = |known: &Told, guest: &Guest| {
        let tallies = known.guests.get(&guest.uuid);
        tallies.map(|tallies| UsageFigures::new(tallies, guest.cpus))
    };
    let rows = guests.iter().map(|guest| ReportRow {
        name: guest.name.to_string(),
        uuid: Some(guest.uuid),
        usage: of(&now, guest).unwrap_or_default(),
        before: before.as_ref().and_then(|before| of(before, guest)),
    });
    let rows: Vec<ReportRow> = rows.collect();
    let mut report = Report {
        period: period(times_s),
        compared: compared_s.map(period),
        nodes: Vec::new(),
        guests: rows,
        advice: None,
        missing_nodes: now.missing.clone(),
    };
    if principal.sees_all() {
        let before = before.as_ref();
        report.nodes = now
            .nodes
            .iter()
            .map(|(name, tallies)| ReportRow {
                name: name.clone(),
                uuid: None,
                usage: UsageFigures::new(tallies, 1),
                before: before
                    .and_then(|before| before.nodes.get(name))
                    .map(|tallies| UsageFigures::new(tallies, 1)),
            })
            .collect();
        report.advice = Some(advice(api, guests, &report).await?);
    }
    let more = before.map(|before| before.missing).unwrap_or_default();
    report.missing_nodes.extend(more);
    report.missing_nodes.sort();
    report.missing_nodes.dedup();
    Ok(report)
}

async fn advice(api: &Api, guests: Vec<Guest>, report: &Report) -> Result<Advice, ApiError> {
    let pools = api.pools.records().await?;
    let uses = guests
        .iter()
        .zip(&report.guests)
        .map(|(guest, row)| GuestUse {
            name: guest.name.to_string(),
            node: guest.node.clone(),
            runs: false,
            bound: is_bound(guest, &pools),
            cpus: guest.cpus,
            memory_mib: guest.memory_mib,
            promised_mib: promised_mib(guest),
            tells_memory: false,
            measured_s: row.usage.measured_s,
            cpu_percent: row.usage.cpu_percent,
            memory_percent: row.usage.memory_percent,
        });
    let mut uses: Vec<GuestUse> = uses.collect();
    for (guest, view) in uses.iter_mut().zip(api.views(guests).await?) {
        guest.runs = view.state.has_process();
        guest.tells_memory = view.usage.memory_used_mib.is_some();
    }
    let nodes = nodes(api, &report.nodes).await?;
    Ok(advise(&nodes, &uses))
}

/// Whether a guest needs a pool that only its node has.
fn is_bound(guest: &Guest, pools: &[PoolRecord]) -> bool {
    let needed = guest.needed_pools();
    let shared = |name: &PoolName| {
        let record = pools.iter().find(|pool| pool.name == *name);
        record.is_some_and(|pool| pool.source.is_shared())
    };
    !needed.iter().all(shared)
}

/// The nodes that have said how they do.
async fn nodes(api: &Api, rows: &[ReportRow]) -> Result<Vec<NodeUse>, ApiError> {
    let ours = node_status(&api.guests, &api.pools, &api.updates).await?;
    let mut found = Vec::new();
    let drained = api.guests.drained_nodes().await?;
    match api.peers() {
        None => found.push((api.node.clone(), ours, true)),
        Some(peers) => {
            let statuses = Collection::<NodeStatus>::new(api.store.clone());
            for record in peers.all().await? {
                let status = if record.name == api.node {
                    Some(ours.clone())
                } else {
                    statuses.get(&record.name).await?.map(|stored| stored.value)
                };
                let takes = !record.witness && !drained.contains(&record.name);
                found.extend(status.map(|status| (record.name, status, takes)));
            }
        }
    }
    let uses = found.into_iter().map(|(name, status, takes)| {
        let row = rows.iter().find(|row| row.name == name);
        NodeUse {
            takes_guests: takes && status.kvm,
            memory_mib: status.memory_for_guests_mib(),
            cpus: status.cpus,
            cpu_percent: row.and_then(|row| row.usage.cpu_percent),
            name,
        }
    });
    Ok(uses.collect())
}

/// What another node asks for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TallyQuery {
    /// Begin, in seconds since the Unix epoch.
    from_s: u64,
    /// End.
    to_s: u64,
}

/// What guests took on the node that is asked, and what it took itself; for nodes.
#[utoipa::path(get, path = "/api/v1/history/tally", tag = "nodes", params(TallyQuery),
    responses((status = 200, body = Data<Vec<Tallies>>), (status = 503, body = ErrorBody)))]
pub async fn history_tally(
    State(api): State<Api>,
    _: FromPeer,
    Query(query): Query<TallyQuery>,
) -> Result<Data<Vec<Tallies>>, ApiError> {
    let data = told_here(&api, query.from_s..query.to_s).await?;
    Ok(Data { data })
}
