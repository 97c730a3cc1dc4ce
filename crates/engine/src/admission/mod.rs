//! The queue in front of the memory budget: which query may run now, which waits, which is refused.
//!
//! A query is admitted when a slot is free, of the server and of its principal, and what it needs of the
//! memory can be taken. Light queries have a lane of their own and never wait for heavy ones. The order is
//! that of `queue`; here it meets the clock, the lock and the tasks. Every [`Permit`] gives back by `Drop`:
//! first what was taken, then the slot, so that whoever is next finds the memory free.

mod limits;
mod queue;
#[cfg(test)]
mod tests;

#[cfg(test)]
use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use updraft_auth::Principal;

pub use limits::PrincipalConfig;
pub(crate) use limits::{Limits, PerPrincipal, problems};
use queue::{Admitted, Queue, Refused, Take, Ticket};

use crate::config::Config;
use crate::error::Error;

/// The shortest and the longest time after which a refused client is asked to try again.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How long to try again after when no query has run yet.
const RETRY_AFTER_UNKNOWN: Duration = Duration::from_secs(1);

/// Which slots a query needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Metadata, statistics, tiny scans: what ends in milliseconds and holds next to nothing.
    Light,
    /// All others.
    Heavy,
}

/// Slots and queues of the server. `G` is what a query holds of the memory while it runs.
pub(crate) struct Admission<G: Send + 'static> {
    limits: Arc<PerPrincipal<Limits>>,
    lanes: Mutex<Lanes<G>>,
}

struct Lanes<G: Send + 'static> {
    light: Queue<G, Waiter<G>>,
    heavy: Queue<G, Waiter<G>>,
}

/// The task that waits.
struct Waiter<G: Send + 'static> {
    since: Instant,
    answer: oneshot::Sender<Result<Permit<G>, Error>>,
}

/// Who joins the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// May be one too many.
    New,
    /// Stood still, and has given a part of its result: it is not refused.
    Again,
}

/// How many queries run and wait.
#[cfg(test)]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) heavy: Load,
    pub(crate) light: Load,
    /// Heavy queries of each principal that has any.
    pub(crate) principals: BTreeMap<Principal, Load>,
}

/// Queries that run, and that wait.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) running: usize,
    pub(crate) queued: usize,
}

impl<G: Send + 'static> std::fmt::Debug for Admission<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

impl<G: Send + 'static> Lanes<G> {
    fn of(&mut self, lane: Lane) -> &mut Queue<G, Waiter<G>> {
        match lane {
            Lane::Light => &mut self.light,
            Lane::Heavy => &mut self.heavy,
        }
    }
}

impl<G: Send + 'static> Admission<G> {
    pub(crate) fn new(config: &Config, limits: Arc<PerPrincipal<Limits>>, cpu_threads: usize) -> Arc<Self> {
        let heavy = Queue::new(config.concurrent_queries(cpu_threads), config.max_queued);
        let light = Queue::new(config.max_light_queries, config.max_queued);
        Arc::new(Self { limits, lanes: Mutex::new(Lanes { light, heavy }) })
    }

    /// Waits until a query of `principal` may run. `take` takes what the query needs, or gives `None` while
    /// there is not enough; it is called whenever that may have changed, under the lock of this queue, so it
    /// is quick and calls nothing of this queue. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// `QueueFull`; `QueueTimeout`.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        principal: &Principal,
        lane: Lane,
        take: impl FnMut() -> Option<G> + Send + 'static,
    ) -> Result<Permit<G>, Error> {
        self.wait(principal, lane, Box::new(take), Arrival::New).await
    }

    async fn wait(
        self: &Arc<Self>,
        principal: &Principal,
        lane: Lane,
        take: Take<G>,
        arrival: Arrival,
    ) -> Result<Permit<G>, Error> {
        let since = Instant::now();
        let (answer, answered) = oneshot::channel();
        let place = self.join(principal, lane, Waiter { since, answer }, take, arrival);
        let timeout = Some(self.limits.of(principal).queue_timeout).filter(|timeout| !timeout.is_zero());
        match tokio::time::timeout(timeout.unwrap_or(Duration::MAX), answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => unreachable!("who is taken out of the queue is answered"),
            Err(_) => {
                drop(place);
                let mut lanes = self.lanes.lock();
                let queue = lanes.of(lane);
                Err(Error::QueueTimeout {
                    waited: since.elapsed(),
                    queued: queue.queued(),
                    retry_after: retry_after(queue),
                })
            }
        }
    }

    /// Admits whoever fits now. To be called when memory was freed; cheap when nobody waits.
    pub(crate) fn poke(self: &Arc<Self>) {
        self.change(Lane::Light, None, |_| ());
        self.change(Lane::Heavy, None, |_| ());
    }

    /// While paused no heavy query is admitted; those that run go on.
    pub(crate) fn pause(self: &Arc<Self>, paused: bool) {
        self.change(Lane::Heavy, None, |queue| queue.pause(paused));
    }

    /// How many queries wait in `lane`.
    pub(crate) fn queued(&self, lane: Lane) -> usize {
        self.lanes.lock().of(lane).queued()
    }

    #[cfg(test)]
    pub(crate) fn snapshot(&self) -> Snapshot {
        let lanes = self.lanes.lock();
        let load = |queue: &Queue<_, _>| Load { running: queue.running(), queued: queue.queued() };
        let principals = lanes.heavy.principals();
        Snapshot {
            heavy: load(&lanes.heavy),
            light: load(&lanes.light),
            principals: principals.map(|(name, running, queued)| (name.clone(), Load { running, queued })).collect(),
        }
    }

    fn join(
        self: &Arc<Self>,
        principal: &Principal,
        lane: Lane,
        waiter: Waiter<G>,
        take: Take<G>,
        arrival: Arrival,
    ) -> Place<G> {
        let mut limits = *self.limits.of(principal);
        if lane == Lane::Light {
            limits.max_concurrent_queries = usize::MAX;
        }
        let joined = (arrival == Arrival::New).then_some(principal);
        let ticket = self.change(lane, joined, |queue| queue.join(principal, &limits, waiter, take));
        Place { admission: Arc::clone(self), lane, principal: principal.clone(), ticket }
    }

    /// Changes a lane, admits who may run then, and refuses one too many if somebody `joined`. Nothing of the
    /// callers' is dropped or woken under the lock: it may come back here.
    fn change<R>(
        self: &Arc<Self>,
        lane: Lane,
        joined: Option<&Principal>,
        change: impl FnOnce(&mut Queue<G, Waiter<G>>) -> R,
    ) -> R {
        let (changed, admitted, refused) = {
            let mut lanes = self.lanes.lock();
            let queue = lanes.of(lane);
            let changed = change(queue);
            let admitted: Vec<_> = iter::from_fn(|| queue.next()).collect();
            // Whoever could run at once is no burden to the queue.
            let refused = joined.and_then(|joined| Some((queue.refused(joined)?, retry_after(queue))));
            (changed, admitted, refused)
        };
        for Admitted { principal, grant, waited } in admitted {
            let started = Instant::now();
            let slot = Slot { admission: Arc::clone(self), lane, principal, started: Some(started) };
            let Waiter { since, answer } = waited.who;
            let waited = started.saturating_duration_since(since);
            // The permit of a waiter that is gone comes back, is dropped, and lets the next one in.
            let _ = answer.send(Ok(Permit { grant, waited, slot }));
        }
        if let Some((Refused { waited, queued, limit, principal }, retry_after)) = refused {
            // A waiter that is gone needs no answer.
            let _ = waited.who.answer.send(Err(Error::QueueFull { queued, limit, principal, retry_after }));
        }
        changed
    }
}

