//! What a move will take: foretold from earlier ones and from the link, and remembered after it.

use std::time::Duration;

use pindah_vmm_api::{MigrateRequest, MigrationReport};

use super::link_speed::link_bits_per_s;
use super::{MoveRequest, Offer, Plan};
use crate::causes::chain;
use crate::clock::now_unix_ms;
use crate::domain::{Forecast, Guest, LastMove, MoveInputs};
use crate::guests::{GuestError, GuestState, Guests};
use crate::store::{Collection, StoreError, Transaction, encode};

impl Guests {
    fn last_moves(&self) -> Collection<LastMove> {
        Collection::new(self.resources().store.clone())
    }

    /// What the guest's move to who made the offer will take.
    pub(super) async fn foretell(
        &self,
        guest: &Guest,
        offer: &Offer,
        request: &MoveRequest,
    ) -> Result<Forecast, GuestError> {
        let moves = self.last_moves().all().await?.into_iter();
        let moves: Vec<LastMove> = moves.map(|stored| stored.value).collect();
        let nodes = (self.resources().node.as_str(), offer.node.as_str());
        let default = MigrateRequest::default();
        let downtime_target_ms = request.downtime_target_ms;
        let timeout_s = request.timeout_s.unwrap_or(default.timeout_s);
        let known = MoveInputs {
            memory_bytes: self.resident_mib(guest) << 20,
            paused: self.status(guest.uuid).state == GuestState::Paused,
            last: moves.iter().find(|last| last.guest == guest.uuid),
            moved_bytes_per_s: LastMove::speed_between(&moves, guest.uuid, nodes),
            link_bits_per_s: offer.address.and_then(link_bits_per_s),
            cap_bytes_per_s: request.bandwidth_bytes_per_s,
            mode: request.mode,
            downtime_target: Duration::from_millis(
                downtime_target_ms.unwrap_or(default.downtime_target_ms),
            ),
            timeout: Duration::from_secs(timeout_s),
        };
        Ok(known.forecast())
    }

    /// Keeps what a move has shown, for the next forecast; one that cannot be kept is missed by
    /// nothing else.
    pub(super) async fn remember_move(
        &self,
        guest: &Guest,
        plan: &Plan,
        request: &MoveRequest,
        report: &MigrationReport,
    ) {
        let last = LastMove::of(
            guest.uuid,
            (&self.resources().node, &plan.to),
            (
                plan.memory_mib << 20,
                request.bandwidth_bytes_per_s.is_some(),
            ),
            report,
            now_unix_ms(),
        );
        if let Some(last) = last
            && let Err(error) = self.keep_last_move(&last).await
        {
            tracing::warn!(
                "what the move of guest {} has shown: {}",
                guest.name,
                chain(&error)
            );
        }
    }

    /// Not without the guest's own record: both go together when it is deleted.
    async fn keep_last_move(&self, last: &LastMove) -> Result<(), StoreError> {
        let id = last.guest.to_string();
        let Some(guest) = self.records().get(&id).await? else {
            return Ok(());
        };
        let key = Collection::<LastMove>::key(&id);
        let keep = Transaction::new()
            .if_unchanged(Collection::<Guest>::key(&id), guest.revision)
            .put(&key, encode(&key, last)?);
        self.resources().store.commit(keep).await.map(|_| ())
    }
}
