//! How many bytes of requests' bodies may be held.

use super::number::WrittenNumber;
use super::{ConfigError, raw, wrong};

/// The most bytes of requests' bodies that are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bodies {
    /// By one worker, over all its connections, for those that wait; and as much again for those whose bodies are read.
    pub worker_max: u64,
    /// By the requests of one connection that wait, where there are several.
    pub connection_max: u64,
}

impl Bodies {
    /// Four prompts of the largest size that the local configuration lets Envoy keep. And as much for a connection as leaves
    /// a third of Envoy's own HTTP/2 window of 24 MiB to the others on it.
    pub const DEFAULT: Self = Self { worker_max: 64 << 20, connection_max: 16 << 20 };
}

pub(super) fn check(raw: &raw::BodiesFields) -> Result<Bodies, ConfigError> {
    let bytes = |given: Option<WrittenNumber>, default: u64, field: &str| match given {
        None => Ok(default),
        Some(number) => number
            .whole()
            .and_then(|whole| u64::try_from(whole).ok())
            .filter(|bytes| (LEAST..=MOST).contains(bytes))
            .ok_or_else(|| {
                wrong(
                    &format!("bodies.{field}"),
                    &format!("must be {LEAST} to {MOST} bytes, in whole bytes, got {number}"),
                )
            }),
    };
    Ok(Bodies {
        worker_max: bytes(raw.worker_max_bytes, Bodies::DEFAULT.worker_max, "worker_max_bytes")?,
        connection_max: bytes(raw.connection_max_bytes, Bodies::DEFAULT.connection_max, "connection_max_bytes")?,
    })
}

/// Below this, ordinary prompts of one or two clients would be refused.
const LEAST: u64 = 64 << 10;

/// What a 32-bit process could address.
const MOST: u64 = 4 << 30;
