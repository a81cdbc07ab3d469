//! The configuration, valid by construction: what is here has been checked, and what could not be is not here.
//!
//! [`Config::parse`] reads the plugin configuration (JSON; empty means all defaults) through the strict mirror in
//! [`raw`], and refuses what is unknown, of the wrong type or impossible with one sentence that names the path.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

pub mod bodies;
pub mod change;
pub mod console;
pub mod glob;
mod knobs;
mod number;
mod patterns;
mod raw;
mod secret;

use bodies::Bodies;
use console::ConsoleConfig;
use core::fmt;
use glob::Glob;
use nimgate_core::limit::rules::{self, Rules};
use nimgate_core::priority::Priority;
use secret::check_secret;
pub use secret::{KeySource, without_quotes};

/// A refused configuration: which field, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The path of the field, such as `limits[0].rate_rpm`; empty for the document as a whole.
    pub path: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.problem) } else { write!(f, "{}: {}", self.path, self.problem) }
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// Names of unknown fields and wrong values are the sender's words: no control characters, and no more than a line.
    fn new(path: &str, problem: &str) -> Self {
        let tidy = |text: &str| {
            let shown = text.chars().take(SHOWN_MAX);
            shown.map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
        };
        Self { path: tidy(path), problem: tidy(problem) }
    }
}

/// As much of a path or a problem as is shown.
const SHOWN_MAX: usize = 400;

/// What happens to a body that claims or looks to be JSON but can't be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnclassifiable {
    /// Meter it under the first limit.
    #[default]
    Meter,
    /// Answer 400.
    Reject,
    /// Let it pass, as the Python sidecar did.
    Pass,
}

/// Where a request is held whose body must be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldAt {
    /// At its headers, so that they can still be changed when the model is known. Envoy shows the body then only with
    /// `allow_on_headers_stop_iteration`.
    #[default]
    Headers,
    /// At its body, on every Envoy: the headers go on as they came, and a buffer filter after this one must keep them from
    /// the upstream until the body follows. What can only be set when the model is known can't be set at all.
    Body,
}

/// How much the filter says in Envoy's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Each decision on each request.
    #[serde(alias = "TRACE")]
    Trace,
    /// Details for debugging.
    #[serde(alias = "DEBUG")]
    Debug,
    /// Events worth a line.
    #[default]
    #[serde(alias = "INFO")]
    Info,
    /// Trouble.
    #[serde(alias = "WARN", alias = "warning", alias = "WARNING")]
    Warn,
    /// Trouble that needs someone.
    #[serde(alias = "ERROR", alias = "critical", alias = "CRITICAL")]
    Error,
}

/// One limit: which requests it meters, and how.
#[derive(Clone, Debug)]
pub struct LimitConfig {
    /// Its name in metrics, headers and messages.
    pub name: String,
    /// Patterns against the body's `model`; letter case is ignored.
    pub models: Vec<Glob>,
    pub clusters: Vec<String>,
    /// Patterns against the host of the request, without its port unless the pattern has one.
    pub hosts: Vec<Glob>,
    /// Patterns against the path that narrow all of the above; empty means every path.
    pub paths: Vec<Glob>,
    /// HTTP methods, in upper case, that narrow all of the above; `None` means every method, but for matches by host or
    /// cluster all except `OPTIONS` and `HEAD`: those ask an upstream for nothing that it counts.
    pub methods: Option<Vec<String>>,
    /// Where the upstream's key comes from.
    pub key: KeySource,
    /// The configured requests per minute.
    pub rate_rpm: u32,
    /// How it is scheduled.
    pub rules: Rules,
}

