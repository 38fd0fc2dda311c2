//! What every engine must do, written against the trait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Collection, Outcome, Record, Revision, SqliteStore, Store, StoreError, Transaction, VALUE_MAX,
};

/// One engine to test; the directory goes with it.
fn engine() -> (tempfile::TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    (directory, Arc::new(store))
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.as_bytes().to_vec())
}

async fn commit(store: &Arc<dyn Store>, transaction: Transaction) -> Revision {
    match store.commit(transaction).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("a conflict"),
    }
}

#[tokio::test]
async fn swap_with_the_wrong_revision_changes_nothing() {
    let (_directory, store) = engine();
    let first = commit(&store, put("a", "1")).await;
    let second = commit(&store, put("a", "2")).await;
    assert!(second > first);
    for transaction in [
        put("a", "3").if_unchanged("a", first),
        put("a", "3").if_absent("a"),
        put("b", "3").if_unchanged("b", second),
        put("b", "3").if_unchanged("a", second).if_absent("a"),
    ] {
        let outcome = store.commit(transaction).await.unwrap();
        assert_eq!(outcome, Outcome::Conflict);
    }
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!(
        (entry.value.as_slice(), entry.revision),
        (&b"2"[..], second)
    );
    assert_eq!(store.get("b").await.unwrap(), None);
    commit(
        &store,
        put("b", "3").if_absent("b").if_unchanged("a", second),
    )
    .await;
}

