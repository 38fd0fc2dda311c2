//! How a request and a record name an image.

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::{FileName, Invalid, PoolName, is_label};

/// An image, as a request names it: `POOL/FILE`, or `FILE` alone for the first of the pools
/// `local` and the node's default that has it. In a record the pool is always there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// The pool that it is in.
    pub pool: Option<PoolName>,
    /// Its name there.
    pub file: FileName,
}

impl PartialSchema for ImageRef {
    fn schema() -> RefOr<Schema> {
        let pattern = "^([a-z]([-a-z0-9]{0,61}[a-z0-9])?/)?[A-Za-z0-9][-+._A-Za-z0-9]{0,99}$";
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.pattern(Some(pattern))
            .examples(["nas/debian.qcow2"])
            .into()
    }
}

impl ToSchema for ImageRef {}

impl ImageRef {
    /// The pool of one that is in a record.
    pub fn pool_or_local(&self) -> PoolName {
        self.pool.clone().unwrap_or_else(PoolName::local)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        match text.split_once('/') {
            // What begins with a slash or a dot is a path, and none of ours.
            Some((pool, file)) if is_label(pool) => Ok(Self {
                pool: Some(PoolName::try_from(pool.to_owned())?),
                file: FileName::try_from(file.to_owned())?,
            }),
            _ => Ok(Self {
                pool: None,
                file: FileName::try_from(text)?,
            }),
        }
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

impl From<FileName> for ImageRef {
    fn from(file: FileName) -> Self {
        Self { pool: None, file }
    }
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(pool) = &self.pool {
            write!(formatter, "{pool}/")?;
        }
        write!(formatter, "{}", self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_a_pool_or_none_and_never_a_path() {
        let parse = |text: &str| ImageRef::try_from(text.to_owned());
        let named = parse("nas/debian.qcow2").unwrap();
        assert_eq!(named.pool.as_ref().map(PoolName::as_str), Some("nas"));
        assert_eq!(named.to_string(), "nas/debian.qcow2");
        assert_eq!(parse("debian.qcow2").unwrap().pool, None);
        for text in [
            "",
            "/etc/shadow",
            "nas/",
            "nas/../x",
            "nas/a/b",
            "../a",
            "a/.b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
