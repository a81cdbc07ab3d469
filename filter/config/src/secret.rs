//! Secrets in the configuration: they stand in it, or in an environment variable that it names, and are never shown.

use super::{ConfigError, NAME_BYTES_MAX, wrong};
use core::fmt;

/// Where a secret comes from: an upstream's key, or the console's admin token.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// None is configured.
    Client,
    /// From the configuration itself.
    Inline(String),
    /// From an environment variable of the VM, by name.
    Env(String),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("Client"),
            Self::Inline(_) => f.write_str("Inline(..)"),
            Self::Env(name) => write!(f, "Env({name:?})"),
        }
    }
}

/// Where a secret comes from: the field called `name`, or the variable that `name` with `_env` after it names.
pub(super) fn check_secret(
    inline: Option<String>,
    env: Option<String>,
    path: &str,
    name: &str,
) -> Result<KeySource, ConfigError> {
    let inline = inline.map(|secret| without_quotes(&secret).to_owned());
    match (inline, env) {
        (Some(_), Some(_)) => {
            Err(wrong(&format!("{path}.{name}_env"), &format!("can't be given together with {name}; choose one")))
        }
        (Some(key), None) if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(wrong(&format!("{path}.{name}"), "must be of visible ASCII characters without spaces"))
        }
        // Not quoted, and not taken if it looks like no name: to put the secret itself here is an easy slip.
        (None, Some(variable)) if !is_variable_name(&variable) => Err(wrong(
            &format!("{path}.{name}_env"),
            "must be the name of an environment variable (letters, digits and `_`), not the value itself",
        )),
        (Some(key), None) => Ok(KeySource::Inline(key)),
        (None, Some(variable)) => Ok(KeySource::Env(variable)),
        (None, None) => Ok(KeySource::Client),
    }
}

/// A secret without the quotation marks that a shell or a file of variables has left around it: no key has any.
pub fn without_quotes(secret: &str) -> &str {
    let bare = |mark: char| secret.strip_prefix(mark).and_then(|rest| rest.strip_suffix(mark));
    bare('"').or_else(|| bare('\'')).unwrap_or(secret)
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
