//! Ids of backends: one for each address, port and protocol, while any frontend uses it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use foldhash::HashMap;
use podnet_common::layout::Backend;

/// An index into the table `backends`. 0 is never allocated: it is the value of slots that were never written.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct BackendId(pub u32);

/// Which ids are in use, in quarantine, or free.
#[derive(Clone, Debug)]
pub struct BackendIds {
    capacity: u32,
    /// By id; ids beyond the end are free.
    states: Vec<State>,
    /// Ids whose table entry contains this backend, in use or in quarantine.
    known: HashMap<Backend, BackendId>,
    /// Free ids before the end of `states`.
    free: BTreeSet<u32>,
    /// In the order in which their quarantine ends.
    resting: VecDeque<(Instant, BackendId)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    backend: Backend,
    /// Number of frontends that use it.
    uses: u32,
    /// End of the quarantine, if unused.
    until: Option<Instant>,
}

impl BackendIds {
    /// For a table with `capacity` entries.
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            states: vec![State::default()],
            known: HashMap::default(),
            free: BTreeSet::new(),
            resting: VecDeque::new(),
        }
    }

    /// Adopts a use found in the tables. Refuses an id that is out of range or known for another backend, and a backend
    /// that is known by another id.
    pub fn adopt(&mut self, id: BackendId, backend: Backend) -> bool {
        let index = id.0 as usize;
        if id.0 == 0 || id.0 >= self.capacity || backend == Backend::default() {
            return false;
        }
        if self.known.get(&backend).is_some_and(|known| *known != id) {
            return false;
        }
        while self.states.len() <= index {
            self.free.insert(self.states.len() as u32);
            self.states.push(State::default());
        }
        let state = &mut self.states[index];
        if state.uses == 0 {
            state.backend = backend;
            self.free.remove(&id.0);
            self.known.insert(backend, id);
        } else if state.backend != backend {
            return false;
        }
        self.states[index].uses += 1;
        true
    }

    /// The id of a backend, with one more use, and whether its entry must still be written; `None` if all ids are
    /// taken.
    pub fn acquire(&mut self, backend: Backend) -> Option<(BackendId, bool)> {
        if let Some(&id) = self.known.get(&backend) {
            let state = &mut self.states[id.0 as usize];
            state.uses += 1;
            state.until = None;
            return Some((id, false));
        }
        let id = match self.free.pop_first() {
            Some(id) => id,
            None if (self.states.len() as u64) < u64::from(self.capacity) => {
                self.states.push(State::default());
                self.states.len() as u32 - 1
            }
            None => return None,
        };
        self.states[id as usize] = State { backend, uses: 1, until: None };
        self.known.insert(backend, BackendId(id));
        Some((BackendId(id), true))
    }

    /// The id of a backend, if it is in use or in quarantine.
    pub fn find(&self, backend: &Backend) -> Option<BackendId> {
        self.known.get(backend).copied()
    }

    /// Ends a use. After the last one the id is quarantined until `until`, which must not be before earlier ones.
    pub fn release(&mut self, id: BackendId, until: Instant) {
        let Some(state) = self.states.get_mut(id.0 as usize) else { return };
        state.uses = state.uses.saturating_sub(1);
        if state.uses == 0 {
            state.until = Some(until);
            self.resting.push_back((until, id));
        }
    }

    /// Ends the first use of an id whose entry couldn't be written: no reader has seen it.
    pub fn forget(&mut self, id: BackendId) {
        self.free_now(id);
    }

    /// Frees the ids whose quarantine has ended.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.resting.front().filter(|(until, _)| *until <= now) {
            self.resting.pop_front();
            // An id used again in the meantime has a later quarantine or none.
            if self.states[id.0 as usize].until == Some(until) {
                self.free_now(id);
            }
        }
    }

    fn free_now(&mut self, id: BackendId) {
        let state = std::mem::take(&mut self.states[id.0 as usize]);
        self.known.remove(&state.backend);
        self.free.insert(id.0);
    }

    /// The backend of an id in use or in quarantine.
    pub fn backend(&self, id: BackendId) -> Backend {
        self.states.get(id.0 as usize).map_or_else(Backend::default, |state| state.backend)
    }

    /// Number of ids in use or in quarantine.
    pub fn taken(&self) -> usize {
        self.states.len() - 1 - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podnet_common::addr::{Port, Proto};

    use super::*;

    fn backend(n: u16) -> Backend {
        Backend { addr: std::net::Ipv4Addr::LOCALHOST.into(), port: Port::new(n), proto: Proto::TCP, _pad: 0 }
    }

    #[test]
    fn id_is_quarantined_before_reuse() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut ids = BackendIds::new(3);
        let (one, fresh) = ids.acquire(backend(1)).unwrap();
        assert_eq!((one, fresh), (BackendId(1), true));
        assert_eq!(ids.acquire(backend(1)), Some((one, false)));
        let two = ids.acquire(backend(2)).unwrap().0;
        assert_eq!(ids.acquire(backend(3)), None, "0 is never given out");
        ids.release(one, start + second);
        ids.release(one, start + second);
        ids.expire(start);
        assert_eq!(ids.acquire(backend(3)), None);
        assert_eq!(ids.backend(one), backend(1));
        // Used again during its quarantine, which ends that.
        assert_eq!(ids.acquire(backend(1)), Some((one, false)));
        ids.expire(start + second);
        assert_eq!(ids.acquire(backend(3)), None);
        ids.release(two, start + second);
        ids.expire(start + second);
        assert_eq!(ids.acquire(backend(3)), Some((two, true)));
        assert_eq!(ids.taken(), 2);
    }

    #[test]
    fn second_quarantine_is_not_cut_short_by_the_first() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut ids = BackendIds::new(2);
        let id = ids.acquire(backend(1)).unwrap().0;
        ids.release(id, start + second);
        ids.acquire(backend(1)).unwrap();
        ids.release(id, start + 2 * second);
        ids.expire(start + second);
        assert_eq!(ids.acquire(backend(2)), None);
        ids.expire(start + 2 * second);
        assert_eq!(ids.acquire(backend(2)), Some((id, true)));
    }

    #[test]
    fn unwritten_id_is_free_immediately() {
        let mut ids = BackendIds::new(2);
        let id = ids.acquire(backend(1)).unwrap().0;
        ids.forget(id);
        assert_eq!(ids.acquire(backend(1)), Some((id, true)), "and has to be written again");
    }

    #[test]
    fn adoption() {
        let mut ids = BackendIds::new(10);
        assert!(ids.adopt(BackendId(4), backend(4)) && ids.adopt(BackendId(4), backend(4)));
        assert!(!ids.adopt(BackendId(4), backend(5)), "another backend under the same id");
        assert!(!ids.adopt(BackendId(5), backend(4)), "the same backend under another id");
        assert!(!ids.adopt(BackendId(0), backend(1)) && !ids.adopt(BackendId(10), backend(1)));
        assert!(!ids.adopt(BackendId(5), Backend::default()), "never written");
        assert_eq!(ids.acquire(backend(4)), Some((BackendId(4), false)));
        assert_eq!(ids.acquire(backend(1)), Some((BackendId(1), true)));
        assert_eq!(ids.taken(), 2);
    }
}
