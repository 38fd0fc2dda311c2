//! Who may run a guest: the rule that it runs once, pure. Every change that these functions make
//! is written by compare-and-swap, so of two that try one wins.
//!
//! ```text
//!  on A, epoch n ──begin_move(B)──► on A, moving to B, n+1 ──finish_move──► on B, n+2
//!       ▲                                 │
//!       └───────────abort_move────────────┘  n+2
//! ```

use thiserror::Error;

use super::Guest;

/// Why a node may not run, or move, a guest.
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
    /// It is on its way.
    #[error("guest {name} is moving from node {from} to node {to}; wait for the task to end")]
    Moving {
        /// The guest.
        name: String,
        /// Where it was.
        from: String,
        /// Where it goes.
        to: String,
    },
    /// It is not on its way there.
    #[error("guest {name} is not moving to node {to}")]
    NotMoving {
        /// The guest.
        name: String,
        /// Where it should go.
        to: String,
    },
}

impl Guest {
    /// Whether `node` may start it.
    ///
    /// # Errors
    /// [`PlacementError::Elsewhere`], [`PlacementError::Moving`].
    pub fn may_start_on(&self, node: &str) -> Result<(), PlacementError> {
        if self.node != node {
            return Err(PlacementError::Elsewhere {
                name: self.name.to_string(),
                node: self.node.clone(),
            });
        }
        match &self.moving_to {
            None => Ok(()),
            Some(to) => Err(PlacementError::Moving {
                name: self.name.to_string(),
                from: self.node.clone(),
                to: to.clone(),
            }),
        }
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

    /// It is to move to the node `to`. From when this is written, `to` may run it once it has the
    /// migration's COMMIT.
    ///
    /// # Errors
    /// [`PlacementError::Elsewhere`]: it is not on `from`; [`PlacementError::Moving`].
    pub fn begin_move(&mut self, from: &str, to: &str) -> Result<(), PlacementError> {
        self.may_start_on(from)?;
        self.moving_to = Some(to.to_owned());
        self.epoch += 1;
        Ok(())
    }

    /// It runs on `to` now.
    ///
    /// # Errors
    /// [`PlacementError::NotMoving`].
    pub fn finish_move(&mut self, to: &str) -> Result<(), PlacementError> {
        self.require_move_to(to)?;
        self.moving_to = None;
        to.clone_into(&mut self.node);
        self.epoch += 1;
        Ok(())
    }

    /// It stays where it was, for `to` never runs it.
    ///
    /// # Errors
    /// [`PlacementError::NotMoving`].
    pub fn abort_move(&mut self, to: &str) -> Result<(), PlacementError> {
        self.require_move_to(to)?;
        self.moving_to = None;
        self.epoch += 1;
        Ok(())
    }

    /// Whether it is on its way there.
    pub fn is_moving_to(&self, node: &str) -> bool {
        self.node != node && self.moving_to.as_deref() == Some(node)
    }

    /// Refuses a guest that is not on its way there.
    ///
    /// # Errors
    /// [`PlacementError::NotMoving`].
    pub fn require_move_to(&self, to: &str) -> Result<(), PlacementError> {
        if self.moving_to.as_deref() == Some(to) {
            return Ok(());
        }
        Err(PlacementError::NotMoving {
            name: self.name.to_string(),
            to: to.to_owned(),
        })
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
    fn only_its_node_starts_it_and_nobody_while_it_moves() {
        let mut guest = guest();
        assert!(guest.claim("b").is_err());
        guest.claim("a").unwrap();
        guest.begin_move("a", "b").unwrap();
        for node in ["a", "b"] {
            assert!(guest.may_start_on(node).is_err());
        }
        assert!(guest.begin_move("a", "c").is_err());
        assert!(guest.finish_move("c").is_err());
        guest.finish_move("b").unwrap();
        assert_eq!((guest.node.as_str(), guest.epoch), ("b", 3));
        guest.claim("b").unwrap();
        assert!(guest.claim("a").is_err());
    }

    #[test]
    fn move_that_was_given_up_leaves_it_where_it_was() {
        let mut guest = guest();
        guest.begin_move("a", "b").unwrap();
        guest.abort_move("b").unwrap();
        assert!(guest.finish_move("b").is_err());
        assert!(guest.abort_move("b").is_err());
        guest.claim("a").unwrap();
        assert_eq!(guest.epoch, 3);
    }
}