fn retry_after<G, W>(queue: &Queue<G, W>) -> Duration {
    let (shortest, longest) = RETRY_AFTER;
    queue.expected_wait().map_or(RETRY_AFTER_UNKNOWN, |wait| wait.clamp(shortest, longest))
}

/// A place in the queue. Dropping it leaves the queue, if it was not admitted meanwhile.
struct Place<G: Send + 'static> {
    admission: Arc<Admission<G>>,
    lane: Lane,
    principal: Principal,
    ticket: Ticket,
}

impl<G: Send + 'static> Drop for Place<G> {
    fn drop(&mut self) {
        // Nobody may have been let past it; now they are.
        drop(self.admission.change(self.lane, None, |queue| queue.leave(&self.principal, self.ticket)));
    }
}

/// The right to run. Dropping it gives back what was taken, then the slot: fields drop in this order.
pub(crate) struct Permit<G: Send + 'static> {
    grant: G,
    waited: Duration,
    slot: Slot<G>,
}

impl<G: Send + 'static> Permit<G> {
    /// What was taken of the memory.
    pub(crate) fn grant(&self) -> &G {
        &self.grant
    }

    /// How long the query waited for this.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Lets others have the slot while this query stands still, such as for a client that reads slowly; it
    /// keeps what it took of the memory, but for what it lends. Dropping what is returned ends that at once, without a queue.
    pub(crate) fn park(&self) -> Parked<'_, G> {
        let slot = &self.slot;
        slot.admission.change(slot.lane, None, |queue| queue.park(&slot.principal));
        Parked(slot)
    }
}

struct Slot<G: Send + 'static> {
    admission: Arc<Admission<G>>,
    lane: Lane,
    principal: Principal,
    /// `None` when its end says nothing of how long queries run.
    started: Option<Instant>,
}

impl<G: Send + 'static> Drop for Slot<G> {
    fn drop(&mut self) {
        let ran = self.started.map(|started| started.elapsed());
        self.admission.change(self.lane, None, |queue| queue.ended(&self.principal, ran));
    }
}

/// A query that stands still.
pub(crate) struct Parked<'a, G: Send + 'static>(&'a Slot<G>);

impl<G: Send + 'static> Parked<'_, G> {
    /// Waits in the queue, however long that is, until `take` has what the query needs to go on. `false` when that took
    /// longer than one may wait: it has its slot again all the same.
    pub(crate) async fn resume(self, take: impl FnMut() -> Option<G> + Send + 'static) -> bool {
        let Self(slot) = &self;
        let again = slot.admission.wait(&slot.principal, slot.lane, Box::new(take), Arrival::Again).await;
        match again {
            Ok(mut again) => {
                // Its own slot takes the place of the one it has waited for.
                again.slot.started = None;
                drop(self);
                true
            }
            Err(_) => false,
        }
    }
}

impl<G: Send + 'static> Drop for Parked<'_, G> {
    fn drop(&mut self) {
        let Self(slot) = self;
        slot.admission.change(slot.lane, None, |queue| queue.unpark(&slot.principal));
    }
}
