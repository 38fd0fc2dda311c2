//! What the machine becomes part of.

use toml::Spanned;

use super::file::ClusterFile;
use super::mistake::Mistakes;

/// What the machine becomes part of when it first starts.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Cluster {
    /// Of nothing: it is a node for itself, and may begin or join a cluster later.
    #[default]
    Single,
    /// It is the first of a new cluster.
    New,
    /// It joins one.
    Join {
        /// A node of it, with a port if that is not 7480.
        address: String,
        /// What `pindah cluster token` printed there.
        token: String,
        /// It votes and runs no guests.
        witness: bool,
    },
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Single => formatter.write_str("Single"),
            Self::New => formatter.write_str("New"),
            Self::Join {
                address, witness, ..
            } => write!(formatter, "Join({address}, witness: {witness})"),
        }
    }
}

impl Cluster {
    pub(super) fn validate(
        file: Option<Spanned<ClusterFile>>,
        mistakes: &mut Mistakes<'_>,
    ) -> Self {
        let Some(file) = file else {
            return Self::Single;
        };
        let (place, file) = (file.span(), file.into_inner());
        let Some(mode) = file.mode else {
            mistakes.add(place, "cluster.mode is missing: write \"new\" or \"join\"");
            return Self::Single;
        };
        match mode.get_ref().as_str() {
            "join" => {
                for (field, value) in [("address", &file.address), ("token", &file.token)] {
                    if value.is_none() {
                        let advice =
                            format!("cluster.{field} is missing, which mode = \"join\" needs");
                        mistakes.add(mode.span(), advice);
                    }
                }
                Self::Join {
                    address: mistakes
                        .read(file.address, node_address)
                        .unwrap_or_default(),
                    token: mistakes.read(file.token, join_token).unwrap_or_default(),
                    witness: file.witness,
                }
            }
            "new" => {
                let values = [("address", file.address), ("token", file.token)];
                for (field, value) in values {
                    if let Some(value) = value {
                        let advice = format!(
                            "cluster.{field} is for mode = \"join\": leave it out, or change mode"
                        );
                        mistakes.add(value.span(), advice);
                    }
                }
                if file.witness {
                    let advice = "cluster.witness is for mode = \"join\": leave it out";
                    mistakes.add(mode.span(), advice);
                }
                Self::New
            }
            other => {
                let advice = format!("cluster.mode = {other:?}: write \"new\" or \"join\"");
                mistakes.add(mode.span(), advice);
                Self::Single
            }
        }
    }
}

/// A node's name or address, with or without a port.
pub(crate) fn node_address(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.len() <= 255 && text.chars().all(valid) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "cluster.address = {text:?}: write a node's address, as \"192.168.0.11\""
    ))
}

/// What `pindah cluster token` prints: `pindah-join.ID.SECRET.FINGERPRINT.ADDRESS`.
pub(crate) fn join_token(text: &str) -> Result<String, String> {
    let text = text.trim();
    let parts: Vec<&str> = text.splitn(5, '.').collect();
    let hexadecimal = |part: &str, length: usize| {
        part.len() == length && part.chars().all(|c| c.is_ascii_hexdigit())
    };
    let is_token = matches!(parts.as_slice(), &["pindah-join", id, secret, fingerprint, address]
        if hexadecimal(id, 16) && hexadecimal(secret, 64) && hexadecimal(fingerprint, 64)
            && node_address(address).is_ok());
    is_token.then(|| text.to_owned()).ok_or_else(|| {
        "cluster.token is no join token: write what `pindah cluster token` prints on a node of \
         the cluster"
            .to_owned()
    })
}