/// Who may ask for which priority.
#[derive(Clone, Debug)]
pub struct PriorityConfig {
    /// The request header, in lower case.
    pub header: String,
    /// What a request gets that does not ask, or asks for nonsense.
    pub default: Priority,
    /// The most urgent level that a client gets.
    pub ceiling: Priority,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// In the order in which they are checked; never empty, but where the console is.
    pub limits: Vec<LimitConfig>,
    /// The console, which has its listener to itself.
    pub console: Option<ConsoleConfig>,
    /// Who may ask for which priority.
    pub priority: PriorityConfig,
    /// What happens to unreadable bodies.
    pub on_unclassifiable: OnUnclassifiable,
    /// Where requests are held whose body must be read.
    pub hold_at: HoldAt,
    /// How many bytes of bodies may be held.
    pub bodies: Bodies,
    pub log_level: LogLevel,
}

impl Config {
    /// Reads a plugin configuration.
    ///
    /// # Errors
    /// [`ConfigError`] with the first thing found wrong.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let raw = raw::parse(json)?;
        let console = raw.console.map(console::check).transpose()?;
        let limits = match (raw.limits, &console) {
            (Some(_), Some(_)) => {
                return Err(wrong(
                    "console",
                    "can't be given together with limits: the console answers every request of its listener, so it \
                     needs one of its own",
                ));
            }
            (Some(limits), None) => limits,
            (None, None) => vec![raw::LimitDocument::named("nvidia")],
            (None, Some(_)) => Vec::new(),
        };
        if limits.is_empty() && console.is_none() {
            return Err(wrong("limits", "must hold at least one limit; leave it out for the default one"));
        }
        let mut checked: Vec<LimitConfig> = Vec::with_capacity(limits.len());
        for (at, limit) in limits.into_iter().enumerate() {
            let path = format!("limits[{at}]");
            let limit = check_limit(limit, &path)?;
            if checked.iter().any(|other| other.name == limit.name) {
                return Err(wrong(
                    &format!("{path}.name"),
                    &format!("\"{}\" is the name of an earlier limit; each needs its own", limit.name),
                ));
            }
            checked.push(limit);
        }
        let hold_at = check_hold_at(raw.hold_at, &checked)?;
        Ok(Self {
            limits: checked,
            console,
            priority: check_priority(raw.priority.unwrap_or_default())?,
            on_unclassifiable: raw.on_unclassifiable.unwrap_or_default(),
            hold_at,
            bodies: bodies::check(&raw.bodies.unwrap_or_default())?,
            log_level: raw.log_level.unwrap_or_default(),
        })
    }
}

/// The paths of all fields of the configuration, such as `limits[].rate_rpm`, for those who check documents and manifests.
pub fn fields() -> Vec<String> {
    let knobs: Vec<&str> = rules::knobs().map(|knob| knob.path).collect();
    let objects: [(&str, &[&str]); 7] = [
        ("", knobs::field_names::<raw::ConfigFields>()),
        ("limits[].", knobs::field_names::<raw::LimitFields>()),
        ("limits[].", &knobs),
        ("priority.", knobs::field_names::<raw::PriorityFields>()),
        ("bodies.", knobs::field_names::<raw::BodiesFields>()),
        ("console.", knobs::field_names::<raw::ConsoleFields>()),
        ("console.upstream.", knobs::field_names::<raw::UpstreamFields>()),
    ];
    objects.iter().flat_map(|(object, names)| names.iter().map(move |name| format!("{object}{name}"))).collect()
}

