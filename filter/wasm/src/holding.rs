//! How many bytes of bodies this worker's requests hold, while they are read and while they wait.
//!
//! Two things run out. One is memory: a client can send as much as Envoy keeps of one body, on as many connections as it
//! likes. The other is the window of an HTTP/2 connection: what waits uses it up, and when nothing is left, all requests on
//! the connection stand still, also those that have nothing to do with nimgate. So where a piece would go past a bound,
//! someone is refused. Of those that wait it is the newcomer. Of those whose bodies are still being read it is who holds
//! most. Of these nobody knows yet whether they are nimgate's affair, so what others hold that wait is not counted against
//! them.

use super::host::{self, ContextRef};
use super::stream::Stream;
use hashbrown::HashMap;
use nimgate_config::bodies::Bodies;
use nimgate_core::messages::Full;
use nimgate_core::units::RequestId;
use std::rc::Rc;

/// What is held.
#[derive(Default)]
pub struct Holding {
    holders: HashMap<RequestId, Holder>,
    read: u64,
    waiting: u64,
}

struct Holder {
    stream: Rc<Stream>,
    bytes: u64,
    /// Whether the request waits, and is not read any more.
    waits: bool,
    /// Asked for only when it matters.
    connection: Option<u64>,
}

/// Who is refused, and why.
pub struct Excess {
    pub stream: Rc<Stream>,
    pub full: Full,
    /// Whether its body alone is too large.
    pub alone: bool,
}

impl Holding {
    /// So many bytes of a stream's body are held now.
    pub fn hold(&mut self, stream: &Rc<Stream>, bytes: u64) {
        let before = self.holders.remove(&stream.request());
        let connection = before.as_ref().and_then(|before| before.connection);
        self.forget(before);
        let holder = Holder { stream: Rc::clone(stream), bytes, waits: !stream.is_arriving(), connection };
        let total = if holder.waits { &mut self.waiting } else { &mut self.read };
        *total = total.saturating_add(bytes);
        self.holders.insert(stream.request(), holder);
    }

    /// Nothing of a stream's body is held any more.
    pub fn let_go(&mut self, request: RequestId) {
        let before = self.holders.remove(&request);
        self.forget(before);
    }

    fn forget(&mut self, holder: Option<Holder>) {
        let Some(holder) = holder else { return };
        let total = if holder.waits { &mut self.waiting } else { &mut self.read };
        *total = total.saturating_sub(holder.bytes);
    }

    /// Who is to be refused, if more is held than may be. `stream` has just brought a piece; `running` is in effect.
    pub fn excess(&mut self, stream: &Rc<Stream>, bounds: Bodies, running: ContextRef) -> Option<Excess> {
        let holder = self.holders.get(&stream.request())?;
        let newcomer = |full| Some(Excess { stream: Rc::clone(stream), full, alone: false });
        let worker = Full::Worker(bounds.worker_max);
        if holder.bytes > bounds.worker_max {
            return Some(Excess { stream: Rc::clone(stream), full: worker, alone: true });
        }
        if !holder.waits {
            let is_full = self.read > bounds.worker_max;
            return is_full.then(|| Excess { stream: self.largest_read(stream), full: worker, alone: false });
        }
        if self.waiting > bounds.worker_max {
            return newcomer(worker);
        }
        let is_crowded =
            self.waiting > bounds.connection_max && self.on_connection(stream, running) > bounds.connection_max;
        if is_crowded { newcomer(Full::Connection(bounds.connection_max)) } else { None }
    }

    /// Whose body, of those that are still being read, is the largest so far.
    fn largest_read(&self, or: &Rc<Stream>) -> Rc<Stream> {
        let largest = self.holders.values().filter(|holder| !holder.waits).max_by_key(|holder| holder.bytes);
        Rc::clone(largest.map_or(or, |holder| &holder.stream))
    }

    /// What the waiting requests of a stream's connection hold together; 0 if there is only one, which is bounded by what
    /// Envoy keeps of a body.
    fn on_connection(&mut self, stream: &Stream, running: ContextRef) -> u64 {
        let connection = self.connection_of(stream.request(), running);
        let waiting: Vec<(RequestId, u64)> = self
            .holders
            .iter()
            .filter(|(_, holder)| holder.waits)
            .map(|(request, holder)| (*request, holder.bytes))
            .collect();
        let (mut sum, mut count) = (0u64, 0usize);
        for (request, bytes) in waiting {
            if connection.is_some() && self.connection_of(request, running) == connection {
                sum = sum.saturating_add(bytes);
                count = count.saturating_add(1);
            }
        }
        if count > 1 { sum } else { 0 }
    }

    fn connection_of(&mut self, request: RequestId, running: ContextRef) -> Option<u64> {
        let holder = self.holders.get_mut(&request)?;
        if holder.connection.is_none() {
            let of = holder.stream.context();
            holder.connection = host::on_behalf_of(of, running, || host::property_u64("connection_id")).ok().flatten();
        }
        holder.connection
    }
}
