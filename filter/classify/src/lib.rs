//! From headers and body to a decision: which limit meters a request, or none.
//!
//! The rule above all others: no malformed input may lead to an NVIDIA request that is not metered. What can't be read
//! with certainty therefore follows `on_unclassifiable`, which meters unless the operator chose otherwise, and what
//! several upstream parsers would read differently is metered if any of them would read a metered model. What is metered
//! for that reason alone may as well be somebody else's request, so it keeps its own route and credentials.

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

mod bound;
mod decode;
mod media;
pub mod model;
pub(crate) mod path;

pub use bound::body_comes_first;
use bound::{Bound, bound_of_body};
use decode::Decoder;
use media::Kind;
use model::{Looks, Scanner, Unreadable};
use nimgate_config::glob::Glob;
use nimgate_config::{Config, LimitConfig, OnUnclassifiable};

/// What the request's headers say, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestHead<'a> {
    pub method: &'a [u8],
    /// Whether the request asks to upgrade its connection, to a WebSocket for example.
    pub upgrades: bool,
    /// `:path`, with its query.
    pub path: &'a [u8],
    pub authority: &'a [u8],
    pub content_type: Option<&'a [u8]>,
    pub content_encoding: Option<&'a [u8]>,
    /// The cluster that Envoy's routes chose so far.
    pub cluster: Option<&'a [u8]>,
    /// Whether the client sent headers that only nimgate may set. They are removed, and a route may have matched them, so
    /// that `cluster` says nothing.
    pub may_have_chosen_route: bool,
    /// `content-length`, as it is written.
    pub content_length: Option<&'a [u8]>,
    /// Whether the client waits for a word before it sends the body (`expect`), and Envoy did not give it.
    pub expects_word: bool,
    /// Whether no body follows.
    pub ends_here: bool,
}

/// Why a body could not be classified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unclassifiable {
    /// It is compressed in a way that is not decoded here, or not as it says, or far too large when it is decoded.
    Compressed,
    /// The host does not show bodies while a request is held at its headers.
    BodyHidden,
    /// The host did not hand over the request's headers.
    HeadersHidden,
    /// The scanner could not read it.
    Body(Unreadable),
}

impl Unclassifiable {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Compressed => "compressed",
            Self::BodyHidden => "body_hidden",
            Self::HeadersHidden => "headers_hidden",
            Self::Body(unreadable) => unreadable.label(),
        }
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It is none of ours.
    Pass,
    /// The limit with this number in the configuration meters it.
    Meter(usize),
    /// The same, for want of knowing better: it gets no key and no other route.
    MeterUnrecognised(usize),
    /// It is answered 400.
    Reject(Unclassifiable),
}

/// What the headers alone decide.
#[derive(Debug)]
pub enum AtHead {
    /// Everything.
    Decided(Classified),
    /// That the body must be read.
    Read(Box<BodyReader>),
}

/// How often `model` occurred at the top level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Occurrence {
    /// Once or never.
    #[default]
    Single,
    /// Several times with one value.
    Duplicate,
    /// Several times with different values: upstreams would disagree on which counts.
    Ambiguous,
}

/// The decision after the body's end, and what is worth counting about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Classified {
    /// What becomes of the request.
    pub decision: Decision,
    /// Why the body could not be classified, if it could not.
    pub unclassifiable: Option<Unclassifiable>,
    /// How often `model` occurred.
    pub occurrence: Occurrence,
}

impl Classified {
    const fn certain(decision: Decision) -> Self {
        Self { decision, unclassifiable: None, occurrence: Occurrence::Single }
    }
}

/// Decides about a request whose headers can't be read: nothing is known of it. It is metered under the first limit, or
/// rejected, but never passed: the client may have sent a header that chooses the route to an upstream whose requests are
/// metered.
pub const fn without_head(config: &Config) -> Classified {
    let reason = Unclassifiable::HeadersHidden;
    let decision = match config.on_unclassifiable {
        OnUnclassifiable::Meter | OnUnclassifiable::Pass => Decision::MeterUnrecognised(0),
        OnUnclassifiable::Reject => Decision::Reject(reason),
    };
    Classified { decision, unclassifiable: Some(reason), occurrence: Occurrence::Single }
}

