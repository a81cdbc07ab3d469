//! The record of all that was received, for tests to check.

use base64::Engine;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One received request.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Its place in the order of arrival.
    pub seq: u64,
    /// When its headers arrived, in microseconds of a monotonic clock.
    pub at_us: u64,
    pub method: String,
    pub path: String,
    /// In order of arrival, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body_len: usize,
    pub body_sha256: Option<String>,
    /// Only of bodies up to [`BODY_KEPT_MAX`].
    pub body_base64: Option<String>,
    pub model: Option<String>,
    /// `null` until it is answered.
    pub status: Option<u16>,
    /// Whether the peer went away before the answer was complete.
    pub aborted: bool,
}

/// All received requests since the last reset.
#[derive(Debug, Default)]
pub struct Record {
    entries: Mutex<(u64, Vec<Entry>)>,
}

/// A request's handle in the record. Requests of before a reset no longer change it.
#[derive(Clone, Copy, Debug)]
pub struct Handle {
    epoch: u64,
    seq: u64,
}

impl Record {
    /// Notes a request whose headers have arrived.
    pub fn begin(&self, mut entry: Entry) -> Handle {
        let mut entries = self.lock();
        entry.seq = entries.1.len() as u64;
        let handle = Handle {
            epoch: entries.0,
            seq: entry.seq,
        };
        entries.1.push(entry);
        handle
    }

    /// Changes a request's entry.
    pub fn update(&self, handle: Handle, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        if entries.0 == handle.epoch
            && let Some(entry) = entries.1.get_mut(handle.seq as usize)
        {
            change(entry);
        }
    }

    /// A copy of all entries.
    pub fn all(&self) -> Vec<Entry> {
        self.lock().1.clone()
    }

    /// Forgets everything.
    pub fn reset(&self) {
        let mut entries = self.lock();
        entries.0 += 1;
        entries.1.clear();
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Entry>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Notes the body once it is complete.
    pub fn set_body(&mut self, body: &[u8]) {
        self.body_len = body.len();
        self.body_sha256 = Some(
            Sha256::digest(body)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        );
        self.body_base64 = (body.len() <= BODY_KEPT_MAX)
            .then(|| base64::engine::general_purpose::STANDARD.encode(body));
        self.model = serde_json::from_slice::<serde_json::Value>(body)
            .ok()
            .and_then(|body| Some(body.get("model")?.as_str()?.to_owned()));
    }
}

/// The largest body that is kept whole.
pub const BODY_KEPT_MAX: usize = 65_536;
