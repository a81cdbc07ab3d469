//! The incremental scan of a JSON body for its top-level `model`.
//!
//! Upstream parsers disagree. Of two `model` keys Python and Node take the last and gjson the first; Go takes `MODEL`
//! too; FastAPI accepts a byte order mark and `NaN`. So the whole top-level object is read, every key that is `model`
//! after unescaping counts, in any letter case, and each of its values is reported. Nested keys never count.
//!
//! Structure is read strictly, at every depth: quotation marks, brackets of both kinds, colons, commas, and what may
//! stand between them, words included. Lenient parsers skip over what they do not know in ways of their own (jsonparser
//! counts one kind of bracket, gjson goes from an unknown word to the next string and takes that for the value), so
//! that one of them could find a key where another sees none. Such a body is unreadable.
//!
//! The inside of strings and numbers is read leniently, because the scan must accept at least what any upstream accepts,
//! and because a client's mistake there is for the upstream to report. Bare control characters, invalid UTF-8, lone
//! surrogates and unknown escapes are tolerated in every string but a `model`. That hides nothing: where a string ends
//! does not depend on them, since parsers either refuse them or skip one byte behind each backslash, as is done here.
//!
//! The body is read in one pass, and the pieces in which it comes make no difference. Memory is constant: one bit for
//! each open bracket up to [`DEPTH_MAX`], keys are compared as they pass, and one value at a time is kept, up to
//! [`MODEL_BYTES_MAX`]. Nothing recurses.

mod nesting;
mod report;
mod scalar;
mod start;
mod string;

use memchr::memchr2;
pub use nesting::DEPTH_MAX;
use nesting::{Bracket, Nesting};
pub use report::{Found, Looks, Unreadable};
use scalar::Scalar;
use start::{Opening, Start, is_space};
use string::{Escape, Key, Unit, Value};

/// The longest `model` value that is read, in bytes after unescaping. Real ones have fewer than a hundred.
pub const MODEL_BYTES_MAX: usize = 1_024;

/// Reads a body piece by piece and reports the values of its top-level `model` keys. One serves for one body.
#[derive(Debug, Default)]
pub struct Scanner {
    at: At,
    start: Start,
    nesting: Nesting,
    /// Brackets that are open beyond those that `nesting` remembers.
    excess: u32,
    escape: Escape,
    key: Key,
    /// Whether the value that comes or is being read belongs to a `model` key.
    is_model: bool,
    value: Value,
    models: u32,
    /// The first fault that does not end the reading, since a `model` may still follow.
    flaw: Option<Unreadable>,
}

/// Where in the document the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum At {
    /// Before the first significant byte.
    #[default]
    Start,
    /// Behind `{`: a key or the end.
    FirstKey,
    /// Behind a comma in an object: a key.
    Key,
    /// In a top-level key that may still turn out to be `model`.
    InKey,
    /// In any other key, or in one that has turned out to be `model`.
    InKeyRest,
    Colon,
    /// Behind `[`: a value or the end.
    FirstElement,
    Value,
    /// In a string that is a top-level `model`.
    InModel,
    /// In any other string that is a value.
    InString,
    /// In a number or a word.
    InScalar(Scalar),
    /// Outside strings, deeper than the kinds of brackets are remembered.
    InDeep,
    AfterValue,
    /// Behind the top-level object.
    End,
    /// Reading is over before the body is.
    Stopped(Unreadable),
}

