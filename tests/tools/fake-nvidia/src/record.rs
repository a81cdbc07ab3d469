//! The record of every request that reached the fake: what the end-to-end tests judge nimgate by. A request's entry is
//! written at the arrival of its headers and completed as the request goes on. The list's lock is held for one push
//! or one copy of pointers; each entry has its own lock for the few fields that still change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::http::request::Parts;
use serde::Serialize;

/// Larger bodies are recorded by length and hash only.
const KEPT_BODY: usize = 65_536;

/// A lock that a panicking thread left still holds whole values here, so it is taken all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Journal {
    start: Instant,
    verbose: bool,
    entries: Mutex<Vec<Arc<Entry>>>,
}

struct Entry {
    seq: usize,
    at_us: u64,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    /// Metered requests are the ones the verbose log shows.
    metered: bool,
    progress: Mutex<Progress>,
}

#[derive(Clone, Default)]
struct Progress {
    body_len: u64,
    body_sha256: Option<String>,
    body: Option<Bytes>,
    model: Option<String>,
    status: Option<u16>,
    aborted: bool,
}

#[derive(Serialize)]
struct View<'a> {
    seq: usize,
    at_us: u64,
    method: &'a str,
    path: &'a str,
    headers: &'a [(String, String)],
    body_len: u64,
    body_sha256: Option<String>,
    body_base64: Option<String>,
    model: Option<String>,
    status: Option<u16>,
    aborted: bool,
}

impl Journal {
    pub fn new(verbose: bool) -> Self {
        Self { start: Instant::now(), verbose, entries: Mutex::default() }
    }

    pub fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Writes the arrival of a request down. The clock is read under the lock, so that `seq` and `at_us` agree.
    pub fn open(self: &Arc<Self>, parts: &Parts, metered: bool) -> Ticket {
        let method = parts.method.to_string();
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
        let headers = headers(parts);
        let mut entries = lock(&self.entries);
        let entry = Arc::new(Entry {
            seq: entries.len(),
            at_us: self.now_us(),
            method,
            path,
            headers,
            metered,
            progress: Mutex::default(),
        });
        entries.push(Arc::clone(&entry));
        drop(entries);
        Ticket { journal: Arc::clone(self), entry, done: false }
    }

    pub fn forget(&self) {
        let forgotten = std::mem::take(&mut *lock(&self.entries));
        drop(forgotten);
    }

    /// `{"requests": [...]}`, those in progress included.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Answer<'a> {
            requests: Vec<View<'a>>,
        }
        let entries = lock(&self.entries).clone();
        let requests = entries.iter().map(|entry| entry.view()).collect();
        serde_json::to_vec(&Answer { requests }).unwrap_or_default()
    }

    fn log(&self, entry: &Entry, outcome: &str) {
        if !self.verbose || !entry.metered {
            return;
        }
        use std::io::Write as _;
        let priority =
            entry.headers.iter().find(|(name, _)| name == "x-priority").map_or("-", |(_, value)| value.as_str());
        let model = lock(&entry.progress).model.clone();
        let line = format!(
            "{:>9.3} s  {:<6}  {}  {}\n",
            entry.at_us as f64 / 1e6,
            priority.escape_debug().to_string(),
            outcome,
            model.as_deref().unwrap_or("-").escape_debug(),
        );
        // Whoever read our output may have gone; that is no reason to stop serving.
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }
}

impl Entry {
    fn view(&self) -> View<'_> {
        let progress = lock(&self.progress).clone();
        View {
            seq: self.seq,
            at_us: self.at_us,
            method: &self.method,
            path: &self.path,
            headers: &self.headers,
            body_len: progress.body_len,
            body_sha256: progress.body_sha256,
            body_base64: progress.body.map(|body| BASE64.encode(body)),
            model: progress.model,
            status: progress.status,
            aborted: progress.aborted,
        }
    }
}

/// Header lines in the order of arrival (lines of one name stand together, at the first one's place). HTTP/2 has no
/// `host` line; its `:authority` is written as one, so that a test need not care which protocol Envoy spoke.
fn headers(parts: &Parts) -> Vec<(String, String)> {
    let authority = parts
        .uri
        .authority()
        .filter(|_| !parts.headers.contains_key(hyper::header::HOST))
        .map(|authority| ("host".to_owned(), authority.to_string()));
    let lines = parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())));
    authority.into_iter().chain(lines).collect()
}

