//! Following a task to its end.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::output::Output;
use crate::api::ErrorCode;
use crate::client::{Client, ClientError};
use crate::domain::{Task, TaskState};
use crate::tasks::LogLine;

/// How long a node that does not answer waits for the next question.
const RETRY: Duration = Duration::from_secs(1);

/// Waits for a task, and shows on a terminal how far it is. A failed one is an error.
pub(super) async fn follow(client: &Client, id: Uuid, output: Output) -> anyhow::Result<Task> {
    follow_through(client, id, Duration::ZERO, output).await
}

/// The same, though for so long nobody may answer: nodes restart meanwhile.
pub(super) async fn follow_through(
    client: &Client,
    id: Uuid,
    silence: Duration,
    output: Output,
) -> anyhow::Result<Task> {
    let live = std::io::stderr().is_terminal() && !output.is_json();
    let bar = if live {
        new_bar()
    } else {
        ProgressBar::hidden()
    };
    let path = format!("/tasks/{id}");
    let mut seen = 0;
    let mut heard = Instant::now();
    let task = loop {
        let looked = async {
            let task: Task = client.get(&format!("{path}?wait_s=1")).await?;
            let lines: Vec<LogLine> = if live {
                client.list(&format!("{path}/log?after={seen}")).await?
            } else {
                Vec::new()
            };
            Ok((task, lines))
        };
        let (task, lines) = match looked.await {
            Ok(looked) => looked,
            Err(error) if is_silence(&error) && heard.elapsed() < silence => {
                bar.set_message("waiting for the node to come back");
                bar.tick();
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        heard = Instant::now();
        if live {
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
    show_to_the_end(client, task, (wait, Duration::ZERO), output).await
}

/// Follows a task that has begun, unless told not to, and shows it. For so long nobody may answer.
pub(super) async fn show_to_the_end(
    client: &Client,
    task: Task,
    (wait, silence): (bool, Duration),
    output: Output,
) -> anyhow::Result<()> {
    if !wait {
        return output.show(&task, |task| format!("task {}", task.id));
    }
    let task = follow_through(client, task.id, silence, output).await?;
    if output.is_json() {
        output.show(&task, |_| String::new())?;
    }
    Ok(())
}

/// Whether nobody answers, or not yet.
fn is_silence(error: &ClientError) -> bool {
    let silent = [
        ErrorCode::NodeUnreachable,
        ErrorCode::NodeTimeout,
        ErrorCode::Unavailable,
    ];
    let code = error.code();
    matches!(error, ClientError::Connect { .. }) || code.is_some_and(|code| silent.contains(&code))
}

/// Whether there is no such thing.
pub(super) fn is_absent(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::NotFound)
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
