//! `pindah task …`.

use std::io::Write as _;

use clap::Subcommand;
use uuid::Uuid;

use super::output::{Output, age, table};
use super::progress::follow;
use crate::client::Client;
use crate::domain::Task;
use crate::tasks::LogLine;

/// Everything that lasts.
#[derive(Debug, Subcommand)]
pub(super) enum TaskCommand {
    /// List the last tasks, the newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show a task.
    Show {
        /// The task.
        task: Uuid,
    },
    /// Print a task's log.
    Log {
        /// The task.
        task: Uuid,
    },
    /// Wait until a task has ended; fails if the task does.
    Wait {
        /// The task.
        task: Uuid,
    },
    /// Ask a task to end.
    Cancel {
        /// The task.
        task: Uuid,
    },
}

impl TaskCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List { limit } => {
                let tasks: Vec<Task> = client.list_first("/tasks", limit).await?;
                output.show(&tasks, |tasks| {
                    let head = ["TASK", "WHAT", "SUBJECT", "STATE", "BY", "AGE", "ERROR"];
                    table(&head, tasks.iter().map(row))
                })
            }
            Self::Show { task } => {
                let task: Task = client.get(&format!("/tasks/{task}")).await?;
                output.show(&task, |task| row(task).join("  "))
            }
            Self::Log { task } => {
                let lines: Vec<LogLine> = client.list(&format!("/tasks/{task}/log")).await?;
                if output.is_json() {
                    return output.show(&lines, |_| String::new());
                }
                for line in lines {
                    writeln!(std::io::stdout(), "{}", line.text)?;
                }
                Ok(())
            }
            Self::Wait { task } => {
                let task = follow(client, task, output).await?;
                output.show(&task, |task| format!("{} {}", task.kind, task.state))
            }
            Self::Cancel { task } => {
                let path = format!("/tasks/{task}/cancel");
                let _: Task = client.post(&path, &serde_json::json!({})).await?;
                Ok(())
            }
        }
    }
}

fn row(task: &Task) -> Vec<String> {
    vec![
        task.id.to_string(),
        task.kind.to_string(),
        task.subject.clone(),
        task.state.to_string(),
        task.user.clone(),
        age(task.created_unix_ms),
        task.error.clone().unwrap_or_default(),
    ]
}
