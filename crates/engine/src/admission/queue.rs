//! The order of one lane: who runs, who waits, who is next, and who is refused. Only the rules: no clock, no
//! lock, no task.
//!
//! Next is the principal that runs the least for its priority; among equals, whose turn it is (weighted round
//! robin). Within a principal the first come is the first served. A query whose bytes do not fit lets others
//! pass, but only [`PASSES_MAX`] times: then nobody passes until it fits, or small queries would keep a large
//! one out for ever.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use updraft_auth::Principal;

use super::Limits;

/// How many queries may be admitted past one that does not fit yet.
pub(super) const PASSES_MAX: u32 = 16;

/// How far one admission moves a principal of priority 1 back in the round.
const TURN: u64 = 1 << 20;

/// Of how many past runs the median says how long the next will take.
const RECENT: usize = 32;

/// Tries to take what a query needs; `None` while there is not enough.
pub(super) type Take<G> = Box<dyn FnMut() -> Option<G> + Send>;

/// The place of a query in its principal's line; lower came earlier.
pub(super) type Ticket = u64;

/// One lane: `W` stands for who waits, `G` is what they wait for.
pub(super) struct Queue<G, W> {
    slots: usize,
    queued_max: usize,
    running: usize,
    queued: usize,
    paused: bool,
    /// The furthest turn that was served. Who comes new starts there, and neither owes nor is owed.
    round: u64,
    tickets: Ticket,
    principals: HashMap<Principal, Line<G, W>>,
    recent: VecDeque<Duration>,
}

/// What one principal runs and waits for.
struct Line<G, W> {
    priority: u64,
    slots: usize,
    queued_max: usize,
    running: usize,
    parked: usize,
    turn: u64,
    waiting: BTreeMap<Ticket, Waiting<G, W>>,
}

/// Who waits. Whatever `take` holds is dropped by the caller, who holds no lock by then.
pub(super) struct Waiting<G, W> {
    pub(super) who: W,
    take: Take<G>,
    /// How many were admitted past it.
    passes: u32,
}

/// Who may run now.
pub(super) struct Admitted<G, W> {
    pub(super) principal: Principal,
    pub(super) grant: G,
    pub(super) waited: Waiting<G, W>,
}

/// Who must not wait any longer, because the queue is full.
pub(super) struct Refused<G, W> {
    pub(super) waited: Waiting<G, W>,
    pub(super) queued: usize,
    pub(super) limit: usize,
    /// Whose bound it is; `None` = the server's.
    pub(super) principal: Option<Principal>,
}