/// Decides what the headers alone can decide.
pub fn at_head(config: &Config, head: &RequestHead<'_>) -> AtHead {
    let path = config.limits.iter().any(|limit| !limit.paths.is_empty()).then(|| path::normalise(head.path));
    let on_path = |limit: &LimitConfig| match &path {
        Some(path) if !limit.paths.is_empty() => limit.paths.iter().any(|glob| glob.matches(path)),
        _ => true,
    };
    let by_method = |limit: &LimitConfig, otherwise: bool| match &limit.methods {
        Some(methods) => methods.iter().any(|method| method.as_bytes() == head.method),
        None => otherwise,
    };
    // What a browser asks before it asks, and what asks for headers alone, costs an upstream nothing that it counts.
    let is_asking = head.method != b"OPTIONS" && head.method != b"HEAD";
    let claims = |limit: &LimitConfig| on_path(limit) && by_method(limit, is_asking);
    let claimed = config.limits.iter().enumerate().filter(|(_, limit)| claims(limit)).find_map(|(at, limit)| {
        if matches_host(limit, head) {
            return Some(Decision::Meter(at));
        }
        match head.cluster {
            // Any of the clusters may be the one.
            _ if head.may_have_chosen_route && !limit.clusters.is_empty() => Some(Decision::MeterUnrecognised(at)),
            Some(cluster) if is_among(&limit.clusters, cluster) => Some(Decision::Meter(at)),
            _ => None,
        }
    });
    // The first match wins, so only limits before the claiming one can still take the request by its body.
    let before = match claimed {
        Some(Decision::Meter(at) | Decision::MeterUnrecognised(at)) => at,
        _ => config.limits.len(),
    };
    let eligible: Vec<usize> = (0..before)
        .filter(|at| {
            config
                .limits
                .get(*at)
                .is_some_and(|limit| !limit.models.is_empty() && on_path(limit) && by_method(limit, true))
        })
        .collect();
    let otherwise = claimed.unwrap_or(Decision::Pass);
    let kind = media::kind(head.content_type);
    let bound = bound_of_body(head);
    if head.ends_here || eligible.is_empty() || kind == Kind::NeverJson || bound == Bound::NoBody {
        return AtHead::Decided(Classified::certain(otherwise));
    }
    let coding = head.content_encoding.filter(|value| media::codings(value).next().is_some());
    let decoder = coding.and_then(Decoder::of).map(Box::new);
    let mut reader = BodyReader {
        scanner: Scanner::new(),
        claims_json: matches!(kind, Kind::Json | Kind::GrpcJson),
        is_grpc: kind == Kind::GrpcJson,
        grpc_prefix: Vec::new(),
        is_hidden: coding.is_some() && decoder.is_none(),
        decoder,
        left: match bound {
            Bound::Bytes(length) => Some(length),
            Bound::NoBody | Bound::EndOfStream | Bound::Unknown => None,
        },
        eligible,
        claimed,
        matched: None,
        matched_model: None,
        first: None,
        occurrence: Occurrence::Single,
        spoilt: false,
    };
    if bound == Bound::Unknown {
        // It may have no end that could be waited for, and its beginning proves nothing.
        return AtHead::Decided(reader.give_up(config));
    }
    // A body that can't be decoded tells nothing, so unless its request is to be metered there is no use in waiting for its
    // end; one that is metered waits, so that a slow body holds no place in the queue.
    if reader.is_hidden && config.on_unclassifiable != OnUnclassifiable::Meter && claimed.is_none() {
        return AtHead::Decided(reader.finish(config));
    }
    AtHead::Read(Box::new(reader))
}

/// Reads a body piece by piece.
#[derive(Debug)]
pub struct BodyReader {
    scanner: Scanner,
    claims_json: bool,
    is_grpc: bool,
    /// As much of the first message's prefix as has come.
    grpc_prefix: Vec<u8>,
    /// Whether the body is compressed in a way that is not decoded here.
    is_hidden: bool,
    decoder: Option<Box<Decoder>>,
    /// How many bytes of the body still come, where its stream goes on after it.
    left: Option<u64>,
    eligible: Vec<usize>,
    /// What the headers say of it.
    claimed: Option<Decision>,
    matched: Option<usize>,
    /// The first model that a limit matches.
    matched_model: Option<String>,
    first: Option<String>,
    occurrence: Occurrence,
    spoilt: bool,
}

