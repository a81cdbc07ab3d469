//! The filter's own log: one JSON object per line, through Envoy's log.
//!
//! Lines are for events worth a line: start, configuration, changes of the retreat, trouble. None is written for each
//! request, and nothing that a client or an upstream sent is ever in one,
//! but the beginning of the name of a model that is slowed. `docs/logs.md` lists them all.

use super::host::{self, Refused};
use super::shared_data::SharedData;
use hashbrown::HashMap;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nimgate_config::LogLevel;
use nimgate_core::limit::ledger::VERSION;
use nimgate_core::store::Store;
use nimgate_core::units::{Instant, Micros};
use std::cell::RefCell;

struct EnvoyLog;

static ENVOY_LOG: EnvoyLog = EnvoyLog;

impl Log for EnvoyLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            Level::Trace => 0,
            Level::Debug => 1,
            Level::Info => 2,
            Level::Warn => 3,
            Level::Error => 4,
        };
        host::log(level, &record.args().to_string());
    }

    fn flush(&self) {}
}

/// Puts the log in place, once per VM, before any configuration is known.
pub fn install() {
    // It can only be refused because it is in place already.
    let _ = log::set_logger(&ENVOY_LOG);
    log::set_max_level(LevelFilter::Info);
}

/// Takes up the configured level.
pub fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Trace => LevelFilter::Trace,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Error => LevelFilter::Error,
    });
}

/// Writes an event with its fields as one JSON object.
macro_rules! event {
    ($level:ident, $name:literal $(, $key:literal: $value:expr)* $(,)?) => {
        log::$level!("{}", serde_json::json!({ "nimgate": $name $(, $key: $value)* }))
    };
}
pub(crate) use event;

/// The same for what each worker's VM says when it starts: for all of them together once.
macro_rules! event_once {
    ($level:ident, $name:literal $(, $key:literal: $value:expr)* $(,)?) => {{
        let line = serde_json::json!({ "nimgate": $name $(, $key: $value)* }).to_string();
        if crate::logging::is_news(&line) {
            log::$level!("{line}");
        }
    }};
}
pub(crate) use event_once;

/// Whether no VM of this process has said so a moment ago. Lines come from configurations, so there are few.
pub fn is_news(line: &str) -> bool {
    let key = format!("nimgate/{VERSION}/said/{line}");
    let asked = SharedData.measure_and_replace(&key, |present, now| {
        let said = present.and_then(|bytes| Some(Instant::from_micros(u64::from_le_bytes(*bytes.first_chunk()?))));
        let news = said.is_none_or(|said| now.since(said) >= SAID_LATELY);
        (news.then(|| now.as_micros().to_le_bytes().to_vec()), news)
    });
    asked.unwrap_or(true)
}

thread_local! {
    static REFUSED_AT: RefCell<HashMap<&'static str, Instant>> = RefCell::new(HashMap::new());
}

/// Envoy refused a call that it never should. Said for each call once in a while, since every request may meet it.
pub fn host_refused(call: &'static str, refused: Option<Refused>) {
    let now = host::now();
    let is_news = REFUSED_AT.with(|at| {
        let Ok(mut at) = at.try_borrow_mut() else { return false };
        let is_news = at.get(call).is_none_or(|said| now.since(*said) >= REFUSED_LATELY);
        if is_news {
            at.insert(call, now);
        }
        is_news
    });
    if !is_news {
        return;
    }
    event!(
        error,
        "host_refused",
        "call": call,
        "status": refused.map(|refused| refused.0),
        "message": "Envoy refused a call of nimgate's that it never should, so a request may not have been treated as \
                    configured. If it comes again, report it with Envoy's version; restarting Envoy starts afresh",
    );
}

/// For how long after a VM has said something the others don't say it: about as long as all need for their start.
const SAID_LATELY: Micros = Micros::from_secs(3);

/// For how long the log is silent about a call that was refused again.
const REFUSED_LATELY: Micros = Micros::from_secs(10);