fn check_limit(limit: raw::LimitDocument, path: &str) -> Result<LimitConfig, ConfigError> {
    let field = |name: &str| format!("{path}.{name}");
    let raw = limit.own;
    let name = raw.name.ok_or_else(|| wrong(&field("name"), "is missing; each limit needs a name"))?;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name_byte) {
        return Err(wrong(
            &field("name"),
            &format!(
                "must be 1 to {NAME_BYTES_MAX} letters, digits, `-` or `_`, because it becomes a header value and a metric label"
            ),
        ));
    }
    let models = patterns::of_models(raw.models, &field("models"))?.unwrap_or_else(default_models);
    let hosts = patterns::of_hosts(raw.hosts, &field("hosts"))?.unwrap_or_default();
    let paths = patterns::of_paths(raw.paths, &field("paths"))?.unwrap_or_default();
    let methods = patterns::methods(raw.methods, &field("methods"))?;
    let clusters = patterns::clusters(raw.clusters, &field("clusters"))?.unwrap_or_default();
    if models.is_empty() && hosts.is_empty() && clusters.is_empty() {
        return Err(wrong(path, "can never match: `models`, `hosts` and `clusters` are all empty"));
    }
    let rules = limit.knobs.rules(&field(""))?;
    let key = check_key(raw.upstream_api_key.map(|key| key.0), raw.upstream_api_key_env, path)?;
    Ok(LimitConfig { key, name, models, clusters, hosts, paths, methods, rate_rpm: rules.retreat.base.as_rpm(), rules })
}

/// A key can't be put into headers that have gone on.
fn check_hold_at(given: Option<HoldAt>, limits: &[LimitConfig]) -> Result<HoldAt, ConfigError> {
    if given != Some(HoldAt::Body) {
        return Ok(HoldAt::Headers);
    }
    let mut reads_bodies = false;
    for (at, limit) in limits.iter().enumerate() {
        reads_bodies = reads_bodies || !limit.models.is_empty();
        if reads_bodies && limit.key != KeySource::Client {
            return Err(wrong(
                &format!("limits[{at}]"),
                "can't have an upstream_api_key while hold_at is body, because the headers have gone on when the model is \
                 known; let the route or the client set authorization, or match by hosts or clusters with models: [], \
                 before all limits with models",
            ));
        }
    }
    Ok(HoldAt::Body)
}

fn check_key(inline: Option<String>, env: Option<String>, path: &str) -> Result<KeySource, ConfigError> {
    check_secret(inline, env, path, "upstream_api_key")
}

fn check_priority(raw: raw::PriorityFields) -> Result<PriorityConfig, ConfigError> {
    let header = raw.header.unwrap_or_else(|| "x-priority".to_owned()).to_ascii_lowercase();
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if header.is_empty() || header.len() > NAME_BYTES_MAX || !header.bytes().all(token) {
        return Err(wrong("priority.header", "must be the name of an HTTP header"));
    }
    if header.starts_with("x-nimgate-") {
        return Err(wrong(
            "priority.header",
            "must not begin with x-nimgate-, because such headers of clients are removed",
        ));
    }
    if NEVER_READ.contains(&header.as_str()) {
        return Err(wrong(
            "priority.header",
            &format!(
                "can't be {header}: Envoy or the upstream reads that for a purpose of its own; x-priority is the usual one"
            ),
        ));
    }
    let level = |value: Option<String>, field: &str, default| match value {
        None => Ok(default),
        Some(text) => Priority::parse(text.as_bytes())
            .ok_or_else(|| wrong(field, &format!("must be urgent, high, normal or low, got \"{}\"", shown(&text)))),
    };
    let ceiling = level(raw.ceiling, "priority.ceiling", Priority::Urgent)?;
    let asked = raw.default.is_some();
    // Who lowers the ceiling lowers what is not said along with it.
    let default = level(raw.default, "priority.default", Priority::Normal.capped(ceiling))?;
    if asked && default.capped(ceiling) != default {
        return Err(wrong(
            "priority.default",
            &format!("must not be more urgent than priority.ceiling ({}), got {}", ceiling.name(), default.name()),
        ));
    }
    Ok(PriorityConfig { header, default, ceiling })
}

fn default_models() -> Vec<Glob> {
    vec![Glob::new("nvidia/*"), Glob::new("nvidia_nim/*")]
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn wrong(path: &str, problem: &str) -> ConfigError {
    ConfigError::new(path, problem)
}

/// At most a line's worth of a value that a sentence quotes.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// Headers that say something else, or that Envoy keeps to itself.
const NEVER_READ: [&str; 13] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
];

/// The longest name; it is a metric label.
const NAME_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests;
