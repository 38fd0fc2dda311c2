//! Accounts in a store of their own.

use std::collections::BTreeMap;

use super::*;
use uuid::Uuid;

use crate::security::{GrantChange, Right, Role};
use crate::store::SqliteStore;

fn accounts() -> (tempfile::TempDir, Accounts) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    (directory, Accounts::new(Arc::new(store)))
}

#[tokio::test]
async fn token_is_known_until_it_is_revoked() {
    let (_directory, accounts) = accounts();
    let new = NewToken {
        name: "ci".to_owned(),
        role: Some(Role::Operator),
        guests: BTreeMap::new(),
    };
    let (token, text) = accounts.create_token(&new).await.unwrap();
    let principal = accounts.authenticate(&text).await.unwrap();
    assert_eq!(
        (principal.user.as_str(), principal.grants.role),
        ("ci", Some(Role::Operator))
    );
    let mut wrong = text.clone();
    wrong.replace_range(
        text.len() - 1..,
        if text.ends_with('0') { "1" } else { "0" },
    );
    for text in [wrong.as_str(), "", "pindah", "pindah_x_y", "pindah_../_x"] {
        assert!(accounts.authenticate(text).await.is_err(), "{text}");
    }
    accounts.delete_token(&token.id).await.unwrap();
    assert!(accounts.authenticate(&text).await.is_err());
    assert!(accounts.delete_token(&token.id).await.is_err());
}

#[tokio::test]
async fn login_needs_the_password_and_ends_with_the_user() {
    let (_directory, accounts) = accounts();
    let new = NewUser {
        name: "siti".to_owned(),
        role: Some(Role::Admin),
        guests: BTreeMap::new(),
        password: "correct horse".to_owned(),
    };
    accounts.create_user(new.clone()).await.unwrap();
    assert!(accounts.create_user(new).await.is_err());
    for (user, password) in [("siti", "wrong horse"), ("budi", "correct horse"), ("", "")] {
        assert!(accounts.login(user, password.to_owned()).await.is_err());
    }
    let text = accounts
        .login("siti", "correct horse".to_owned())
        .await
        .unwrap();
    assert_eq!(
        accounts.authenticate(&text).await.unwrap().grants.role,
        Some(Role::Admin)
    );
    accounts.delete_user("siti").await.unwrap();
    assert!(accounts.authenticate(&text).await.is_err());
    let short = NewUser {
        name: "x".to_owned(),
        role: Some(Role::Viewer),
        guests: BTreeMap::new(),
        password: "short".to_owned(),
    };
    assert!(accounts.create_user(short).await.is_err());
}

#[tokio::test]
async fn login_may_do_what_its_user_may_now() {
    let (_directory, accounts) = accounts();
    let new = NewUser {
        name: "anna".to_owned(),
        role: None,
        guests: BTreeMap::new(),
        password: "correct horse".to_owned(),
    };
    accounts.create_user(new).await.unwrap();
    let text = accounts
        .login("anna", "correct horse".to_owned())
        .await
        .unwrap();
    let web = Uuid::from_u128(1);
    let allowed = async |right| {
        let anna = accounts.authenticate(&text).await.unwrap();
        anna.grants.allow(web, right)
    };
    assert!(!allowed(Right::Look).await);
    let change = async |change| {
        accounts
            .change(Account::User("anna"), change)
            .await
            .unwrap();
    };
    change(GrantChange::Guest(web, Some(Role::Operator))).await;
    assert!(allowed(Right::Run).await);
    change(GrantChange::Guest(web, None)).await;
    assert!(!allowed(Right::Look).await);
    let login = accounts.tokens().await.unwrap().remove(0).id;
    let change = GrantChange::Everything(Some(Role::Admin));
    let refused = accounts.change(Account::Token(&login), change).await;
    assert!(matches!(refused, Err(AccountError::Login(_))));
}

#[test]
fn records_of_before_there_were_roles_for_guests_are_read() {
    let old = r#"{"token":{"id":"0123456789abcdef","name":"ci","role":"operator","created_unix_ms":7},"sha256":"00"}"#;
    let record: TokenRecord = serde_json::from_str(old).unwrap();
    let grants = record.token.grants;
    assert_eq!(grants.role, Some(Role::Operator));
    assert!(grants.guests.is_empty());
}