impl BodyReader {
    /// Takes in the next piece. Answers `true` as soon as it is certain that the request passes whatever follows, so
    /// that a body which is no JSON need not be held.
    pub fn feed(&mut self, config: &Config, piece: &[u8]) -> bool {
        let piece = match &mut self.left {
            Some(left) => {
                let ours = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                *left = left.saturating_sub(u64::try_from(ours).unwrap_or(u64::MAX));
                piece.get(..ours).unwrap_or_default()
            }
            None => piece,
        };
        if self.is_hidden {
            return false;
        }
        match self.decoder.take() {
            None => self.read(config, piece),
            Some(mut decoder) => {
                decoder.feed(piece, &mut |bytes| self.read(config, bytes));
                self.decoder = Some(decoder);
            }
        }
        let is_others = match self.scanner.looks_like_json() {
            Looks::NotJson | Looks::OtherJson => !self.claims_json,
            // The first message of a conversation in JSON is over; another may only come when this one is answered.
            Looks::Json => self.is_grpc && self.matched.is_none() && self.scanner.has_ended(),
            Looks::Undecided => false,
        };
        self.claimed.is_none() && is_others
    }

    /// Whether all is read that the decision needs, though the stream goes on: the body of a request that then becomes a
    /// conversation, or the first message of one.
    pub fn is_complete(&self) -> bool {
        self.left == Some(0) || (self.is_grpc && !self.is_hidden && self.decoder.is_none() && self.scanner.has_ended())
    }

