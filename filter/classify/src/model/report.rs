//! What a scan can say about a body.

/// What is certain about a body from its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looks {
    /// Too little has come: only white space, or not yet the few bytes that tell the encoding.
    Undecided,
    /// It begins like a JSON object, in UTF-8 or in an encoding that is not read here.
    Json,
    /// It begins like another JSON value, in which no upstream finds a `model`.
    OtherJson,
    /// It begins like no JSON at all.
    NotJson,
}

/// A body that was read to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// How many top-level keys were `model`; each one's value was reported.
    pub models: u32,
}

/// Why a body could not be read, or its `model` not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// There is nothing but white space.
    Empty,
    /// It does not begin like any JSON.
    NotJson,
    /// It breaks the rules of JSON where they matter here.
    Syntax,
    /// A `model` is not a string.
    ModelNotString,
    /// A `model` holds invalid UTF-8, half a surrogate pair, a bare control character or an unknown escape.
    ModelUnreadable,
    /// A `model` is longer than [`MODEL_BYTES_MAX`](super::MODEL_BYTES_MAX).
    ModelTooLong,
    /// More than [`DEPTH_MAX`](super::DEPTH_MAX) brackets are open at once below the top-level object. Reading goes on, counting brackets
    /// without regard to their kind, so that the `model` of a body that Node or Go would accept is still reported.
    TooDeep,
    /// It is in UTF-16 or UTF-32, which FastAPI accepts and others don't.
    Encoding,
    /// Something follows the object; some upstreams stop at its end and never see that.
    TrailingData,
    /// It ends before the object does.
    Truncated,
}

impl Unreadable {
    /// Whether only a `model` is wrong, in a document that is read well otherwise.
    pub(crate) const fn is_about_model(self) -> bool {
        matches!(self, Self::ModelNotString | Self::ModelUnreadable | Self::ModelTooLong)
    }

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotJson => "not_json",
            Self::Syntax => "syntax",
            Self::ModelNotString => "model_not_string",
            Self::ModelUnreadable => "model_unreadable",
            Self::ModelTooLong => "model_too_long",
            Self::TooDeep => "too_deep",
            Self::Encoding => "encoding",
            Self::TrailingData => "trailing_data",
            Self::Truncated => "truncated",
        }
    }
}
