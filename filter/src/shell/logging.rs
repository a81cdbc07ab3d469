//! The filter's own log: one JSON object per line, through Envoy's log.
//!
//! Lines are for events worth a line: start, configuration, changes of the retreat, trouble. None is written for each
//! request at `info`, and nothing that a client or an upstream sent is ever in one.

use super::host;
use crate::config::LogLevel;
use log::{Level, LevelFilter, Log, Metadata, Record};

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
