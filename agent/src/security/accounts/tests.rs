//! Accounts in a store of their own.

use super::*;
use crate::security::Role;
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
        role: Role::Operator,
    };
    let (token, text) = accounts.create_token(&new).await.unwrap();
    let principal = accounts.authenticate(&text).await.unwrap();
    assert_eq!(
        (principal.user.as_str(), principal.role),
        ("ci", Role::Operator)
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
        role: Role::Admin,
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
        accounts.authenticate(&text).await.unwrap().role,
        Role::Admin
    );
    accounts.delete_user("siti").await.unwrap();
    assert!(accounts.authenticate(&text).await.is_err());
    let short = NewUser {
        name: "x".to_owned(),
        role: Role::Viewer,
        password: "short".to_owned(),
    };
    assert!(accounts.create_user(short).await.is_err());
}
