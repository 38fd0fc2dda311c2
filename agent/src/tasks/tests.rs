use serde_json::json;

use super::*;
use crate::store::SqliteStore;

fn tasks(directory: &std::path::Path) -> Tasks {
    tasks_of("node1", directory, directory)
}

fn tasks_of(node: &str, directory: &std::path::Path, logs: &std::path::Path) -> Tasks {
    let store = SqliteStore::open(&directory.join("store.db")).unwrap();
    Tasks::new(node, logs.to_owned(), Arc::new(store), Events::new(node))
}

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn task_ends_with_log_progress_and_result() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = tasks(directory.path());
    let begun = tasks
        .start(
            TaskKind::CreateGuest,
            TaskSubject::node("web"),
            "admin",
            |context| async move {
                context.log("half");
                context.progress(50, "copying");
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(json!({ "ok": true }))
            },
        )
        .await
        .unwrap();
    let task = tasks.wait(begun.id, PATIENCE).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Done);
    assert_eq!(task.progress.unwrap().percent, 50);
    assert_eq!(task.result.unwrap()["ok"], true);
    let log = tasks.log(begun.id, 0);
    let log: Vec<_> = log.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(log, ["half", "done"]);
    assert_eq!(tasks.log(begun.id, 1).len(), 1);
    let late = tasks.cancel(begun.id).await.unwrap_err();
    assert!(matches!(late, CancelError::Ended(_)));
}

#[tokio::test]
async fn old_tasks_go_with_their_logs() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = tasks(directory.path());
    let mut ids = Vec::new();
    for _ in 0..4 {
        let begun = tasks.start(
            TaskKind::StartGuest,
            TaskSubject::node("web"),
            "admin",
            |_| async { Ok(json!(null)) },
        );
        let id = begun.await.unwrap().id;
        tasks.wait(id, PATIENCE).await.unwrap();
        ids.push(id);
    }
    tasks.prune(2).await.unwrap();
    let left = tasks.list().await.unwrap();
    let left: Vec<Uuid> = left.iter().map(|task| task.id).collect();
    assert_eq!(left, [ids[3], ids[2]]);
    assert!(tasks.log(ids[0], 0).is_empty() && !tasks.log(ids[3], 0).is_empty());
}

#[tokio::test]
async fn tasks_of_a_node_that_was_removed_end_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let theirs = tempfile::tempdir().unwrap();
    let ours = tasks(directory.path());
    let removed = tasks_of("node2", directory.path(), theirs.path());
    let started = |tasks: &Tasks| {
        let tasks = tasks.clone();
        async move {
            let work = |context: TaskContext| async move {
                context.log("begun");
                context.cancelled().await;
                Ok(json!(null))
            };
            let subject = TaskSubject::node("web");
            let begun = tasks.start(TaskKind::StartGuest, subject, "admin", work);
            begun.await.unwrap().id
        }
    };
    let lost = started(&removed).await;
    let kept = started(&ours).await;
    ours.fail_those_of("node2").await.unwrap();
    let task = ours.get(lost).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Failed);
    assert_eq!(
        task.error.unwrap(),
        "node node2 was removed while the task ran"
    );
    let running = ours.get(kept).await.unwrap().unwrap();
    assert_eq!(running.state, TaskState::Running);

    ours.prune(0).await.unwrap();
    let left = ours.list().await.unwrap();
    assert_eq!(left.iter().map(|task| task.id).collect::<Vec<_>>(), [kept]);
    // A node's logs are its own, and nobody else's records keep them.
    assert!(!ours.log(kept, 0).is_empty() && !removed.log(lost, 0).is_empty());
    let next = tasks_of("node2", directory.path(), theirs.path());
    next.prune(0).await.unwrap();
    assert!(next.log(lost, 0).is_empty());
}

#[tokio::test]
async fn cancelled_task_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = tasks(directory.path());
    let begun = tasks
        .start(
            TaskKind::StopGuest,
            TaskSubject::node("web"),
            "admin",
            |context| async move {
                context.cancelled().await;
                context.check().map(|()| json!(null))
            },
        )
        .await
        .unwrap();
    tasks.cancel(begun.id).await.unwrap();
    let task = tasks.wait(begun.id, PATIENCE).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Cancelled);
    let unknown = tasks.cancel(Uuid::nil()).await.unwrap_err();
    assert_eq!(
        unknown.to_string(),
        format!("there is no task {}", Uuid::nil())
    );
}

#[tokio::test]
async fn task_of_an_agent_that_ended_is_failed_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let first = tasks(directory.path());
    let begun = first
        .start(
            TaskKind::StartGuest,
            TaskSubject::node("web"),
            "admin",
            |_| std::future::pending(),
        )
        .await
        .unwrap();
    let second = tasks(directory.path());
    second.recover(&[]).await.unwrap();
    let task = second.get(begun.id).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Failed);
    assert!(task.error.unwrap().starts_with("the agent ended"));
    assert!(task.ended_unix_ms.is_some());
}

#[tokio::test]
async fn task_that_goes_on_is_ended_by_the_next_agent() {
    let directory = tempfile::tempdir().unwrap();
    let first = tasks(directory.path());
    let begun = first
        .start(
            TaskKind::StartGuest,
            TaskSubject::node("web"),
            "admin",
            |context| async move {
                context.log("begun");
                std::future::pending().await
            },
        )
        .await
        .unwrap();
    let second = tasks(directory.path());
    second.recover(&[begun.id]).await.unwrap();
    let task = second.get(begun.id).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Running);
    second.resume(begun.id, |context| async move {
        context.log("ended");
        Ok(json!({ "ok": true }))
    });
    let task = second.wait(begun.id, PATIENCE).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Done);
    let log = second.log(begun.id, 0);
    let log: Vec<_> = log.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(log.last(), Some(&"done"));
    assert!(log.contains(&"ended"), "{log:?}");
}
