//! The control interface under `/_fake/`: what was received, and how to behave. Never recorded, never limited.

use crate::limiter::{Kind, Limiter, Limits};
use crate::server::{Pieces, Server, whole};
use hyper::{Method, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How to behave towards all requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub limiter: Kind,
    pub rpm: f64,
    pub burst: f64,
    pub window_s: f64,
    pub latency_ms: u64,
    /// The `Retry-After` of 429s.
    pub retry_after: Option<String>,
    /// Answer this status to so many of the next metered requests.
    pub error_burst: ErrorBurst,
    /// Answer 429 to so many of the next metered requests.
    pub throttle_next: u32,
}

/// A run of errors.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBurst {
    pub count: u32,
    pub status: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limiter: Kind::None,
            rpm: 40.0,
            burst: 4.0,
            window_s: 60.0,
            latency_ms: 0,
            retry_after: None,
            error_burst: ErrorBurst::default(),
            throttle_next: 0,
        }
    }
}

impl Config {
    /// The limit's numbers.
    pub fn limits(&self) -> Limits {
        Limits {
            kind: self.limiter,
            rpm: self.rpm,
            burst: self.burst,
            window_s: self.window_s,
        }
    }
}

/// Answers a control request.
pub fn answer(server: &Server, method: &Method, what: &str, body: &[u8]) -> Response<Pieces> {
    let present = server.lock().config.clone();
    let (status, value) = match (method, what) {
        (&Method::GET, "health") => (200, json!("ok")),
        (&Method::GET, "requests") => (200, json!({"requests": server.record.all()})),
        (&Method::DELETE, "requests") => {
            server.record.reset();
            (200, json!({}))
        }
        (&Method::GET, "config") => (200, json!(present)),
        (&Method::PUT, "config") => match changed(&present, body) {
            Ok(config) => {
                let mut state = server.lock();
                // A limit that was changed begins anew; one that stays keeps its count.
                if config.limits() != state.config.limits() {
                    state.limiter = Limiter::default();
                }
                state.config = config;
                (200, json!(state.config))
            }
            Err(problem) => (400, json!({"problem": problem})),
        },
        _ => (404, json!({"problem": "no such control"})),
    };
    let mut response = Response::new(whole(value.to_string()));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    response
}

/// The configuration with the members that `body` names replaced.
fn changed(config: &Config, body: &[u8]) -> Result<Config, String> {
    let mut whole = json!(config);
    let change: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let (Some(whole_map), Some(change)) = (whole.as_object_mut(), change.as_object()) else {
        return Err("an object is expected".to_owned());
    };
    whole_map.extend(change.clone());
    serde_json::from_value(whole).map_err(|error| error.to_string())
}
