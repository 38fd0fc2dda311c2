//! Who may log in.

use rustix::rand::{GetRandomFlags, getrandom};
use sha_crypt::{PasswordHasher as _, ShaCrypt};

use super::file::RootFile;
use super::mistake::Mistakes;

/// Prefixes of the hashes that Debian's `crypt` knows and that are still good (crypt(5)).
const GOOD_HASHES: [&str; 5] = ["$y$", "$gy$", "$7$", "$2b$", "$6$"];
const KEY_KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];
const PASSWORD_MIN: usize = 8;
/// Random bytes in a hash's salt: 16 characters, which is all that crypt(5) takes.
const SALT_BYTES: usize = 12;

/// How root logs in: by a password on the console, by keys with SSH, or both.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Root {
    /// The password as crypt(5) has it; absent: none is good.
    pub password_hash: Option<String>,
    /// Public keys, one a line of `authorized_keys`.
    pub ssh_keys: Vec<String>,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Root")
            .field("password", &self.password_hash.is_some())
            .field("ssh_keys", &self.ssh_keys)
            .finish()
    }
}

impl Root {
    pub(super) fn validate(file: RootFile, mistakes: &mut Mistakes<'_>) -> Self {
        let nobody =
            file.password.is_none() && file.password_hash.is_none() && file.ssh_keys.is_empty();
        if nobody {
            let end = mistakes.end();
            let advice = "nobody could log in: write, in a table [root], password, password_hash \
                          or ssh_keys";
            mistakes.add(end, advice);
        }
        if let (Some(plain), Some(_)) = (&file.password, &file.password_hash) {
            mistakes.add(
                plain.span(),
                "root.password and root.password_hash: leave one of them out",
            );
        }
        let plain = mistakes.read(file.password, password);
        let hash = mistakes.read(file.password_hash, password_hash);
        let keys = file.ssh_keys.into_iter();
        let ssh_keys = keys
            .filter_map(|key| mistakes.read(Some(key), ssh_key))
            .collect();
        Self {
            password_hash: hash.or(plain),
            ssh_keys,
        }
    }
}

/// The hash of a password in plain text.
pub(crate) fn password(plain: &str) -> Result<String, String> {
    if plain.chars().count() < PASSWORD_MIN {
        return Err(format!(
            "root.password is too short: write at least {PASSWORD_MIN} characters"
        ));
    }
    if plain.chars().any(char::is_control) {
        return Err("root.password has a character that no keyboard has: leave it out".to_owned());
    }
    let failed = |error: &dyn std::fmt::Display| format!("cannot hash root.password: {error}");
    let mut salt = [0; SALT_BYTES];
    getrandom(&mut salt, GetRandomFlags::empty()).map_err(|error| failed(&error))?;
    let hashed = ShaCrypt::SHA512.hash_password_with_salt(plain.as_bytes(), &salt);
    let hash = hashed.map_err(|error| failed(&error))?;
    Ok(hash.as_str().to_owned())
}

fn password_hash(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_graphic() && !":*!\\".contains(c);
    let known = GOOD_HASHES.iter().any(|prefix| text.starts_with(prefix));
    if known && text.len() >= 20 && text.chars().all(valid) {
        return Ok(text.to_owned());
    }
    Err(
        "root.password_hash is no hash that Debian takes: write what `mkpasswd` or `openssl passwd \
         -6` prints, which begins with $y$ or $6$"
            .to_owned(),
    )
}

/// A public key as `authorized_keys` has it.
pub(crate) fn ssh_key(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.contains("PRIVATE KEY") {
        return Err(
            "this is a private key, which nobody but you may see: write the content of \
                    the file that ends in .pub"
                .to_owned(),
        );
    }
    let mut words = text.split(' ');
    let (kind, body) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let encoded = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let sound = KEY_KINDS.contains(&kind)
        && body.starts_with("AAAA")
        && body.len() >= 64
        && body.chars().all(encoded)
        && !text.chars().any(char::is_control);
    if sound {
        return Ok(text.to_owned());
    }
    let begin: String = text.chars().take(20).collect();
    Err(format!(
        "root.ssh_keys: what begins with {begin:?} is no public key: write the one line of a file like \
         ~/.ssh/id_ed25519.pub"
    ))
}
