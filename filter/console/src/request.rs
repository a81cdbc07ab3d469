//! From a request's head to what is asked of the console, or a refusal.
//!
//! The console is made for a loopback address, which does not mean that only its operator can reach it: every web page
//! that the operator's browser shows can send requests there. So it answers under no name that a page could own (its
//! own host name, rebound to the loopback address), and a change needs a token, which a page does not have, in a header
//! that a page may not send, with a content type that a page may not use.

use super::reply::Reply;
use nimgate_config::console::ConsoleConfig;
use subtle::ConstantTimeEq;

#[derive(Clone, Copy, Debug, Default)]
pub struct ConsoleRequest<'a> {
    pub method: &'a [u8],
    /// The path with its query.
    pub path: &'a [u8],
    /// The host that the client believes it talks to.
    pub authority: &'a [u8],
    /// Where the page is from that sends this, if one does.
    pub origin: Option<&'a [u8]>,
    pub content_type: Option<&'a [u8]>,
    /// The length of the body as announced.
    pub content_length: Option<&'a [u8]>,
    pub content_encoding: Option<&'a [u8]>,
    pub authorization: Option<&'a [u8]>,
    /// The compressions that the client understands.
    pub accept_encoding: Option<&'a [u8]>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Nothing that needs a look at anything: this is the answer.
    Answer(Reply),
    /// `/health/ready`.
    Ready,
    /// `/status`.
    Status,
    /// `/events`.
    Events,
    /// `POST /config`, by someone who may; the body is still to come.
    Change,
    /// `POST /config`, by someone who may not: worth a line in the log.
    Intrusion(Reply),
}

/// The console as far as requests are concerned.
pub struct Console {
    config: ConsoleConfig,
    token: Option<String>,
}

impl Console {
    /// The console of a configuration, with the admin token if there is one.
    pub fn new(config: ConsoleConfig, token: Option<String>) -> Self {
        Self { config, token }
    }

    pub fn config(&self) -> &ConsoleConfig {
        &self.config
    }

    /// Whether limits can be changed at all.
    pub fn can_change(&self) -> bool {
        self.token.is_some()
    }

    /// What a request asks, or why it gets no answer.
    pub fn at_head(&self, head: &ConsoleRequest<'_>) -> Asked {
        if !self.is_ours(head.authority) {
            return Asked::Answer(Reply::refusal(
                421,
                "MisdirectedRequestError",
                "unknown_host",
                None,
                "nimgate's console answers under IP addresses, localhost and the names in console.hosts, so that no \
                 other web page can speak to it in a browser. Add the name to console.hosts.",
            ));
        }
        let path = head.path.split(|byte| *byte == b'?').next().unwrap_or_default();
        let answer: fn(&ConsoleRequest<'_>) -> Asked = match path {
            b"/" => |head| Asked::Answer(super::page::html(head.accept_encoding)),
            b"/app.js" => |head| Asked::Answer(super::page::script(head.accept_encoding)),
            b"/app.css" => |head| Asked::Answer(super::page::style(head.accept_encoding)),
            b"/icon.svg" => |_| Asked::Answer(super::page::icon()),
            b"/health" => |_| Asked::Answer(super::health::alive()),
            b"/health/ready" => |_| Asked::Ready,
            b"/status" => |_| Asked::Status,
            b"/events" => |_| Asked::Events,
            b"/config" if self.token.is_some() => return self.change(head),
            _ => {
                return Asked::Answer(Reply::refusal(
                    404,
                    "NotFoundError",
                    "not_found",
                    None,
                    "nimgate's console has /, /status, /events, /health, /health/ready, and, with an admin token \
                     configured, POST /config.",
                ));
            }
        };
        match head.method {
            b"GET" | b"HEAD" => answer(head),
            _ => Asked::Answer(wrong_method("GET, HEAD")),
        }
    }

