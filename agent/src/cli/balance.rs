//! `pindah cluster balance`.

use reqwest::Method;

use super::guest::segment;
use super::output::{Output, figure, mib, table};
use super::progress::begin;
use crate::client::Client;
use crate::cluster::{Balance, SuggestedMove};
use crate::domain::LoadPercent;
use crate::guests::MoveRequest;

/// Shows the moves, or makes them.
pub(super) async fn run(client: &Client, apply: bool, output: Output) -> anyhow::Result<()> {
    let balance: Balance = client.get("/cluster/balance").await?;
    if !apply {
        return output.show(&balance, text);
    }
    if !output.is_json() {
        output.show(&balance, text)?;
    }
    for one in &balance.moves {
        carry_out(client, one, output).await?;
    }
    Ok(())
}

/// As `pindah guest migrate`: each is a task of its own, and one that fails is the last.
async fn carry_out(client: &Client, one: &SuggestedMove, output: Output) -> anyhow::Result<()> {
    let suggestion = &one.suggestion;
    let path = format!("/guests/{}/migrate", segment(&suggestion.uuid.to_string())?);
    let body = MoveRequest {
        to: Some(suggestion.to.clone()),
        ..MoveRequest::default()
    };
    let request = client.request(Method::POST, &path).json(&body);
    begin(client, request, true, output).await
}

fn text(balance: &Balance) -> String {
    let change = |now: &LoadPercent, then: &LoadPercent, of: fn(&LoadPercent) -> f64| {
        let (now, then) = (figure(Some(of(now))), figure(Some(of(then))));
        if now == then {
            now
        } else {
            format!("{now} → {then}")
        }
    };
    let rows = balance.nodes.iter().map(|node| {
        vec![
            node.node.clone(),
            change(&node.now, &node.then, |percent| percent.memory),
            change(&node.now, &node.then, |percent| percent.cpu),
        ]
    });
    let mut parts = vec![table(&["NODE", "GUESTS' MEMORY %", "GUESTS' CPU %"], rows)];
    if balance.moves.is_empty() {
        parts.push("no move is worth its while".to_owned());
    }
    parts.extend(balance.moves.iter().map(describe));
    if !balance.refused.is_empty() {
        let lines: Vec<String> = balance
            .refused
            .iter()
            .map(|line| format!("  {line}"))
            .collect();
        parts.push(format!("cannot move:\n{}", lines.join("\n")));
    }
    parts.join("\n\n")
}

fn describe(one: &SuggestedMove) -> String {
    let suggestion = &one.suggestion;
    let mut lines = vec![
        one.command.clone(),
        format!(
            "  it holds {} and takes {} % of a processor",
            mib(suggestion.memory_mib),
            figure(Some(suggestion.cpu_percent))
        ),
        format!("  {}", suggestion.reason),
    ];
    if let Some(forecast) = &one.forecast {
        lines.push(format!("  forecast: {forecast}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moves_are_shown_with_reason_and_command() {
        let balance = json!({
            "nodes": [
                { "node": "node1", "now": { "memory": 76.3, "cpu": 15.0 },
                    "then": { "memory": 26.3, "cpu": 15.0 } },
            ],
            "moves": [{
                "guest": "db", "uuid": "00000000-0000-0000-0000-000000000001", "from": "node1",
                "to": "node2", "memory_mib": 4096, "cpu_percent": 20.0, "reason": "memory …",
                "command": "pindah guest migrate db --to node2",
            }],
            "refused": ["app to node2: it has no room"],
        });
        let balance: Balance = serde_json::from_value(balance).unwrap();
        assert_eq!(
            text(&balance),
            "NODE   GUESTS' MEMORY %  GUESTS' CPU %\n\
             node1  76.3 → 26.3       15.0\n\n\
             pindah guest migrate db --to node2\n  \
             it holds 4 GiB and takes 20.0 % of a processor\n  memory …\n\n\
             cannot move:\n  app to node2: it has no room"
        );
        let nothing = Balance {
            moves: Vec::new(),
            ..balance
        };
        assert!(text(&nothing).contains("no move is worth its while"));
    }
}
