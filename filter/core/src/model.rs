//! Models as the core knows them: a key that all workers agree on, and a name for the operator's eyes.

/// Which model a request asks for: a hash of its name. [`ModelKey::NONE`] where none was read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct ModelKey(pub u64);

impl ModelKey {
    /// No model is known, as where a limit matches by host.
    pub const NONE: Self = Self(0);

    /// The key of a name: FNV-1a, since all workers must find the same one.
    pub fn of(name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(hash.max(1))
    }
}

/// The beginning of a model's name, for the operator's eyes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelName {
    bytes: [u8; NAME_BYTES],
}

impl ModelName {
    /// As much of a name as is kept.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; NAME_BYTES];
        let mut end = name.len().min(NAME_BYTES);
        while !name.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        for (to, from) in bytes.iter_mut().zip(name.bytes().take(end)) {
            *to = from;
        }
        Self { bytes }
    }

    pub const NONE: Self = Self { bytes: [0; NAME_BYTES] };

    /// The name; what is not UTF-8 (it always is, unless the record was tampered with) reads as nothing.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes).unwrap_or_default().trim_end_matches('\0')
    }

    pub(crate) fn bytes(&self) -> &[u8; NAME_BYTES] {
        &self.bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; NAME_BYTES]) -> Self {
        Self { bytes }
    }
}

/// Bytes of a name that are kept.
pub(crate) const NAME_BYTES: usize = 48;