    /// Takes the prefix of the first gRPC message from what has come of it, and returns the rest. A message that is
    /// compressed by itself is not decoded; its length tells where it ends.
    fn after_grpc_prefix<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let missing = GRPC_PREFIX_BYTES.saturating_sub(self.grpc_prefix.len());
        if !self.is_grpc || missing == 0 {
            return piece;
        }
        let (prefix, rest) = piece.split_at_checked(missing).unwrap_or((piece, &[]));
        self.grpc_prefix.extend_from_slice(prefix);
        if let &[flags, a, b, c, d] = self.grpc_prefix.as_slice()
            && flags != 0
        {
            let length = u64::from(u32::from_be_bytes([a, b, c, d]));
            self.is_hidden = true;
            self.left = Some(length.saturating_sub(u64::try_from(rest.len()).unwrap_or(u64::MAX)));
        }
        rest
    }

    /// Reads bytes of the document itself.
    fn read(&mut self, config: &Config, piece: &[u8]) {
        let document = self.after_grpc_prefix(piece);
        if self.is_hidden {
            return;
        }
        let Self { scanner, eligible, matched, matched_model, first, occurrence, .. } = self;
        scanner.feed(document, &mut |model| {
            let by_model = eligible.iter().copied().find(|at| {
                config
                    .limits
                    .get(*at)
                    .is_some_and(|limit| limit.models.iter().any(|glob| glob.matches(model.as_bytes())))
            });
            if by_model.is_some() && matched_model.is_none() {
                *matched_model = Some(model.to_owned());
            }
            *matched = match (*matched, by_model) {
                (Some(before), Some(now)) => Some(before.min(now)),
                (before, now) => before.or(now),
            };
            match first {
                None => *first = Some(model.to_owned()),
                Some(first) if first != model => *occurrence = Occurrence::Ambiguous,
                Some(_) if *occurrence == Occurrence::Single => *occurrence = Occurrence::Duplicate,
                Some(_) => {}
            }
        });
    }

    /// The model to name where this request is counted: of several the first that made it metered.
    pub fn model(&self) -> Option<&str> {
        self.matched_model.as_deref().or(self.first.as_deref())
    }

    /// Part of the body could not be had from the host, so nothing read of it can be trusted.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// The body is complete: decides.
    pub fn finish(&mut self, config: &Config) -> Classified {
        let is_decoded = match self.decoder.take() {
            None => !self.is_hidden,
            Some(mut decoder) => decoder.finish(&mut |bytes| self.read(config, bytes)),
        };
        let unreadable = if !is_decoded {
            Some(Unclassifiable::Compressed)
        } else {
            self.scanner.finish().err().map(Unclassifiable::Body)
        };
        let unreadable = if self.spoilt { Some(Unclassifiable::BodyHidden) } else { unreadable };
        // A body of nothing is no body; one that neither says nor looks like JSON is someone else's; and what is no string
        // names no model.
        let harmless = match unreadable {
            Some(Unclassifiable::Body(Unreadable::Empty | Unreadable::ModelNotString)) => true,
            Some(Unclassifiable::Body(Unreadable::NotJson)) => !self.claims_json,
            _ => false,
        };
        // A body that is broken as a whole may be rejected even if a model was seen in it. It is never passed then:
        // some upstream stops reading before the fault.
        let broken = unreadable.is_some_and(|why| !matches!(why, Unclassifiable::Body(why) if why.is_about_model()));
        let rejected = broken && self.claimed.is_none() && config.on_unclassifiable == OnUnclassifiable::Reject;
        let (decision, unclassifiable) = match (self.matched.map(Decision::Meter).or(self.claimed), unreadable) {
            (Some(_), Some(reason)) if rejected => (Decision::Reject(reason), Some(reason)),
            (Some(decision), reason) => (decision, reason.filter(|_| self.claimed.is_none())),
            (None, None) => (Decision::Pass, None),
            (None, Some(_)) if harmless => (Decision::Pass, None),
            (None, Some(reason)) => (self.unclassifiable(config, reason), Some(reason)),
        };
        Classified { decision, unclassifiable, occurrence: self.occurrence }
    }

    /// The body will never be seen: decides without it.
    pub fn give_up(&mut self, config: &Config) -> Classified {
        let reason = Unclassifiable::BodyHidden;
        Classified {
            decision: self.claimed.unwrap_or_else(|| self.unclassifiable(config, reason)),
            unclassifiable: Some(reason),
            occurrence: Occurrence::Single,
        }
    }

    fn unclassifiable(&self, config: &Config, reason: Unclassifiable) -> Decision {
        match config.on_unclassifiable {
            OnUnclassifiable::Meter => Decision::MeterUnrecognised(self.eligible.first().copied().unwrap_or(0)),
            OnUnclassifiable::Reject => Decision::Reject(reason),
            OnUnclassifiable::Pass => Decision::Pass,
        }
    }
}

fn is_among(clusters: &[String], cluster: &[u8]) -> bool {
    clusters.iter().any(|name| name.as_bytes() == cluster)
}

fn matches_host(limit: &LimitConfig, head: &RequestHead<'_>) -> bool {
    if limit.hosts.is_empty() {
        return false;
    }
    // `nv.test`, `nv.test.` and, where the scheme's own port is meant, `nv.test:80` are one host.
    let (host, port) = split_port(head.authority);
    let bare = host.strip_suffix(b".").unwrap_or(host);
    let with_port = |glob: &Glob| {
        let ports = if port.is_empty() { [&b":80"[..], b":443"] } else { [port, port] };
        glob.text().contains(&b':') && ports.iter().any(|port| glob.matches(&[bare, *port].concat()))
    };
    limit.hosts.iter().any(|glob| glob.matches(bare) || with_port(glob))
}

/// The host, and its port with the colon before it; the port is empty where there is none.
fn split_port(authority: &[u8]) -> (&[u8], &[u8]) {
    // In `[::1]:80` only the colon after the bracket begins a port, in a bare `::1` none does.
    let colon = authority.iter().rposition(|byte| *byte == b':').unwrap_or(authority.len());
    let (host, port) = authority.split_at_checked(colon).unwrap_or((authority, b""));
    let is_port = port.iter().skip(1).all(u8::is_ascii_digit);
    let is_bare_ipv6 = host.contains(&b':') && !host.ends_with(b"]");
    if is_port && !is_bare_ipv6 { (host, port) } else { (authority, b"") }
}

/// Before each message of gRPC stand a flag and its length.
const GRPC_PREFIX_BYTES: usize = 5;

#[cfg(test)]
mod tests;