/// UTF-8 where it is, else each byte as the character of that number, so that nothing is lost.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// The hand on one request's entry. Whoever holds it owes the request an end: a ticket dropped before `finish` means
/// that hyper gave the request up, which it does when the peer has gone.
pub struct Ticket {
    journal: Arc<Journal>,
    entry: Arc<Entry>,
    done: bool,
}

impl Ticket {
    pub fn at_us(&self) -> u64 {
        self.entry.at_us
    }

    /// The whole body has arrived. `body` is `None` when it was too long to be kept at all.
    pub fn body(&self, length: u64, sha256: [u8; 32], body: Option<&Bytes>, model: Option<&str>) {
        let hex = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut progress = lock(&self.entry.progress);
        progress.body_len = length;
        progress.body_sha256 = Some(hex);
        progress.body = body.filter(|body| body.len() <= KEPT_BODY).cloned();
        progress.model = model.map(str::to_owned);
    }

    /// So much of the body has arrived and no more will.
    pub fn partial_body(&self, length: u64) {
        lock(&self.entry.progress).body_len = length;
    }

    /// The answer's headers are on their way.
    pub fn answered(&self, status: u16) {
        lock(&self.entry.progress).status = Some(status);
        self.journal.log(&self.entry, &status.to_string());
    }

    /// The fake itself closes the connection instead of answering, as the request asked.
    pub fn cut(&mut self) {
        self.done = true;
        if lock(&self.entry.progress).status.is_none() {
            self.journal.log(&self.entry, "cut");
        }
    }

    /// The answer is complete.
    pub fn finish(&mut self) {
        self.done = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let status = {
            let mut progress = lock(&self.entry.progress);
            progress.aborted = true;
            progress.status
        };
        if status.is_none() {
            self.journal.log(&self.entry, "gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts() -> Parts {
        let request =
            Request::post("/v1/x?y=1").header("b", "1").header("a", b"\xff".as_slice()).header("b", "2").body(());
        request.expect("a request").into_parts().0
    }

    fn records(journal: &Journal) -> serde_json::Value {
        serde_json::from_slice(&journal.to_json()).expect("JSON")
    }

    #[test]
    fn a_request_is_on_record_before_it_is_answered() {
        let journal = Arc::new(Journal::new(false));
        let mut ticket = journal.open(&parts(), true);
        let record = &records(&journal)["requests"][0];
        assert_eq!(record["path"], "/v1/x?y=1");
        assert_eq!(record["status"], serde_json::Value::Null);
        assert_eq!(record["headers"], serde_json::json!([["b", "1"], ["b", "2"], ["a", "\u{ff}"]]));
        ticket.answered(200);
        ticket.finish();
        drop(ticket);
        let record = &records(&journal)["requests"][0];
        assert_eq!(record["status"], 200);
        assert_eq!(record["aborted"], false);
    }

    #[test]
    fn a_ticket_dropped_early_is_an_abort_and_a_cut_is_none() {
        let journal = Arc::new(Journal::new(false));
        drop(journal.open(&parts(), true));
        journal.open(&parts(), true).cut();
        let record = records(&journal);
        assert_eq!(record["requests"][0]["aborted"], true);
        assert_eq!(record["requests"][1]["aborted"], false);
    }

    #[test]
    fn forgetting_starts_the_numbers_again_and_late_ends_touch_nothing_new() {
        let journal = Arc::new(Journal::new(false));
        let old = journal.open(&parts(), true);
        journal.forget();
        let _new = journal.open(&parts(), true);
        old.answered(500);
        drop(old);
        let record = records(&journal);
        assert_eq!(record["requests"].as_array().map(Vec::len), Some(1));
        assert_eq!(record["requests"][0]["seq"], 0);
        assert_eq!(record["requests"][0]["status"], serde_json::Value::Null);
        assert_eq!(record["requests"][0]["aborted"], false);
    }

    #[test]
    fn large_bodies_are_kept_by_hash_only() {
        let journal = Arc::new(Journal::new(false));
        for (length, kept) in [(KEPT_BODY, true), (KEPT_BODY + 1, false)] {
            journal.forget();
            let ticket = journal.open(&parts(), true);
            let body = Bytes::from(vec![b'x'; length]);
            ticket.body(length as u64, [0xab; 32], Some(&body), None);
            let record = &records(&journal)["requests"][0];
            assert_eq!(record["body_len"], length);
            assert_eq!(record["body_base64"].is_string(), kept);
            assert_eq!(record["body_sha256"], "ab".repeat(32));
        }
    }
}