    fn change(&self, head: &ConsoleRequest<'_>) -> Asked {
        if head.method != b"POST" {
            return Asked::Answer(wrong_method("POST"));
        }
        if head.origin.is_some_and(|origin| !same_origin(origin, head.authority)) {
            return Asked::Intrusion(Reply::refusal(
                403,
                "PermissionDeniedError",
                "foreign_origin",
                None,
                "nimgate takes changes from its own dashboard only, and the page that sent this is another's. Open the \
                 dashboard under the address that you send to.",
            ));
        }
        if !self.is_admin(head.authorization) {
            let refusal = Reply::refusal(
                401,
                "AuthenticationError",
                "wrong_token",
                None,
                "nimgate changes limits only with the admin token (console.admin_token) as `Authorization: Bearer <token>`.",
            );
            return Asked::Intrusion(refusal.with("www-authenticate", "Bearer realm=\"nimgate\""));
        }
        if !head.content_type.is_some_and(is_json) || head.content_encoding.is_some() {
            let refusal = Reply::refusal(
                415,
                "UnsupportedMediaTypeError",
                "not_json",
                None,
                "nimgate takes a change as plain JSON, with `Content-Type: application/json` and without compression.",
            );
            return Asked::Answer(refusal.with("accept", "application/json"));
        }
        let announced = head.content_length.map(|text| core::str::from_utf8(text).ok()?.parse::<u64>().ok());
        match announced {
            Some(Some(length)) if length > BODY_BYTES_MAX as u64 => Asked::Answer(too_large()),
            _ => Asked::Change,
        }
    }

    /// Whether the credentials are the admin's. The time this takes depends on the length of what was sent only.
    fn is_admin(&self, authorization: Option<&[u8]>) -> bool {
        let (Some(sent), Some(token)) = (authorization, &self.token) else {
            return false;
        };
        let Some((scheme, sent)) = sent.split_at_checked(SCHEME.len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(SCHEME) && sent.trim_ascii().ct_eq(token.as_bytes()).into()
    }

    /// Whether a host is one under which no stranger's page can be.
    fn is_ours(&self, authority: &[u8]) -> bool {
        let host = without_port(authority);
        let is_address = core::str::from_utf8(host)
            .is_ok_and(|host| host.parse::<core::net::IpAddr>().is_ok() || is_bracketed_v6(host));
        is_address || host.eq_ignore_ascii_case(b"localhost") || self.config.hosts.iter().any(|name| name.matches(host))
    }
}

/// The answer to a body that is too large.
pub fn too_large() -> Reply {
    Reply::refusal(
        413,
        "PayloadTooLarge",
        "payload_too_large",
        None,
        "nimgate takes changes of at most 16 kB, and this body has more.",
    )
}

fn wrong_method(allowed: &'static str) -> Reply {
    Reply::refusal(
        405,
        "MethodNotAllowedError",
        "method_not_allowed",
        None,
        "nimgate's console has this path, but not with this method; the header Allow names those that it takes.",
    )
    .with("allow", allowed)
}

fn is_json(content_type: &[u8]) -> bool {
    let mut parts = content_type.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/json"));
    is_json && parts.all(|parameter| parameter.eq_ignore_ascii_case(b"charset=utf-8"))
}

/// Whether a page of `origin` is from this very host and port.
fn same_origin(origin: &[u8], authority: &[u8]) -> bool {
    let host = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
}

fn without_port(authority: &[u8]) -> &[u8] {
    let end = authority.iter().rposition(|byte| *byte == b':').filter(|colon| {
        let port = authority.get(colon.saturating_add(1)..).unwrap_or_default();
        port.iter().all(u8::is_ascii_digit)
    });
    end.and_then(|end| authority.get(..end)).unwrap_or(authority)
}

fn is_bracketed_v6(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<core::net::Ipv6Addr>().is_ok())
}

/// The largest body of a change that is read.
pub const BODY_BYTES_MAX: usize = 16 * 1024;

const SCHEME: &[u8] = b"bearer ";

#[cfg(test)]
#[path = "request/tests.rs"]
mod tests;
