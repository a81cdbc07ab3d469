//! The incremental scan of a JSON body for its top-level `model`.
//!
//! Upstream parsers disagree. Of two `model` keys Python and Node take the last and gjson the first; Go takes `MODEL`
//! too; FastAPI accepts a byte order mark and `NaN`. So the whole top-level object is read, every key that is `model`
//! after unescaping counts, in any letter case, and each of its values is reported. Nested keys never count.
//!
//! A document that is no object is read as well, to see that it is one: no upstream finds a `model` in it.
//!
//! Structure is read strictly, at every depth: quotation marks, brackets of both kinds, colons, commas, and what may
//! stand between them, words included. Lenient parsers skip over what they do not know in ways of their own (jsonparser
//! counts one kind of bracket, gjson goes from an unknown word to the next string and takes that for the value), so
//! that one of them could find a key where another sees none. Such a body is unreadable.
//!
//! The inside of strings and numbers is read leniently, because the scan must accept at least what any upstream accepts,
//! and because a client's mistake there is for the upstream to report. Bare control characters, invalid UTF-8, lone
//! surrogates and unknown escapes are tolerated in every string but a `model`. That hides nothing: where a string ends
//! does not depend on them, since parsers either refuse them or skip one byte after each backslash, as is done here.
//!
//! The body is read in one pass, and the pieces in which it comes make no difference. Memory is constant: one bit for
//! each open bracket up to [`DEPTH_MAX`], keys are compared as they pass, and one value at a time is kept, up to
//! [`MODEL_BYTES_MAX`]. Nothing recurses.

mod nesting;
mod report;
mod scalar;
mod start;
mod string;
mod string_end;

pub use nesting::DEPTH_MAX;
use nesting::{Bracket, Nesting};
pub use report::{Found, Looks, Unreadable};
use scalar::Scalar;
use start::{Opening, Start, is_space};
use string::{Escape, KeyMatch, ModelValue, StringUnit};
use string_end::{StringEnd, end_of_string};

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
    scalar: Scalar,
    escape: Escape,
    key: KeyMatch,
    /// Whether the value that comes or is being read belongs to a `model` key.
    is_model: bool,
    value: ModelValue,
    models: u32,
    /// Whether the document is no object but another value, in which no key is at the top level.
    is_other: bool,
    /// The first fault that does not end the reading, since a `model` may still follow.
    flaw: Option<Unreadable>,
    /// Why reading stopped.
    fault: Option<Unreadable>,
}

/// Where in the document the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum At {
    /// Before the first significant byte.
    #[default]
    Start,
    /// After `{`: a key or the end.
    FirstKey,
    /// After a comma in an object: a key.
    Key,
    /// In a top-level key that may still turn out to be `model`.
    InKey,
    /// In any other key, or in one that has turned out to be `model`.
    InKeyRest,
    Colon,
    /// After `[`: a value or the end.
    FirstElement,
    Value,
    /// In a string that is a top-level `model`.
    InModel,
    /// In any other string that is a value.
    InString,
    /// In a number or a word, see `scalar`.
    InScalar,
    /// Outside strings, deeper than the kinds of brackets are remembered.
    InDeep,
    AfterValue,
    /// After the top-level object.
    End,
    /// Reading is over before the body is, see `fault`.
    Stopped,
}