impl<G, W> Queue<G, W> {
    pub(super) fn new(slots: usize, queued_max: usize) -> Self {
        Self {
            slots,
            queued_max,
            running: 0,
            queued: 0,
            paused: false,
            round: 0,
            tickets: 0,
            principals: HashMap::new(),
            recent: VecDeque::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Running and queued queries of each principal that has any.
    #[cfg(test)]
    pub(super) fn principals(&self) -> impl Iterator<Item = (&Principal, usize, usize)> {
        let lines = self.principals.iter().map(|(principal, line)| (principal, line.running, line.waiting.len()));
        lines.filter(|(_, running, queued)| running + queued > 0)
    }

    /// While paused nobody is admitted.
    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Lines up, above the bounds if need be: [`Self::refused`] tells who must go once [`Self::next`] gives nothing.
    pub(super) fn join(&mut self, principal: &Principal, limits: &Limits, who: W, take: Take<G>) -> Ticket {
        let ticket = self.tickets;
        self.tickets += 1;
        self.queued += 1;
        let line = self.principals.entry(principal.clone()).or_insert_with(|| Line {
            priority: u64::from(limits.priority.max(1)),
            slots: limits.max_concurrent_queries,
            queued_max: limits.max_queued,
            running: 0,
            parked: 0,
            turn: self.round,
            waiting: BTreeMap::new(),
        });
        // Turns cannot be saved up by not asking for them.
        if line.waiting.is_empty() {
            line.turn = line.turn.max(self.round);
        }
        line.waiting.insert(ticket, Waiting { who, take, passes: 0 });
        ticket
    }

    /// Leaves the line; `None` when it is not there any more.
    pub(super) fn leave(&mut self, principal: &Principal, ticket: Ticket) -> Option<Waiting<G, W>> {
        let left = self.principals.get_mut(principal)?.waiting.remove(&ticket)?;
        self.queued -= 1;
        self.forget();
        Some(left)
    }

    /// Admits the next that fits; `None` when nobody may run now.
    pub(super) fn next(&mut self) -> Option<Admitted<G, W>> {
        if self.paused || self.running >= self.slots || self.queued == 0 {
            return None;
        }
        let lines = self.principals.iter().filter(|(_, line)| line.running < line.slots);
        let mut heads: Vec<_> = lines.filter_map(|(principal, line)| Some((line.rank()?, principal.clone()))).collect();
        heads.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut passed = Vec::new();
        for (_, principal) in heads {
            let line = self.principals.get_mut(&principal)?;
            let mut head = line.waiting.first_entry()?;
            let Some(grant) = (head.get_mut().take)() else {
                // Waiting for others to end helps only while others run.
                if head.get().passes >= PASSES_MAX && self.running > 0 {
                    return None;
                }
                passed.push(principal);
                continue;
            };
            let waited = head.remove();
            self.round = self.round.max(line.turn);
            line.turn += TURN / line.priority;
            line.running += 1;
            self.running += 1;
            self.queued -= 1;
            for principal in &passed {
                if let Some(mut head) = self.principals.get_mut(principal).and_then(|line| line.waiting.first_entry()) {
                    head.get_mut().passes += 1;
                }
            }
            return Some(Admitted { principal, grant, waited });
        }
        None
    }

    /// Takes out one query too many: the youngest of `joined` above its own bound; else, above the lane's, the
    /// youngest of who waits with the most for its priority, so that one who floods cannot lock others out.
    pub(super) fn refused(&mut self, joined: &Principal) -> Option<Refused<G, W>> {
        let bounded = |line: &&Line<G, W>| line.queued_max < self.queued_max && line.waiting.len() > line.queued_max;
        let own = self.principals.get(joined).filter(bounded);
        let (principal, queued, limit, whose) = match own {
            Some(line) => (joined.clone(), line.waiting.len() - 1, line.queued_max, Some(joined.clone())),
            None if self.queued > self.queued_max => {
                let waiting = |line: &Line<G, W>| line.waiting.len() as u64;
                let most = self.principals.iter().max_by(|(a, line), (b, other)| {
                    // Among equals who came last goes.
                    let share = (waiting(line) * other.priority).cmp(&(waiting(other) * line.priority));
                    share.then_with(|| (*a == joined).cmp(&(*b == joined)))
                });
                (most?.0.clone(), self.queued - 1, self.queued_max, None)
            }
            None => return None,
        };
        let (_, waited) = self.principals.get_mut(&principal)?.waiting.pop_last()?;
        self.queued -= 1;
        self.forget();
        Some(Refused { waited, queued, limit, principal: whose })
    }

    /// A run ended after `ran`, if that tells how long others may take.
    pub(super) fn ended(&mut self, principal: &Principal, ran: Option<Duration>) {
        self.running -= 1;
        if let Some(line) = self.principals.get_mut(principal) {
            line.running -= 1;
        }
        if let Some(ran) = ran {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(ran);
        }
        self.forget();
    }

    /// A query stands still and lets others have its slot.
    pub(super) fn park(&mut self, principal: &Principal) {
        self.running -= 1;
        if let Some(line) = self.principals.get_mut(principal) {
            line.running -= 1;
            line.parked += 1;
        }
    }

    /// The query goes on: it has a slot again, one too many when others took its own meanwhile.
    pub(super) fn unpark(&mut self, principal: &Principal) {
        self.running += 1;
        if let Some(line) = self.principals.get_mut(principal) {
            line.running += 1;
            line.parked -= 1;
        }
    }

    /// How long until one that comes now would probably run.
    pub(super) fn expected_wait(&self) -> Option<Duration> {
        let mut recent: Vec<_> = self.recent.iter().copied().collect();
        recent.sort_unstable();
        let median = *recent.get(recent.len() / 2)?;
        let ahead = u32::try_from(self.queued + 1).unwrap_or(u32::MAX);
        // Memory may bound what runs together before the slots do.
        Some(median.saturating_mul(ahead) / u32::try_from(self.running.max(1)).unwrap_or(u32::MAX))
    }

    /// Forgets principals without queries, but for those that are ahead of the round: they would come back
    /// as new and be served again too early.
    fn forget(&mut self) {
        let round = self.round;
        self.principals.retain(|_, line| !line.idle() || line.turn > round);
    }
}

impl<G, W> Line<G, W> {
    fn idle(&self) -> bool {
        self.running + self.parked == 0 && self.waiting.is_empty()
    }

    fn rank(&self) -> Option<Rank> {
        let (ticket, head) = self.waiting.first_key_value()?;
        let held = head.passes >= PASSES_MAX;
        Some(Rank { held, running: self.running as u64, priority: self.priority, turn: self.turn, ticket: *ticket })
    }
}

/// Where the first query of a principal stands among those of the others.
#[derive(Debug, PartialEq, Eq)]
struct Rank {
    /// Enough have passed it.
    held: bool,
    running: u64,
    priority: u64,
    turn: u64,
    ticket: Ticket,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let share = |this: &Self, that: &Self| this.running * that.priority;
        (other.held.cmp(&self.held))
            .then_with(|| share(self, other).cmp(&share(other, self)))
            .then_with(|| (self.turn, self.ticket).cmp(&(other.turn, other.ticket)))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