#[tokio::test]
async fn of_two_swaps_one_wins() {
    let (_directory, store) = engine();
    let revision = commit(&store, put("owner", "none")).await;
    let swaps = (0..8).map(|node| {
        let store = Arc::clone(&store);
        let swap = put("owner", &format!("node{node}")).if_unchanged("owner", revision);
        tokio::spawn(async move { store.commit(swap).await.unwrap() })
    });
    let mut won = 0;
    for swap in swaps.collect::<Vec<_>>() {
        won += u32::from(swap.await.unwrap() != Outcome::Conflict);
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn list_has_pages_in_order_and_only_its_prefix() {
    let (_directory, store) = engine();
    for key in ["g/b", "g/a", "g/c", "ga", "g", "h/a", "g/é"] {
        commit(&store, put(key, key)).await;
    }
    let page = store.list("g/", None, 2).await.unwrap();
    let keys: Vec<_> = page.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!((keys.as_slice(), page.more), (&["g/a", "g/b"][..], true));
    let page = store.list("g/", Some("g/b"), 2).await.unwrap();
    let keys: Vec<_> = page.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!((keys.as_slice(), page.more), (&["g/c", "g/é"][..], false));
}

#[tokio::test]
async fn watch_tells_what_was_and_what_comes() {
    let (_directory, store) = engine();
    let first = commit(&store, put("w/a", "1")).await;
    commit(&store, put("other", "x")).await;
    commit(&store, put("w/a", "2")).await;
    let mut watch = store.watch("w/", first).await.unwrap();
    commit(&store, Transaction::new().delete("w/a").delete("w/none")).await;
    let change = watch.next().await.unwrap();
    assert_eq!(change.value.as_deref(), Some(&b"2"[..]));
    let change = watch.next().await.unwrap();
    assert_eq!((change.key.as_str(), change.value), ("w/a", None));
    let nothing = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(nothing.is_err());
}

#[tokio::test]
async fn lease_takes_its_keys_with_it() {
    let (_directory, store) = engine();
    let short = store.grant_lease(Duration::from_millis(700)).await.unwrap();
    let long = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    for (key, lease) in [("l/short", short), ("l/long", long)] {
        let transaction = Transaction::new().put_leased(key, b"x".to_vec(), lease);
        commit(&store, transaction).await;
    }
    let revision = store.list("", None, 1).await.unwrap().revision;
    let mut watch = store.watch("l/", revision).await.unwrap();
    let change = watch.next().await.unwrap();
    assert_eq!((change.key.as_str(), change.value), ("l/short", None));
    let late = store.keep_alive(short).await.unwrap_err();
    assert!(matches!(late, StoreError::LeaseGone(_)), "{late}");
    let leased = Transaction::new().put_leased("l/late", b"x".to_vec(), short);
    assert!(store.commit(leased).await.is_err());
    store.keep_alive(long).await.unwrap();
    assert!(store.get("l/long").await.unwrap().is_some());
    store.revoke_lease(long).await.unwrap();
    assert!(store.get("l/long").await.unwrap().is_none());
}

#[tokio::test]
async fn too_large_value_is_refused() {
    let (_directory, store) = engine();
    let large = Transaction::new().put("a", vec![0; VALUE_MAX + 1]);
    let error = store.commit(large).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    number: u64,
}

impl Record for Sample {
    const KIND: &'static str = "samples";
    const SCHEMA: u32 = 2;
}

#[tokio::test]
async fn record_of_a_newer_schema_is_refused_and_an_older_one_read() {
    let (_directory, store) = engine();
    let samples = Collection::<Sample>::new(Arc::clone(&store));
    let json = |schema| format!(r#"{{"kind":"samples","schema":{schema},"value":{{"number":7}}}}"#);
    commit(&store, put("samples/old", &json(1))).await;
    commit(&store, put("samples/new", &json(3))).await;
    let old = samples.get("old").await.unwrap().unwrap();
    assert_eq!(old.value.number, 7);
    let error = samples.get("new").await.unwrap_err().to_string();
    assert!(
        error.contains("its schema is 3") && error.contains("knows 2"),
        "{error}"
    );
}

#[tokio::test]
async fn updates_that_race_all_count() {
    let (_directory, store) = engine();
    let samples = Collection::<Sample>::new(store);
    samples.create("x", &Sample { number: 0 }).await.unwrap();
    let again = samples.create("x", &Sample { number: 9 }).await.unwrap();
    assert_eq!(again, Outcome::Conflict);
    let adders: Vec<_> = (0..10)
        .map(|_| {
            let samples = samples.clone();
            tokio::spawn(async move { samples.update("x", |sample| sample.number += 1).await })
        })
        .collect();
    for adder in adders {
        adder.await.unwrap().unwrap().unwrap();
    }
    assert_eq!(samples.get("x").await.unwrap().unwrap().value.number, 10);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let first: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).unwrap());
    let before = commit(&first, put("a", "1")).await;
    drop(first);
    let second: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).unwrap());
    assert_eq!(second.get("a").await.unwrap().unwrap().revision, before);
    assert!(commit(&second, put("a", "2")).await > before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The store and a map do the same, and a watch from the start replays to the same end.
    #[test]
    fn store_is_a_map_and_its_watch_replays_it(
        steps in proptest::collection::vec((0..5u8, proptest::option::of(0..9u8)), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_directory, store) = engine();
            let mut map = BTreeMap::new();
            for (key, value) in &steps {
                let key = format!("k/{key}");
                let transaction = match value {
                    Some(value) => put(&key, &value.to_string()),
                    None => Transaction::new().delete(&key),
                };
                commit(&store, transaction).await;
                match value {
                    Some(value) => map.insert(key, value.to_string().into_bytes()),
                    None => map.remove(&key),
                };
            }
            let page = store.list("k/", None, usize::MAX).await.unwrap();
            let found: BTreeMap<_, _> =
                page.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
            prop_assert_eq!(&found, &map);

            let mut watch = store.watch("k/", Revision(0)).await.unwrap();
            commit(&store, put("k/end", "")).await;
            let mut replayed = BTreeMap::new();
            loop {
                let change = watch.next().await.unwrap();
                match change.value {
                    _ if change.key == "k/end" => break,
                    Some(value) => replayed.insert(change.key, value),
                    None => replayed.remove(&change.key),
                };
            }
            prop_assert_eq!(replayed, map);
            Ok(())
        })?;
    }
}
