//! The console's part of the configuration: who may change limits, under which names it answers, what it probes.

use super::{ConfigError, KeySource, check_secret, patterns, raw, wrong};
use crate::glob::Glob;
use crate::knobs::check_number;
use nimgate_core::limit::rules::{Number, Unit};
use nimgate_core::units::Micros;

#[derive(Clone, Debug)]
pub struct ConsoleConfig {
    /// Where the admin token comes from; [`KeySource::Client`] is nowhere, and then nothing can be changed.
    pub admin_token: KeySource,
    /// Names under which it answers, besides IP addresses and `localhost`.
    pub hosts: Vec<Glob>,
    /// What the readiness probe asks.
    pub upstream: ProbeConfig,
}

/// The request by which the console finds out whether the upstream can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeConfig {
    pub cluster: String,
    pub host: String,
    pub path: String,
    /// How long the answer may take.
    pub timeout: Micros,
}

/// The shortest admin token: what is shorter can be guessed.
pub const TOKEN_BYTES_MIN: usize = 16;

pub(super) fn check(raw: raw::ConsoleFields) -> Result<ConsoleConfig, ConfigError> {
    let admin_token =
        check_secret(raw.admin_token.map(|token| token.0), raw.admin_token_env, "console", "admin_token")?;
    if let KeySource::Inline(token) = &admin_token
        && token.len() < TOKEN_BYTES_MIN
    {
        return Err(wrong(
            "console.admin_token",
            &format!("must have at least {TOKEN_BYTES_MIN} characters, since it is all that guards the limits"),
        ));
    }
    let upstream = raw.upstream.unwrap_or_default();
    let cluster = text(upstream.cluster, "cluster", "nvidia")?;
    let path = text(upstream.path, "path", "/v1/models")?;
    if !path.starts_with('/') {
        return Err(wrong("console.upstream.path", "must begin with a slash"));
    }
    let timeout = match upstream.timeout_s {
        Some(timeout) => Micros::new(check_number(timeout, PROBE_TIMEOUT, "console.upstream.timeout_s")?),
        None => Micros::from_secs(5),
    };
    Ok(ConsoleConfig {
        admin_token,
        hosts: patterns::of_hosts(raw.hosts, "console.hosts")?.unwrap_or_default(),
        upstream: ProbeConfig { host: text(upstream.host, "host", &cluster)?, cluster, path, timeout },
    })
}

/// A text that goes into a request's head: nothing in it may end a line.
fn text(raw: Option<String>, name: &str, default: &str) -> Result<String, ConfigError> {
    let text = raw.unwrap_or_else(|| default.to_owned());
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            &format!("console.upstream.{name}"),
            &format!("must be 1 to {TEXT_BYTES_MAX} visible ASCII characters without spaces"),
        ));
    }
    Ok(text)
}

/// The longest name or path of the probe.
const TEXT_BYTES_MAX: usize = 256;

/// Whoever asks for readiness waits no longer than this.
const PROBE_TIMEOUT: Number = Number { unit: Unit::Seconds, min: 1_000, max: 60_000_000, zero_is_off: false };
