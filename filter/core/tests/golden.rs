//! Records as they were written once: each must read as what it says, and be written again to the byte.
//!
//! The files `v1-*` were written by the code of commit fc05618, which no change here may contradict. The files `v2-*`
//! hold the same ledgers in the form of version 2; `NIMGATE_GOLDEN=write cargo test -p nimgate-core --test golden` writes
//! them. Whoever changes that form so that an old file no longer reads, or is written otherwise, needs a new version, or
//! a new tag and new files beside the old ones. So `v2-books` stands beside them, for the tag of the books of models,
//! and `v2-strays`, for that of strays.

#![cfg(not(target_family = "wasm"))]

use nimgate_core::control::answer::{Answer, Signal};
use nimgate_core::control::rate::Phase;
use nimgate_core::limit::ledger::{Held, Ledger};
use nimgate_core::limit::record::tlv::{self, Decoded, Kept, Location, MoveState, Origin, Refusal};
use nimgate_core::limit::record::v1;
use nimgate_core::model::{ModelKey, ModelName};
use nimgate_core::order::queue::Queue;
use nimgate_core::priority::{Lane, Priority};
use nimgate_core::request::Request;
use nimgate_core::units::{Instant, Micros, MilliRpm, RequestId, WorkerId};
use std::path::PathBuf;

const NAMES: [&str; 6] = ["new", "busy", "overridden", "slowed", "recovering", "full"];

/// The magic and the length of the rest.
const HEAD_BYTES: usize = 7;

fn path(version: u8, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}-{name}.bin"))
}

