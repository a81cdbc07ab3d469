//! The lists of patterns, names and methods by which a limit matches requests. One that can never match is a mistake, and lets through
//! unmetered what it was written for, so it is refused.

use super::glob::Glob;
use super::{ConfigError, wrong};

/// Patterns against the body's `model`.
pub(super) fn of_models(raw: Option<Vec<String>>, path: &str) -> Result<Option<Vec<Glob>>, ConfigError> {
    globs(raw, path, |_| None)
}

/// Patterns against the host of a request, with or without its port.
pub(super) fn of_hosts(raw: Option<Vec<String>>, path: &str) -> Result<Option<Vec<Glob>>, ConfigError> {
    globs(raw, path, |pattern| {
        if pattern.contains("://") {
            return Some("is an address; a host is written without `https://` and without a path");
        }
        let is_odd = |byte: u8| !byte.is_ascii_graphic() || b"/?#@\\".contains(&byte);
        pattern.bytes().any(is_odd).then_some(
            "can't be a host: it is a name such as integrate.api.nvidia.com, with a port if need be, and no path; names in \
             other scripts are written as they are sent (xn--...)",
        )
    })
}

/// Patterns against the path of a request as the classifier spells it: percent-decoded, without query
/// and parameters, and without a slash at its end.
pub(super) fn of_paths(raw: Option<Vec<String>>, path: &str) -> Result<Option<Vec<Glob>>, ConfigError> {
    globs(raw, path, |pattern| {
        if !pattern.starts_with(['/', '*']) {
            return Some("must begin with a slash or `*`");
        }
        if pattern.len() > 1 && pattern.ends_with('/') {
            return Some(
                "must not end with a slash: paths are compared without the one at their end; for all below it add `*`",
            );
        }
        if pattern.contains(['?', '#', ';']) {
            return Some("must not hold `?`, `#` or `;`: paths are compared without query and parameters");
        }
        let has_empty = pattern.contains("//") || pattern.contains('\\');
        let has_dots = pattern.split('/').any(|segment| segment == "." || segment == "..");
        (has_empty || has_dots)
            .then_some("can't match: paths are compared with single slashes and without `.` and `..`")
    })
}

/// Names of clusters.
pub(super) fn clusters(raw: Option<Vec<String>>, path: &str) -> Result<Option<Vec<String>>, ConfigError> {
    let Some(names) = raw else { return Ok(None) };
    check_count(names.len(), path)?;
    for (at, name) in names.iter().enumerate() {
        if name.is_empty() || name.trim() != name {
            return Err(wrong(&format!("{path}[{at}]"), "must be the name of a cluster, without space around it"));
        }
        if name.contains('*') {
            return Err(wrong(&format!("{path}[{at}]"), "must be a name: clusters are not matched by patterns"));
        }
    }
    Ok(Some(names))
}

/// HTTP methods, in upper case.
pub(super) fn methods(raw: Option<Vec<String>>, path: &str) -> Result<Option<Vec<String>>, ConfigError> {
    let Some(methods) = raw else { return Ok(None) };
    if methods.is_empty() {
        return Err(wrong(path, "must name at least one method; leave it out for all"));
    }
    check_count(methods.len(), path)?;
    let check = |(at, method): (usize, String)| {
        let is_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
        if is_method {
            return Ok(method.to_ascii_uppercase());
        }
        Err(wrong(&format!("{path}[{at}]"), "must be an HTTP method such as POST"))
    };
    methods.into_iter().enumerate().map(check).collect::<Result<Vec<_>, _>>().map(Some)
}

/// `fault` says why a pattern can never match.
fn globs(
    raw: Option<Vec<String>>,
    path: &str,
    fault: impl Fn(&str) -> Option<&'static str>,
) -> Result<Option<Vec<Glob>>, ConfigError> {
    let Some(patterns) = raw else { return Ok(None) };
    check_count(patterns.len(), path)?;
    let check = |(at, pattern): (usize, String)| {
        let here = format!("{path}[{at}]");
        if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX {
            return Err(wrong(&here, &format!("must be a pattern of 1 to {PATTERN_BYTES_MAX} bytes")));
        }
        if pattern.trim() != pattern {
            return Err(wrong(&here, "must not have space around it"));
        }
        match fault(&pattern) {
            Some(problem) => Err(wrong(&here, problem)),
            None => Ok(Glob::new(&pattern)),
        }
    };
    patterns.into_iter().enumerate().map(check).collect::<Result<Vec<_>, _>>().map(Some)
}

fn check_count(count: usize, path: &str) -> Result<(), ConfigError> {
    if count > PATTERNS_MAX {
        return Err(wrong(path, &format!("must hold at most {PATTERNS_MAX} entries, got {count}")));
    }
    Ok(())
}

/// The most entries in one list.
const PATTERNS_MAX: usize = 256;

const PATTERN_BYTES_MAX: usize = 256;