impl Scanner {
    /// A scanner at the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next piece of the body. `on_model` gets each value of a top-level `model` as it is complete.
    pub fn feed(&mut self, piece: &[u8], on_model: &mut dyn FnMut(&str)) {
        // Where the next byte stands is handed from hand to hand, since reading it back from memory for each byte would
        // take longer than all else that is done with it.
        let mut at = self.at;
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            (at, rest) = match at {
                At::Stopped => break,
                At::InString | At::InKeyRest => self.skip_string(at, rest),
                At::InScalar => self.skip_scalar(rest),
                At::InDeep => self.skip_deep(rest),
                At::Start => (self.begin(*byte), tail),
                At::InKey => (self.in_key(*byte), tail),
                At::InModel => match self.plain_run(rest) {
                    0 => (self.in_model(*byte, on_model), tail),
                    run => {
                        let (plain, tail) = rest.split_at_checked(run).unwrap_or((rest, &[]));
                        (self.in_model_run(plain), tail)
                    }
                },
                _ if is_space(*byte) => (at, tail),
                _ => match (self.step(at, *byte), tail) {
                    // Most writers put a space after each colon and comma.
                    (next @ (At::Value | At::Key), [b' ', tail @ ..]) => (next, tail),
                    (next, tail) => (next, tail),
                },
            };
        }
        self.at = at;
    }

    /// What the first bytes say.
    pub(crate) fn looks_like_json(&self) -> Looks {
        match self.at {
            At::Start => Looks::Undecided,
            At::Stopped if self.fault == Some(Unreadable::NotJson) => Looks::NotJson,
            _ if self.is_other => Looks::OtherJson,
            _ => Looks::Json,
        }
    }

    /// Whether the top-level object is over.
    pub(crate) fn has_ended(&self) -> bool {
        self.at == At::End
    }

    /// The body is complete.
    ///
    /// # Errors
    /// [`Unreadable`] when it could not be read, or one of its `model` values is not a readable string. Values that
    /// were reported before stay true all the same.
    pub fn finish(&mut self) -> Result<Found, Unreadable> {
        match (self.at, self.flaw) {
            (At::Stopped, _) => Err(self.fault.unwrap_or(Unreadable::Syntax)),
            (At::Start, _) if self.start.is_blank() => Err(Unreadable::Empty),
            (At::Start, _) => Err(Unreadable::NotJson),
            (at, None) if self.is_whole(at) => Ok(Found { models: self.models }),
            (at, Some(flaw)) if self.is_whole(at) => Err(flaw),
            _ => Err(Unreadable::Truncated),
        }
    }

    /// Whether the document may end here.
    fn is_whole(&self, at: At) -> bool {
        match at {
            At::End => true,
            At::AfterValue => self.is_after_other(),
            At::InScalar => self.is_after_other() && self.scalar.is_whole(),
            _ => false,
        }
    }

    /// Whether what was read last is a whole document that is no object.
    fn is_after_other(&self) -> bool {
        self.is_other && self.nesting.innermost().is_none() && self.excess == 0
    }

    /// Takes in a byte outside strings, numbers and words that is no white space.
    #[inline]
    fn step(&mut self, at: At, byte: u8) -> At {
        match (at, byte) {
            (At::FirstKey | At::Key, b'"') => self.begin_key(),
            (At::FirstKey, b'}') => self.close(Bracket::Object),
            // A zero byte here is the other half of the bracket before, in UTF-16 or UTF-32 without byte order mark.
            (At::FirstKey, 0) if self.nesting.innermost().is_none() => self.stop(Unreadable::Encoding),
            (At::Colon, b':') => At::Value,
            (At::FirstElement, b']') => self.close(Bracket::Array),
            (At::FirstElement | At::Value, _) => self.begin_value(byte),
            (At::AfterValue, _) if self.is_after_other() => self.stop(Unreadable::TrailingData),
            (At::AfterValue, b',') => {
                if self.nesting.innermost() == Some(Bracket::Array) {
                    At::Value
                } else {
                    At::Key
                }
            }
            (At::AfterValue, b'}') => self.close(Bracket::Object),
            (At::AfterValue, b']') => self.close(Bracket::Array),
            (At::End, _) => self.stop(Unreadable::TrailingData),
            _ => self.stop(Unreadable::Syntax),
        }
    }

    fn begin(&mut self, byte: u8) -> At {
        match self.start.push(byte) {
            Opening::Undecided => At::Start,
            Opening::Object => At::FirstKey,
            Opening::OtherValue => {
                self.is_other = true;
                self.begin_value(byte)
            }
            Opening::WideObject => self.stop(Unreadable::Encoding),
            Opening::WideOther | Opening::NotJson => self.stop(Unreadable::NotJson),
        }
    }

    fn begin_key(&mut self) -> At {
        self.is_model = false;
        if self.nesting.innermost().is_none() {
            self.key = KeyMatch::Prefix(0);
            At::InKey
        } else {
            At::InKeyRest
        }
    }

    fn in_key(&mut self, byte: u8) -> At {
        let unit = self.escape.read(byte);
        self.key = self.key.next(unit);
        self.is_model = self.key.is_model();
        match (unit, self.key) {
            (StringUnit::End, _) => self.end_key(),
            (_, KeyMatch::Prefix(_)) => At::InKey,
            (StringUnit::BrokenOff, KeyMatch::Model | KeyMatch::Other) => self.skip_string(At::InKeyRest, &[byte]).0,
            (_, KeyMatch::Model | KeyMatch::Other) => At::InKeyRest,
        }
    }

    fn end_key(&mut self) -> At {
        self.models = self.models.saturating_add(u32::from(self.is_model));
        At::Colon
    }

    fn begin_value(&mut self, byte: u8) -> At {
        if self.is_model && byte != b'"' {
            self.is_model = false;
            self.mark(Unreadable::ModelNotString);
        }
        match byte {
            b'"' if self.is_model => {
                self.value.begin();
                At::InModel
            }
            b'"' => At::InString,
            b'{' => self.open(Bracket::Object, At::FirstKey),
            b'[' => self.open(Bracket::Array, At::FirstElement),
            _ => match Scalar::begin(byte) {
                Some(scalar) => {
                    self.scalar = scalar;
                    At::InScalar
                }
                None => self.stop(Unreadable::Syntax),
            },
        }
    }

    fn in_model(&mut self, byte: u8, on_model: &mut dyn FnMut(&str)) -> At {
        let unit = self.escape.read(byte);
        if unit == StringUnit::End {
            self.is_model = false;
            match self.value.end() {
                Ok(model) => on_model(model),
                Err(flaw) => {
                    self.mark(flaw);
                }
            }
            return At::AfterValue;
        }
        let Err(flaw) = self.value.push(unit) else { return At::InModel };
        self.mark(flaw);
        self.is_model = false;
        if unit == StringUnit::BrokenOff { self.skip_string(At::InString, &[byte]).0 } else { At::InString }
    }

    /// How many bytes of a model's name stand for themselves from here on, so that they can be taken in together.
    fn plain_run(&self, bytes: &[u8]) -> usize {
        if self.escape != Escape::None || self.value.is_in_surrogate() {
            return 0;
        }
        bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..b' ')).unwrap_or(bytes.len())
    }

    fn in_model_run(&mut self, plain: &[u8]) -> At {
        let Err(flaw) = self.value.keep(plain) else { return At::InModel };
        self.mark(flaw);
        self.is_model = false;
        At::InString
    }

    fn open(&mut self, bracket: Bracket, inside: At) -> At {
        if self.nesting.open(bracket) {
            inside
        } else {
            self.mark(Unreadable::TooDeep);
            self.excess = 1;
            At::InDeep
        }
    }

    fn close(&mut self, bracket: Bracket) -> At {
        match (self.nesting.innermost(), bracket) {
            (None, Bracket::Object) => At::End,
            (Some(innermost), _) if innermost == bracket => {
                self.nesting.close();
                At::AfterValue
            }
            _ => self.stop(Unreadable::Syntax),
        }
    }

    /// Goes to the end of a string whose content does not matter any more, and returns what follows it.
    fn skip_string<'a>(&mut self, at: At, piece: &'a [u8]) -> (At, &'a [u8]) {
        let mut rest = piece;
        if self.escape != Escape::None {
            // One byte belongs to the backslash; the digits of `\u` are ordinary characters here.
            let Some((_, tail)) = rest.split_first() else { return (at, rest) };
            self.escape = Escape::None;
            rest = tail;
        }
        match end_of_string(rest) {
            StringEnd::Beyond { in_escape } => {
                if in_escape {
                    self.escape = Escape::Begun;
                }
                (at, &[])
            }
            StringEnd::Before(end) => {
                let next = match at {
                    At::InKeyRest => self.end_key(),
                    _ if self.excess > 0 => At::InDeep,
                    _ => At::AfterValue,
                };
                (next, rest.get(end..).unwrap_or_default())
            }
        }
    }

    /// Goes to the end of a number or a word, and returns what follows it.
    fn skip_scalar<'a>(&mut self, piece: &'a [u8]) -> (At, &'a [u8]) {
        let mut scalar = self.scalar;
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            match scalar.next(*byte) {
                Some(next) => scalar = next,
                None if scalar.is_whole() => return (At::AfterValue, rest),
                None => return (self.stop(Unreadable::Syntax), rest),
            }
            rest = tail;
        }
        self.scalar = scalar;
        (At::InScalar, rest)
    }

    /// Goes on to the next string or out of the depths, and returns what follows that.
    fn skip_deep<'a>(&mut self, piece: &'a [u8]) -> (At, &'a [u8]) {
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            rest = tail;
            match byte {
                b'"' => return (At::InString, rest),
                b'{' | b'[' => match self.excess.checked_add(1) {
                    Some(excess) => self.excess = excess,
                    None => return (self.stop(Unreadable::TooDeep), rest),
                },
                b'}' | b']' => {
                    self.excess = self.excess.saturating_sub(1);
                    if self.excess == 0 {
                        return (At::AfterValue, rest);
                    }
                }
                b',' | b':' => {}
                _ if is_space(*byte) || scalar::may_contain(*byte) => {}
                _ => return (self.stop(Unreadable::Syntax), rest),
            }
        }
        (At::InDeep, rest)
    }

    /// Takes note of a flaw. The first counts, but that a `model` is no string says least: it is passed by one that hides
    /// what a `model` is.
    #[cold]
    fn mark(&mut self, flaw: Unreadable) {
        if matches!(self.flaw, None | Some(Unreadable::ModelNotString)) {
            self.flaw = Some(flaw);
        }
    }

    #[cold]
    fn stop(&mut self, why: Unreadable) -> At {
        self.fault = Some(why);
        At::Stopped
    }
}

#[cfg(test)]
mod tests;
