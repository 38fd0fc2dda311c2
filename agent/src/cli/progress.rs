//! Following a task to its end.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::output::Output;
use crate::client::{Client, ClientError};
use crate::domain::{Task, TaskState};
use crate::tasks::LogLine;

/// Waits for a task, and shows on a terminal how far it is. A failed one is an error.
pub(super) async fn follow(client: &Client, id: Uuid, output: Output) -> anyhow::Result<Task> {
    let live = std::io::stderr().is_terminal() && !output.is_json();
    let bar = if live {
        new_bar()
    } else {
        ProgressBar::hidden()
    };
    let path = format!("/tasks/{id}");
    let mut seen = 0;
    let task = loop {
        let task: Task = client.get(&format!("{path}?wait_s=1")).await?;
        if live {
            let lines: Vec<LogLine> = client.list(&format!("{path}/log?after={seen}")).await?;
            seen += lines.len();
            for line in lines {
                bar.println(&line.text);
            }
            if let Some(progress) = &task.progress {
                bar.set_position(progress.percent.into());
                bar.set_message(progress.text.clone());
            }
            bar.tick();
        }
        if task.state != TaskState::Running {
            break task;
        }
    };
    bar.finish_and_clear();
    match &task.error {
        None => Ok(task),
        Some(error) => {
            let (kind, subject) = (task.kind, &task.subject);
            Err(anyhow::anyhow!("cannot {kind} {subject}: {error}"))
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {percent:>3} %") {
        bar.set_style(style);
    }
    bar
}

/// Begins a task, follows it unless told not to, and shows it.
pub(super) async fn begin(
    client: &Client,
    request: reqwest::RequestBuilder,
    wait: bool,
    output: Output,
) -> anyhow::Result<()> {
    let task = client.begin(request).await?;
    if !wait {
        return output.show(&task, |task| format!("task {}", task.id));
    }
    let task = follow(client, task.id, output).await?;
    if output.is_json() {
        output.show(&task, |_| String::new())?;
    }
    Ok(())
}

/// Whether there is no such thing.
pub(super) fn is_absent(error: &ClientError) -> bool {
    error.code() == Some(crate::api::ErrorCode::NotFound)
}

/// For bytes that go somewhere; on a terminal only.
pub(super) fn transfer_bar(action: &str, bytes: u64, name: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let template = "{prefix} {msg} {bar:30} {bytes} of {total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(action.to_owned());
    bar.set_message(name.to_string());
    bar
}