fn golden(version: u8, name: &str) -> Vec<u8> {
    let path = path(version, name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn record(name: &str) -> v1::Record {
    v1::Record::decode(&golden(1, name)).unwrap_or_else(|| panic!("v1-{name} can't be read"))
}

/// The same ledger in the form of version 2.
fn ledger(name: &str) -> Ledger {
    let location = Location { state: MoveState::Here, ..Location::default() };
    let bytes = tlv::encode(location, Some(&Ledger::from(record(name))), &Kept::default());
    Ledger::decode(&bytes).unwrap_or_else(|| panic!("{name} can't be read in version 2"))
}

fn location() -> Location {
    let lease = Instant::from_micros(1_010_000_000);
    Location { state: MoveState::Here, generation: 3, lease, origin: Origin::Known }
}

#[test]
fn version_1_is_written_as_it_was_read() {
    for name in NAMES {
        let bytes = golden(1, name);
        let record = record(name);
        assert!(record.encode() == bytes, "{name} is written otherwise");
        // The ledger keeps its lines in order, and knows nothing of connections.
        let mut expected = v1::Record { newest: u64::MAX, contender: None, ..record.clone() };
        expected.lines.sort_by_key(|line| line.worker);
        assert!(v1::Record::from(&Ledger::from(record)) == expected, "{name} lost something in the ledger");
    }
}

#[test]
fn version_1_reads_as_what_was_written() {
    let new = record("new");
    assert_eq!((new.rules.capacity, new.rules.queue_max, new.epoch), (4, 100_000, 1));
    assert_eq!(new.rules.aging, Some(Micros::from_secs(7)));
    assert_eq!(new.rules.retreat.base, MilliRpm::from_rpm(40));
    assert_eq!(new.bucket.1, Instant::from_micros(1_000_000_000));
    let busy = record("busy");
    assert_eq!(busy.lines.iter().map(|line| line.worker.0).collect::<Vec<_>>(), [2, 3, 1]);
    assert_eq!(busy.lines.iter().flat_map(|line| line.lanes).map(|(count, _)| count).sum::<u32>(), 36);
    assert_eq!((busy.owed, busy.newest, busy.contender.map(|c| c.connection)), (2, 18, Some(18)));
    assert_eq!(busy.served.map(|served| served.count), [1; 4]);
    assert_eq!(busy.counts.iter().sum::<u32>(), 6);
    assert_eq!(busy.due.map(|due| due.worker), Some(WorkerId(2)));
    let overridden = record("overridden");
    assert_eq!((overridden.epoch, overridden.rules.shadow, overridden.configured.shadow), (2, true, false));
    assert_eq!((overridden.rules.retreat.base, overridden.rules.aging), (MilliRpm::new(12_345), None));
    let slowed = record("slowed");
    assert_eq!((slowed.account.phase(), slowed.models.slowed().len()), (Phase::Retreat, 8));
    assert!(slowed.models.slowed().iter().all(|slowed| slowed.name.as_str().starts_with("vendor-2")));
    assert_eq!(record("recovering").account.phase(), Phase::Recover);
    let full = record("full");
    assert_eq!((full.lines.len(), full.lines.iter().filter(|line| line.passed_over).count()), (256, 1));
}

/// No byte is read past: another one reads as something else, or not at all.
#[test]
fn every_byte_of_version_1_says_something() {
    let bytes = golden(1, "busy");
    let record = record("busy");
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 1;
        assert!(v1::Record::decode(&other).as_ref() != Some(&record), "byte {at} is ignored");
    }
}

#[test]
fn the_mark_is_what_version_1_wipes() {
    let mut marked = record("new");
    marked.mark = 77;
    let read = v1::Record::decode(&marked.encode()).unwrap();
    assert_eq!(read.mark, 77);
    // What a module of version 1 makes of it: all it knows of the record, written again.
    let rewritten = v1::Record { mark: 0, ..read }.encode();
    assert!(rewritten == golden(1, "new"));
    let mut both = record("busy");
    both.mark = 77;
    assert_eq!(v1::Record::decode(&both.encode()).unwrap().mark, 0, "there is no room for it");
    both.contender = None;
    assert_eq!(v1::Record::decode(&both.encode()).unwrap().mark, 77);
}

#[test]
fn version_2_is_written_and_read_as_it_was() {
    for name in NAMES {
        let ledger = ledger(name);
        let bytes = tlv::encode(location(), Some(&ledger), &Kept::default());
        if std::env::var_os("NIMGATE_GOLDEN").is_some() {
            std::fs::write(path(2, name), &bytes).unwrap();
        }
        println!("{name}: version 1 {} bytes, version 2 {}", golden(1, name).len(), bytes.len());
        assert!(bytes == golden(2, name), "{name} is written otherwise");
        let read = tlv::decode(&golden(2, name)).unwrap();
        assert!(
            read == Decoded { location: location(), ledger: Some(ledger), kept: Kept::default() },
            "{name} reads otherwise"
        );
    }
}

/// The ledger of `new` after answers for three models.
fn ledger_with_books() -> Ledger {
    let mut ledger = ledger("new");
    for (number, (name, signal)) in
        [("a", Signal::Served), ("b", Signal::Served), ("c", Signal::Throttled), ("a", Signal::Served)]
            .iter()
            .enumerate()
    {
        let now = Instant::from_micros(1_000_000_000 + 1_000_000 * number as u64);
        let model = (ModelKey::of(name), ModelName::new(name));
        ledger.advance(now, &mut Vec::new());
        ledger.answer(Answer { granted_at: now, signal: *signal, retry_after: None, model }, now, &mut Vec::new());
    }
    ledger
}

/// A ledger whose account was refused now and then, so that it knows something of strays.
fn ledger_with_strays() -> Ledger {
    let mut ledger = ledger_with_books();
    for number in 10..200u64 {
        let now = Instant::from_micros(1_000_000_000 + 1_500_000 * number);
        let signal = if number % 9 == 0 { Signal::Throttled } else { Signal::Served };
        let model = (ModelKey::NONE, ModelName::NONE);
        ledger.advance(now, &mut Vec::new());
        ledger.answer(Answer { granted_at: now, signal, retry_after: None, model }, now, &mut Vec::new());
    }
    ledger
}

#[test]
fn strays_are_written_and_read_as_they_were() {
    let ledger = ledger_with_strays();
    let bytes = tlv::encode(location(), Some(&ledger), &Kept::default());
    if std::env::var_os("NIMGATE_GOLDEN").is_some() {
        std::fs::write(path(2, "strays"), &bytes).unwrap();
    }
    assert!(sections(&bytes).iter().any(|section| section[0] == 17), "there are no strays in it");
    assert!(bytes == golden(2, "strays"), "it is written otherwise");
    let read = tlv::decode(&golden(2, "strays")).unwrap();
    assert!(
        read == Decoded { location: location(), ledger: Some(ledger), kept: Kept::default() },
        "it reads otherwise"
    );
}

#[test]
fn books_of_models_are_written_and_read_as_they_were() {
    // The file is older than the tag of strays.
    let bytes = golden(2, "books");
    let has = |tag| sections(&bytes).iter().any(|section| section[0] == tag);
    assert!(has(16) && !has(17), "it holds books and no strays");
    let Decoded { location, ledger, kept } = tlv::decode(&bytes).unwrap();
    assert!(kept == Kept::default(), "it is understood");
    assert!(tlv::encode(location, ledger.as_ref(), &kept) == bytes, "it is written otherwise");
    // The same answers make the same books today.
    let today = sections(&tlv::encode(location, Some(&ledger_with_books()), &kept));
    let books = sections(&bytes).into_iter().find(|section| section[0] == 16);
    assert!(books.is_some_and(|books| today.contains(&books)), "the books are others");
}

#[test]
fn damaged_records_are_refused_or_read_but_never_panic() {
    for name in ["busy", "slowed", "books", "strays"] {
        let bytes = golden(2, name);
        for at in 0..bytes.len() {
            assert!(tlv::decode(&bytes[..at]) == Err(Refusal::Damaged), "cut at {at}");
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                if let Ok(read) = tlv::decode(&other) {
                    let _ = tlv::encode(read.location, read.ledger.as_ref(), &read.kept);
                }
            }
        }
    }
}