impl Scanner {
    /// A scanner at the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next piece of the body. `on_model` gets each value of a top-level `model` as it is complete.
    pub fn feed(&mut self, piece: &[u8], on_model: &mut dyn FnMut(&str)) {
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            rest = match self.at {
                At::Stopped(_) => return,
                At::InString | At::InKeyRest => self.skip_string(rest),
                At::InScalar(scalar) => self.skip_scalar(scalar, rest),
                At::InDeep => self.skip_deep(rest),
                _ => {
                    self.step(*byte, on_model);
                    tail
                }
            };
        }
    }

    /// What the first bytes say.
    pub fn looks_like_json(&self) -> Looks {
        match self.at {
            At::Start => Looks::Undecided,
            At::Stopped(Unreadable::NotJson | Unreadable::NotAnObject) => Looks::NotJson,
            _ => Looks::Json,
        }
    }

    /// The body is complete.
    ///
    /// # Errors
    /// [`Unreadable`] when it could not be read, or one of its `model` values is not a readable string. Values that
    /// were reported before stay true all the same.
    pub fn finish(&mut self) -> Result<Found, Unreadable> {
        match (self.at, self.flaw) {
            (At::Stopped(why), _) => Err(why),
            (At::Start, _) if self.start.is_blank() => Err(Unreadable::Empty),
            (At::Start, _) => Err(Unreadable::NotJson),
            (At::End, None) => Ok(Found { models: self.models }),
            (At::End, Some(flaw)) => Err(flaw),
            _ => Err(Unreadable::Truncated),
        }
    }

    fn step(&mut self, byte: u8, on_model: &mut dyn FnMut(&str)) {
        match (self.at, byte) {
            (At::Start, _) => self.begin(byte),
            (At::InKey, _) => self.in_key(byte),
            (At::InModel, _) => self.in_model(byte, on_model),
            _ if is_space(byte) => {}
            (At::FirstKey | At::Key, b'"') => self.begin_key(),
            (At::FirstKey, b'}') => self.close(Bracket::Object),
            // A zero byte here is the other half of the bracket before, in UTF-16 or UTF-32 without byte order mark.
            (At::FirstKey, 0) if self.nesting.innermost().is_none() => self.stop(Unreadable::Encoding),
            (At::Colon, b':') => self.at = At::Value,
            (At::FirstElement, b']') => self.close(Bracket::Array),
            (At::FirstElement | At::Value, _) => self.begin_value(byte),
            (At::AfterValue, b',') => {
                self.at = if self.nesting.innermost() == Some(Bracket::Array) { At::Value } else { At::Key };
            }
            (At::AfterValue, b'}') => self.close(Bracket::Object),
            (At::AfterValue, b']') => self.close(Bracket::Array),
            (At::End, _) => self.stop(Unreadable::TrailingData),
            _ => self.stop(Unreadable::Syntax),
        }
    }

    fn begin(&mut self, byte: u8) {
        self.at = match self.start.push(byte) {
            Opening::Undecided => At::Start,
            Opening::Object => At::FirstKey,
            Opening::OtherValue => At::Stopped(Unreadable::NotAnObject),
            Opening::WideObject => At::Stopped(Unreadable::Encoding),
            Opening::NotJson => At::Stopped(Unreadable::NotJson),
        };
    }

    fn begin_key(&mut self) {
        self.is_model = false;
        self.key = Key::Prefix(0);
        self.at = if self.nesting.innermost().is_none() { At::InKey } else { At::InKeyRest };
    }

    fn in_key(&mut self, byte: u8) {
        let unit = self.escape.read(byte);
        self.key = self.key.next(unit);
        self.is_model = self.key.is_model();
        match (unit, self.key) {
            (Unit::End, _) => self.end_key(),
            (_, Key::Prefix(_)) => {}
            (_, Key::Model | Key::Other) => {
                self.at = At::InKeyRest;
                if unit == Unit::BrokenOff {
                    self.skip_string(&[byte]);
                }
            }
        }
    }

    fn end_key(&mut self) {
        self.models = self.models.saturating_add(u32::from(self.is_model));
        self.at = At::Colon;
    }

    fn begin_value(&mut self, byte: u8) {
        if self.is_model && byte != b'"' {
            self.is_model = false;
            self.flaw.get_or_insert(Unreadable::ModelNotString);
        }
        match byte {
            b'"' if self.is_model => {
                self.value.begin();
                self.at = At::InModel;
            }
            b'"' => self.at = At::InString,
            b'{' => self.open(Bracket::Object, At::FirstKey),
            b'[' => self.open(Bracket::Array, At::FirstElement),
            _ => self.at = Scalar::begin(byte).map_or(At::Stopped(Unreadable::Syntax), At::InScalar),
        }
    }

    fn in_model(&mut self, byte: u8, on_model: &mut dyn FnMut(&str)) {
        let unit = self.escape.read(byte);
        if unit == Unit::End {
            self.at = At::AfterValue;
            self.is_model = false;
            match self.value.end() {
                Ok(model) => on_model(model),
                Err(flaw) => {
                    self.flaw.get_or_insert(flaw);
                }
            }
        } else if let Err(flaw) = self.value.push(unit) {
            self.flaw.get_or_insert(flaw);
            self.is_model = false;
            self.at = At::InString;
            if unit == Unit::BrokenOff {
                self.skip_string(&[byte]);
            }
        }
    }

    fn open(&mut self, bracket: Bracket, inside: At) {
        if self.nesting.open(bracket) {
            self.at = inside;
        } else {
            self.flaw.get_or_insert(Unreadable::TooDeep);
            self.excess = 1;
            self.at = At::InDeep;
        }
    }

    fn close(&mut self, bracket: Bracket) {
        match (self.nesting.innermost(), bracket) {
            (None, Bracket::Object) => self.at = At::End,
            (Some(innermost), _) if innermost == bracket => {
                self.nesting.close();
                self.at = At::AfterValue;
            }
            _ => self.stop(Unreadable::Syntax),
        }
    }

    /// Goes to the end of a string whose content does not matter any more, and returns what is behind it.
    fn skip_string<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let mut rest = piece;
        loop {
            if self.escape != Escape::None {
                // One byte belongs to the backslash; the digits of `\u` are ordinary characters here.
                let Some((_, tail)) = rest.split_first() else { return rest };
                self.escape = Escape::None;
                rest = tail;
            }
            let behind = memchr2(b'"', b'\\', rest).and_then(|found| rest.get(found..)).and_then(<[u8]>::split_first);
            match behind {
                None => return &[],
                Some((b'\\', tail)) => {
                    self.escape = Escape::Begun;
                    rest = tail;
                }
                Some((_, tail)) => {
                    match self.at {
                        At::InKeyRest => self.end_key(),
                        _ if self.excess > 0 => self.at = At::InDeep,
                        _ => self.at = At::AfterValue,
                    }
                    return tail;
                }
            }
        }
    }

    /// Goes to the end of a number or a word, and returns what is behind it.
    fn skip_scalar<'a>(&mut self, scalar: Scalar, piece: &'a [u8]) -> &'a [u8] {
        let mut scalar = scalar;
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            match scalar.next(*byte) {
                Some(next) => scalar = next,
                None => {
                    self.at = if scalar.is_whole() { At::AfterValue } else { At::Stopped(Unreadable::Syntax) };
                    return rest;
                }
            }
            rest = tail;
        }
        self.at = At::InScalar(scalar);
        rest
    }

    /// Goes on to the next string or out of the depths, and returns what is behind that.
    fn skip_deep<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            rest = tail;
            match byte {
                b'"' => {
                    self.at = At::InString;
                    return rest;
                }
                b'{' | b'[' => match self.excess.checked_add(1) {
                    Some(excess) => self.excess = excess,
                    None => {
                        self.stop(Unreadable::TooDeep);
                        return &[];
                    }
                },
                b'}' | b']' => {
                    self.excess = self.excess.saturating_sub(1);
                    if self.excess == 0 {
                        self.at = At::AfterValue;
                        return rest;
                    }
                }
                b',' | b':' => {}
                _ if is_space(*byte) || scalar::may_contain(*byte) => {}
                _ => {
                    self.stop(Unreadable::Syntax);
                    return &[];
                }
            }
        }
        &[]
    }

    fn stop(&mut self, why: Unreadable) {
        self.at = At::Stopped(why);
    }
}

#[cfg(test)]
mod tests;
