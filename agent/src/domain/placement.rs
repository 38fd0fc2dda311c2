//! Who may run a guest: the rule that it runs once, pure. Every change that these functions make
//! is written by compare-and-swap, so of two that try one wins.

use thiserror::Error;

use super::Guest;

/// Why a node may not run a guest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// Another node runs it.
    #[error("guest {name} belongs to node {node}")]
    Elsewhere {
        /// The guest.
        name: String,
        /// Its node.
        node: String,
    },
}

impl Guest {
    /// Whether `node` may start it.
    ///
    /// # Errors
    /// [`PlacementError::Elsewhere`].
    pub fn may_start_on(&self, node: &str) -> Result<(), PlacementError> {
        if self.node == node {
            return Ok(());
        }
        Err(PlacementError::Elsewhere {
            name: self.name.to_string(),
            node: self.node.clone(),
        })
    }

    /// `node` starts it.
    ///
    /// # Errors
    /// As [`Self::may_start_on`].
    pub fn claim(&mut self, node: &str) -> Result<(), PlacementError> {
        self.may_start_on(node)?;
        self.epoch += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::GuestSpec;

    fn guest() -> Guest {
        let spec = serde_json::json!({
            "name": "web", "memory_mib": 64, "disks": [{ "size_mib": 1 }]
        });
        let spec: GuestSpec = serde_json::from_value(spec).unwrap();
        spec.plan(
            uuid::Uuid::new_v4(),
            "a",
            &crate::domain::PoolName::local(),
            0,
        )
        .unwrap()
        .guest
    }

    #[test]
    fn only_its_node_starts_it_and_each_start_counts() {
        let mut guest = guest();
        assert!(guest.claim("b").is_err());
        guest.claim("a").unwrap();
        assert_eq!((guest.node.as_str(), guest.epoch), ("a", 1));
        assert!(guest.may_start_on("b").is_err());
        guest.claim("a").unwrap();
        assert_eq!(guest.epoch, 2);
    }
}