/// Takes the record apart into its sections.
fn sections(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut sections = Vec::new();
    let mut at = HEAD_BYTES;
    while at < bytes.len() {
        let end = at + 3 + usize::from(bytes[at + 1] & 0x7f) + (usize::from(bytes[at + 2]) << 7);
        sections.push(bytes[at..end].to_vec());
        at = end;
    }
    sections
}

fn put_together(sections: &[Vec<u8>]) -> Vec<u8> {
    let body = sections.concat();
    [&b"NG\x02"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

/// Adds bytes at a section's end.
fn extend(section: &mut Vec<u8>, with: &[u8]) {
    section.extend_from_slice(with);
    let length = section.len() - 3;
    section[1] = length as u8 | 0x80;
    section[2] = (length >> 7) as u8;
}

#[test]
fn what_is_not_known_is_kept_to_the_byte() {
    let mut parts = sections(&golden(2, "slowed"));
    let tag = |parts: &[Vec<u8>], tag: u8| parts.iter().position(|part| part[0] == tag).unwrap();
    let (rules, model) = (tag(&parts, 1), tag(&parts, 9));
    extend(&mut parts[rules], &[0x90, 0x01, 0x85, 0x07, 0x91, 0x01, 0x01]);
    extend(&mut parts[model], &[7, 2, b'h', b'i']);
    let busy = sections(&golden(2, "busy"));
    let mut line = busy[tag(&busy, 12)].clone();
    extend(&mut line, &[0x33, 3, 1, 2, 3]);
    parts.push(line);
    parts.push(vec![0x7f, 5, b'l', b'a', b't', b'e', b'r']);
    let bytes = put_together(&parts);
    let read = tlv::decode(&bytes).unwrap();
    assert!(read.kept != Kept::default());
    let mut ledger = read.ledger.unwrap();
    let written = tlv::encode(read.location, Some(&ledger), &read.kept);
    assert!(written == bytes, "something was lost");
    // It stays where it belongs when the rest changes.
    ledger.advance(Instant::from_micros(1_050_000_000), &mut Vec::new());
    let again = tlv::decode(&tlv::encode(read.location, Some(&ledger), &read.kept)).unwrap();
    assert_eq!(again.kept, read.kept);
}

#[test]
fn what_must_be_understood_and_is_not_stops_everything() {
    let mut parts = sections(&golden(2, "busy"));
    parts.push(vec![tlv::CRITICAL | 5, 0]);
    assert!(tlv::decode(&put_together(&parts)) == Err(Refusal::NotUnderstood));
}

#[test]
fn nothing_stands_twice_and_nothing_trails() {
    let parts = sections(&golden(2, "busy"));
    for number in 0..parts.len() {
        if parts[number][0] == 12 {
            continue;
        }
        let mut twice = parts.clone();
        twice.push(parts[number].clone());
        assert!(tlv::decode(&put_together(&twice)) == Err(Refusal::Damaged), "section {number} twice");
    }
    for number in [2, 3, 4] {
        let mut longer = parts.clone();
        extend(&mut longer[number], &[0]);
        assert!(tlv::decode(&put_together(&longer)) == Err(Refusal::Damaged), "section {number} is longer");
    }
}

#[test]
fn a_large_record_is_small() {
    // 64 workers with someone in four lanes and in each of nine classes of models, and eight slowed models, each with a
    // whole window's counts.
    let mut record = record("recovering");
    record.lines = self::record("full").lines.into_iter().take(64).collect();
    for line in &mut record.lines {
        line.lanes[4..].fill((0, Instant::ZERO));
        line.seen_at = record.bucket.1;
    }
    let before = record.encode().len();
    let models: Vec<_> = record.models.slowed().iter().map(|slowed| slowed.key).collect();
    assert_eq!(models.len(), 8);
    let mut ledger = Ledger::decode(&Ledger::from(record).encode()).unwrap();
    let now = Instant::from_micros(1_100_000_000);
    for number in 1..=64 {
        let mut queue = Queue::default();
        for (id, model) in models.iter().copied().chain([ModelKey::NONE]).enumerate() {
            for level in Priority::ALL {
                let id = RequestId((id * 4) as u32 + level as u32);
                queue.push(Request::new(id, Lane::Queued(level), model), now);
            }
        }
        queue.set_governed(models.iter().copied());
        ledger.turn(WorkerId(number), &queue, Held::default(), None, now, &mut Vec::new());
    }
    let bytes = tlv::encode(location(), Some(&ledger), &Kept::default());
    println!("64 workers in 9 classes, 8 slowed models: version 1 {before} bytes, version 2 {}", bytes.len());
    assert!(bytes.len() <= 8 * 1024, "{} bytes", bytes.len());
}
