//! Who is told what happens to a guest.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use pindah_vmm_api::{Event, EventKind};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Events that a subscriber may leave unread.
const CAPACITY: usize = 256;

/// The hub: whoever holds it publishes, and every subscriber gets every event.
#[derive(Default)]
pub struct Events {
    hub: Mutex<Hub>,
}

#[derive(Default)]
struct Hub {
    sequence: u64,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    sender: SyncSender<Event>,
    wake: Arc<EventFd>,
}

/// One subscriber's end.
pub struct Subscription {
    /// The events in order. Disconnected once the subscriber has left 256 unread: it has then
    /// missed what followed and must subscribe anew.
    pub receiver: Receiver<Event>,
    /// Readable when there may be something to receive, or the sender has gone.
    pub wake: Arc<EventFd>,
}

impl Events {
    /// Tells everybody. Never waits: who does not read is dropped.
    pub fn publish(&self, kind: EventKind) {
        let mut hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
        hub.sequence += 1;
        let event = Event {
            sequence: hub.sequence,
            time_unix_ms: now_unix_ms(),
            kind,
        };
        hub.subscribers.retain(|subscriber| {
            let kept = subscriber.sender.try_send(event.clone()).is_ok();
            // An eventfd refuses only when its counter is full, and then it is readable.
            let _ = subscriber.wake.write(1);
            kept
        });
    }

    /// Gets every event from now on.
    ///
    /// # Errors
    /// The host has no eventfd left.
    pub fn subscribe(&self) -> std::io::Result<Subscription> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (sender, receiver) = sync_channel(CAPACITY);
        let mut hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
        hub.subscribers.push(Subscriber {
            sender,
            wake: Arc::clone(&wake),
        });
        Ok(Subscription { receiver, wake })
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;

    use super::*;

    #[test]
    fn subscriber_gets_events_in_order_from_when_it_subscribed() {
        let events = Events::default();
        events.publish(EventKind::Started);
        let subscription = events.subscribe().unwrap();
        events.publish(EventKind::Resumed);
        events.publish(EventKind::PowerButton);
        assert_eq!(subscription.wake.read().unwrap(), 2);
        let got: Vec<_> = subscription.receiver.try_iter().collect();
        assert_eq!(got[0].kind, EventKind::Resumed);
        assert_eq!(got[1].kind, EventKind::PowerButton);
        assert_eq!((got[0].sequence, got[1].sequence), (2, 3));
    }

    #[test]
    fn subscriber_that_does_not_read_is_dropped_and_others_go_on() {
        let events = Events::default();
        let slow = events.subscribe().unwrap();
        for _ in 0..=CAPACITY {
            events.publish(EventKind::Resumed);
        }
        let fresh = events.subscribe().unwrap();
        events.publish(EventKind::Started);
        assert_eq!(slow.receiver.try_iter().count(), CAPACITY);
        assert_eq!(slow.receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(fresh.receiver.try_iter().count(), 1);
    }
}
