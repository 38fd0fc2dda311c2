//! What every engine must do, written against the trait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::etcd_for_tests::etcd;
use super::{
    Collection, Outcome, Record, Revision, SqliteStore, Store, StoreError, Transaction, VALUE_MAX,
};

/// An engine to test; the directory goes with it.
type Engine = (tempfile::TempDir, Arc<dyn Store>);

fn sqlite() -> Engine {
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

async fn swap_with_the_wrong_revision_changes_nothing((_directory, store): Engine) {
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

async fn of_two_swaps_one_wins((_directory, store): Engine) {
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

async fn list_has_pages_in_order_and_only_its_prefix((_directory, store): Engine) {
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

async fn watch_tells_what_was_and_what_comes((_directory, store): Engine) {
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

async fn lease_takes_its_keys_with_it((_directory, store): Engine) {
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

async fn too_large_value_is_refused((_directory, store): Engine) {
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

async fn record_of_a_newer_schema_is_refused_and_an_older_one_read((_directory, store): Engine) {
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

async fn updates_that_race_all_count((_directory, store): Engine) {
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

macro_rules! contract {
    ($($test:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::sqlite()).await;
            })*
        }
        mod on_etcd {
            $(#[tokio::test]
            async fn $test() {
                if let Some(engine) = super::etcd().await {
                    super::$test(engine).await;
                }
            })*
        }
    };
}

contract!(
    swap_with_the_wrong_revision_changes_nothing,
    of_two_swaps_one_wins,
    list_has_pages_in_order_and_only_its_prefix,
    watch_tells_what_was_and_what_comes,
    lease_takes_its_keys_with_it,
    too_large_value_is_refused,
    record_of_a_newer_schema_is_refused_and_an_older_one_read,
    updates_that_race_all_count,
);

type Step = (u8, Option<u8>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((0..5u8, proptest::option::of(0..9u8)), 1..40)
}

/// The store and a map do the same, and a watch from before replays to the same end.
async fn assert_store_is_a_map(store: &Arc<dyn Store>, steps: &[Step]) {
    let before = commit(store, put("k/begin", "")).await;
    let mut map = BTreeMap::new();
    for (key, value) in steps {
        let key = format!("k/{key}");
        let transaction = match value {
            Some(value) => put(&key, &value.to_string()),
            None => Transaction::new().delete(&key),
        };
        commit(store, transaction).await;
        match value {
            Some(value) => map.insert(key, value.to_string().into_bytes()),
            None => map.remove(&key),
        };
    }
    commit(store, Transaction::new().delete("k/begin")).await;
    let page = store.list("k/", None, usize::MAX).await.unwrap();
    let found = page.entries.into_iter();
    let found: BTreeMap<_, _> = found.map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(found, map);

    let mut watch = store.watch("k/", before).await.unwrap();
    commit(store, put("k/end", "")).await;
    let mut replayed = BTreeMap::new();
    loop {
        let change = watch.next().await.unwrap();
        match change.value {
            _ if change.key == "k/end" => break,
            Some(value) => replayed.insert(change.key, value),
            None => replayed.remove(&change.key),
        };
    }
    assert_eq!(replayed, map);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sqlite_is_a_map_and_its_watch_replays_it(steps in steps()) {
        runtime().block_on(async {
            let (_directory, store) = sqlite();
            assert_store_is_a_map(&store, &steps).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn etcd_is_a_map_and_its_watch_replays_it(steps in steps()) {
        runtime().block_on(async {
            if let Some((_directory, store)) = etcd().await {
                assert_store_is_a_map(&store, &steps).await;
            }
        });
    }
}
