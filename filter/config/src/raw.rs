//! The configuration's form: a strict mirror of the JSON, with everything optional and nothing interpreted.
//!
//! Fields whose feature does not exist yet are known here so that they are refused with a sentence of their own rather
//! than as typing errors.

use super::knobs::WithKnobs;
use super::number::WrittenNumber;
use super::{ConfigError, HoldAt, LogLevel, OnUnclassifiable};
use core::fmt;
use core::marker::PhantomData;
use serde::de::{self, Deserialize, Deserializer, Visitor};

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct ConfigFields {
    pub limits: Option<Vec<LimitDocument>>,
    pub priority: Option<PriorityFields>,
    pub on_unclassifiable: Option<OnUnclassifiable>,
    pub hold_at: Option<HoldAt>,
    pub bodies: Option<BodiesFields>,
    pub console: Option<ConsoleFields>,
    pub log_level: Option<LogLevel>,
    /// Read so that it may be there; what it says is of no account, only that it differs.
    #[expect(dead_code, reason = "only its form is checked")]
    pub revision: Option<Revision>,
}

/// A text or a number of the operator's choice. See the README for when it is needed.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "only its form is checked")]
#[serde(untagged, expecting = "expected a text or a whole number")]
pub enum Revision {
    Text(String),
    Number(u64),
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct LimitFields {
    pub name: Option<String>,
    pub models: Option<Vec<String>>,
    pub clusters: Option<Vec<String>>,
    pub hosts: Option<Vec<String>>,
    pub paths: Option<Vec<String>>,
    pub methods: Option<Vec<String>>,
    pub upstream_api_key: Option<Secret>,
    pub upstream_api_key_env: Option<String>,
}

/// What matches a request and which key it gets, and the limit's knobs.
pub type LimitDocument = WithKnobs<LimitFields>;

impl LimitDocument {
    pub fn named(name: &str) -> Self {
        let own = LimitFields { name: Some(name.to_owned()), ..LimitFields::default() };
        Self { own, ..Self::default() }
    }
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct PriorityFields {
    pub header: Option<String>,
    pub default: Option<String>,
    pub ceiling: Option<String>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct BodiesFields {
    pub worker_max_bytes: Option<WrittenNumber>,
    pub connection_max_bytes: Option<WrittenNumber>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct ConsoleFields {
    pub admin_token: Option<Secret>,
    pub admin_token_env: Option<String>,
    pub hosts: Option<Vec<String>>,
    pub upstream: Option<UpstreamFields>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct UpstreamFields {
    pub cluster: Option<String>,
    pub host: Option<String>,
    pub path: Option<String>,
    pub timeout_s: Option<WrittenNumber>,
}

/// A key. Its value must not be quoted in a sentence about it, not even if it is of the wrong type.
pub struct Secret(pub String);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(key) => Ok(Self(key)),
            _ => Err(de::Error::custom("must be a string")),
        }
    }
}

/// Something written as a JSON object. By itself serde would take a list too, its entries for the fields in their order.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Reads the JSON and refuses the fields whose feature does not exist yet.
pub fn parse(json: &[u8]) -> Result<ConfigFields, ConfigError> {
    if json.len() > JSON_BYTES_MAX {
        return Err(super::wrong(
            "",
            &format!("the configuration must be at most {JSON_BYTES_MAX} bytes, got {}", json.len()),
        ));
    }
    if json.iter().all(u8::is_ascii_whitespace) {
        return Ok(ConfigFields::default());
    }
    document(json)
}

/// Reads one JSON document with nothing after it.
pub fn document<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, ConfigError> {
    let mut document = serde_json::Deserializer::from_slice(json);
    let Object(value) = serde_path_to_error::deserialize(&mut document).map_err(|error| {
        let path = error.path().to_string();
        ConfigError::new(if path == "." { "" } else { &path }, &error.inner().to_string())
    })?;
    document.end().map_err(|error| super::wrong("", &error.to_string()))?;
    Ok(value)
}

/// The largest configuration that is read: far above any real one, far below what would hurt.
const JSON_BYTES_MAX: usize = 256 * 1024;
