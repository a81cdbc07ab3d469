//! What an operator can set of a limit, in one table.
//!
//! An entry of [`table!`] is all that a new setting (a *knob*) needs besides its use: the field in the rules, its
//! default, its number in the record, its name in the JSON, its range and its description. The configuration, `POST
//! /config`, `/status`, the record, the dashboard's form, `envoy/console-openapi.yaml` and the README's tables are made
//! from it. What matches a request and which key it gets are no knobs: they can't change while requests wait.
//!
//! Each knob's value is one `u64`, its *word*: times in microseconds, rates in thousandths of a request per minute,
//! choices by their place in the list, 0 for what is off.

use crate::priority::{Lane, Priority};
use crate::supply::window::WindowRules;
use crate::units::{Micros, MilliRpm, RATE_RPM_MAX};

/// What is known of a knob besides its value.
#[derive(Clone, Copy, Debug)]
pub struct Knob {
    /// Its number in the record. A number is never changed and never given to another knob.
    pub tag: u16,
    /// Its name in a limit's JSON, such as `rate_rpm` or `retreat.floor_rpm`.
    pub path: &'static str,
    /// What it is called in the dashboard's form.
    pub label: &'static str,
    /// What it does, in Markdown.
    meaning: &'static str,
    /// Which values it takes.
    pub kind: Kind,
    /// Whether its default suits nearly everyone, so that it is listed apart.
    pub expert: bool,
    /// A default that depends on other knobs.
    pub derived: Option<Derived>,
}

/// A default that depends on other knobs.
#[derive(Clone, Copy, Debug)]
pub struct Derived {
    /// The word.
    pub word: fn(&Rules) -> u64,
    /// The rule, in Markdown.
    pub words: &'static str,
}

/// Which values a knob takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A number.
    Number(Number),
}

/// The numbers that a knob takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Number {
    /// In what it is written.
    pub unit: Unit,
    /// The least word.
    pub min: u64,
    /// The greatest word.
    pub max: u64,
    /// Whether 0 is taken too, and switches off what the knob is about.
    pub zero_is_off: bool,
}

/// The unit in which a number is written in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Things, counted.
    Count,
    /// Whole requests per minute.
    Rpm,
    /// Whole seconds.
    WholeSeconds,
    /// Seconds, fractions allowed down to a millisecond.
    Seconds,
    /// Whole milliseconds.
    Millis,
}

/// A knob's value as JSON has it.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Of a switch.
    Switch(bool),
    /// Of a choice.
    Choice(&'static str),
    /// Of a number that is always whole.
    Whole(u64),
    /// Of a number that may have a fraction.
    Fraction(f64),
    /// `null`: it is off.
    Off,
}

impl Unit {
    /// How much of a word is 1 in JSON.
    pub const fn scale(self) -> u64 {
        match self {
            Self::Count => 1,
            Self::Rpm | Self::Millis => 1_000,
            Self::WholeSeconds | Self::Seconds => 1_000_000,
        }
    }

    /// A word as JSON has it.
    pub fn value(self, word: u64) -> Value {
        match self {
            Self::Seconds => Value::Fraction(Micros::new(word).as_secs_f64()),
            // Rounded up, so that what is little never looks like nothing.
            _ => Value::Whole(word.div_ceil(self.scale())),
        }
    }
}

impl Kind {
    const fn number(unit: Unit, min: u64, max: u64) -> Number {
        let scale = unit.scale();
        Number { unit, min: min.saturating_mul(scale), max: max.saturating_mul(scale), zero_is_off: false }
    }

    const fn count(min: u32, max: u32) -> Self {
        Self::Number(Self::number(Unit::Count, min as u64, max as u64))
    }

    const fn rpm() -> Self {
        Self::Number(Self::number(Unit::Rpm, 1, RATE_RPM_MAX as u64))
    }

    const fn whole_seconds() -> Self {
        Self::Number(Self::number(Unit::WholeSeconds, 0, TIME_S_MAX))
    }

    const fn millis(max: u64) -> Self {
        Self::Number(Self::number(Unit::Millis, 0, max))
    }

    const fn seconds() -> Self {
        Self::Number(Number { min: 1_000, ..Self::number(Unit::Seconds, 0, TIME_S_MAX) })
    }

    const fn or_off(self) -> Self {
        match self {
            Self::Number(number) => Self::Number(Number { zero_is_off: true, ..number }),
            _ => self,
        }
    }

    /// Whether a word is one of the knob's.
    pub const fn takes(self, word: u64) -> bool {
        match self {
            Self::Switch => word <= 1,
            Self::Choice(words) => word < words.len() as u64,
            Self::Number(number) => (number.min <= word && word <= number.max) || (number.zero_is_off && word == 0),
        }
    }

    /// A word as JSON has it.
    pub fn value(self, word: u64) -> Value {
        match self {
            Self::Switch => Value::Switch(word != 0),
            Self::Choice(words) => {
                usize::try_from(word).ok().and_then(|at| words.get(at)).map_or(Value::Off, |word| Value::Choice(word))
            }
            Self::Number(Number { zero_is_off: true, .. }) if word == 0 => Value::Off,
            Self::Number(number) => number.unit.value(word),
        }
    }
}

impl Knob {
    /// The object inside a limit's that holds it, or an empty name; and its name there.
    pub fn place(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }

    /// What it does, in Markdown.
    pub fn meaning(&self) -> &'static str {
        self.meaning.trim_ascii()
    }

    /// Its word in `rules`.
    pub fn word(&self, rules: &Rules) -> u64 {
        rules.word(self.tag).unwrap_or(0)
    }

    /// Its value in `rules`.
    pub fn value(&self, rules: &Rules) -> Value {
        self.kind.value(self.word(rules))
    }
}

/// A field that can be written as a word.
trait Word: Copy {
    fn word(self) -> u64;
    fn from_word(word: u64) -> Self;
}

impl Word for bool {
    fn word(self) -> u64 {
        u64::from(self)
    }
    fn from_word(word: u64) -> Self {
        word != 0
    }
}

impl Word for u32 {
    fn word(self) -> u64 {
        u64::from(self)
    }
    fn from_word(word: u64) -> Self {
        Self::try_from(word).unwrap_or(Self::MAX)
    }
}

impl Word for MilliRpm {
    fn word(self) -> u64 {
        u64::from(self.get())
    }
    fn from_word(word: u64) -> Self {
        Self::new(u32::from_word(word))
    }
}

impl Word for Micros {
    fn word(self) -> u64 {
        self.get()
    }
    fn from_word(word: u64) -> Self {
        Self::new(word)
    }
}

impl<T: Word> Word for Option<T> {
    fn word(self) -> u64 {
        self.map_or(0, T::word)
    }
    fn from_word(word: u64) -> Self {
        (word > 0).then(|| T::from_word(word))
    }
}

/// Makes a struct of rules from its part of the table. An entry is
///
/// ```text
/// /// What it does: the field's documentation, and the README's.
/// field: Type = default, or(default that depends on other knobs, "its rule");
///     TAG "name_in_json" Kind, ["Name in the form"], expert;
/// ```
///
/// and after `also` come fields that are no knobs.
macro_rules! table {
    (
        $(#[$about:meta])*
        pub struct $Struct:ident {
            $(
                $(#[doc = $meaning:literal])+
                $field:ident: $Type:ty = $default:expr $(, or($derived:expr, $derived_words:literal))?;
                $tag:literal $path:literal $kind:expr, [$label:literal] $(, $expert:ident)?;
            )+
            $(also { $($(#[doc = $more_about:literal])+ $more:ident: $More:ty = $more_default:expr,)+ })?
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $Struct {
            $($(#[doc = $meaning])+ pub $field: $Type,)+
            $($($(#[doc = $more_about])+ pub $more: $More,)+)?
        }

        impl $Struct {
            /// What holds where nothing is configured.
            pub const DEFAULT: Self = Self { $($field: $default,)+ $($($more: $more_default,)+)? };

            /// This part of the table.
            const KNOBS: &'static [Knob] = &[$(Knob {
                tag: $tag,
                path: $path,
                label: $label,
                meaning: concat!($($meaning),+),
                kind: $kind,
                expert: table!(@is $($expert)?),
                derived: table!(@derived $($derived, $derived_words)?),
            }),+];

            fn own_word(&self, tag: u16) -> Option<u64> {
                match tag {
                    $($tag => Some(self.$field.word()),)+
                    _ => None,
                }
            }

            /// `None` if there is no such knob here, `Some(false)` if it does not take this word.
            fn set_own(&mut self, tag: u16, word: u64) -> Option<bool> {
                match tag {
                    $($tag => {
                        const KIND: Kind = $kind;
                        let taken = KIND.takes(word);
                        if taken {
                            self.$field = Word::from_word(word);
                        }
                        Some(taken)
                    })+
                    _ => None,
                }
            }

            fn each_own(&self, field: &mut impl FnMut(u16, u64)) {
                $(field($tag, self.$field.word());)+
            }
        }
    };
    (@is) => { false };
    (@is expert) => { true };
    (@derived) => { None };
    (@derived $word:expr, $words:literal) => { Some(Derived { word: $word, words: $words }) };
}

// A tag once given is never given again: the tests hold a list of them. The highest so far is 20.

table! {
    /// The configured rate, and how 429s reduce it.
    pub struct RetreatRules {
        /// requests per minute that the upstream allows
        base: MilliRpm = MilliRpm::from_rpm(40);
            1 "rate_rpm" Kind::rpm(), ["Requests per minute"];
        /// whether 429s slow the limit down
        enabled: bool = true;
            2 "retreat.enabled" Kind::Switch, ["Retreat on 429s"];
        /// the lowest rate that a retreat reaches, at most `rate_rpm`
        floor: MilliRpm = MilliRpm::from_rpm(1);
            3 "retreat.floor_rpm" Kind::rpm(), ["Lowest rate of a retreat"];
        /// the longest `Retry-After` of the upstream that is obeyed
        retry_after_max: Micros = Micros::from_secs(300);
            4 "retreat.retry_after_max_s" Kind::whole_seconds(), ["Longest Retry-After, s"], expert;
        /// whether a 503 with `Retry-After` is taken for a 429
        obey_503: bool = false;
            5 "retreat.obey_503" Kind::Switch, ["503 with Retry-After is a 429"], expert;
        // The default: one refused request in a hundred at 25 a minute, and back at a raised limit within eight windows.
        /// windows (`window_s`) between two tries to go faster than the upstream is known to allow: more are fewer 429s,
        /// and a limit that rises is noticed later
        probe_windows: u32 = 5;
            6 "retreat.probe_windows" Kind::count(1, 1_000), ["Windows between probes"], expert;
        also {
            /// The window in which the upstream counts, or a minute, in which rates are given, if it counts in none: all
            /// spans of the retreat are parts or multiples of it. It follows from `window_s`.
            window: Micros = MINUTE,
        }
    }
}

table! {
    /// How long a request may wait in each lane.
    pub struct Timeouts {
        /// longest wait of `low`
        low: Micros = Micros::from_secs(30);
            7 "low_priority_timeout_s" Kind::seconds(), ["Longest wait of low, s"];
        /// longest wait of the others (outside the queue: 30 s)
        others: Micros = Micros::from_secs(120);
            8 "request_timeout_s" Kind::seconds(), ["Longest wait, s"];
        /// longest wait of `urgent`, in place of `request_timeout_s`
        own_urgent: Option<Micros> = None;
            9 "max_wait_s.urgent" Kind::seconds().or_off(), ["Longest wait of urgent alone, s"], expert;
        /// longest wait of `high`, in place of `request_timeout_s`
        own_high: Option<Micros> = None;
            10 "max_wait_s.high" Kind::seconds().or_off(), ["Longest wait of high alone, s"], expert;
        /// longest wait of `normal`, in place of `request_timeout_s`
        own_normal: Option<Micros> = None;
            11 "max_wait_s.normal" Kind::seconds().or_off(), ["Longest wait of normal alone, s"], expert;
        /// longest wait of `low`, in place of `low_priority_timeout_s`
        own_low: Option<Micros> = None;
            12 "max_wait_s.low" Kind::seconds().or_off(), ["Longest wait of low alone, s"], expert;
    }
}

table! {
    /// The settings of a limit that all workers share. They lie in the ledger, so that new ones hold for all at once.
    pub struct Rules {
        /// how many may go at once after a quiet time
        capacity: u32 = 4, or(tenth_of_rate, "a tenth of `rate_rpm`, at least 1");
            13 "bucket_capacity" Kind::count(1, RATE_RPM_MAX), ["Bucket capacity"];
        /// no window of so many seconds, however it lies, holds more requests than `rate_rpm` makes of it, rounded down
        /// (refused if that loses more than a tenth of them); 0 is off
        window: Micros = MINUTE;
            14 "window_s" Kind::whole_seconds(), ["Window, s (0 is off)"];
        /// how much longer than `window_s` a request counts, since it may have been slower on its way to the upstream than
        /// one that goes now; so much of each window is lost
        window_margin: Micros = Micros::from_millis(1_000);
            15 "window_margin_ms" Kind::millis(60_000), ["Margin of the window, ms"], expert;
        /// the most requests that are with the upstream at once
        max_in_flight: Option<u32> = None;
            16 "max_in_flight" Kind::count(1, 1_000_000).or_off(), ["Requests at once (0 is off)"];
        /// `shadow`: hold and refuse nothing, but show what would have been
        shadow: bool = false;
            17 "mode" Kind::Choice(&["enforce", "shadow"]), ["Mode"];
        /// requests that wait at once, over all workers
        queue_max: u32 = 1_000;
            18 "queue_max_size" Kind::count(0, 1_000_000), ["Queue size"];
        /// `reject`: 503. `passthrough`: wait outside the queue, after everyone in it; at most `queue_max_size` more
        may_fall_back: bool = false;
            19 "queue_full_policy" Kind::Choice(&["reject", "passthrough"]), ["When the queue is full"];
        /// a request is never passed by one a level more urgent that comes more than so many seconds after it (two levels: twice
        /// as many), so that `low` can't starve
        aging: Option<Micros> = None;
            20 "aging_s" Kind::seconds().or_off(), ["Ageing, s (0 is off)"];
        also {
            /// How long requests may wait.
            timeouts: Timeouts = Timeouts::DEFAULT,
            /// The configured rate, and how 429s reduce it.
            retreat: RetreatRules = RetreatRules::DEFAULT,
        }
    }
}

/// The objects inside a limit's JSON that hold knobs, the limit's own first. Documents list knobs in this order.
pub const GROUPS: [&str; 3] = ["", "max_wait_s", "retreat"];

/// All knobs, group by group.
pub fn knobs() -> impl Iterator<Item = &'static Knob> {
    GROUPS.into_iter().flat_map(knobs_in)
}

/// The knobs of one group.
pub fn knobs_in(group: &'static str) -> impl Iterator<Item = &'static Knob> {
    let all = RetreatRules::KNOBS.iter().chain(Rules::KNOBS).chain(Timeouts::KNOBS);
    all.filter(move |knob| knob.place().0 == group)
}

impl Rules {
    /// How many fields [`Rules::encode_fields`] hands out.
    pub const FIELDS: u32 = (Self::KNOBS.len() as u32)
        .saturating_add(Timeouts::KNOBS.len() as u32)
        .saturating_add(RetreatRules::KNOBS.len() as u32);

    /// A knob's word; `None` if there is no such knob.
    pub fn word(&self, tag: u16) -> Option<u64> {
        self.own_word(tag).or_else(|| self.timeouts.own_word(tag)).or_else(|| self.retreat.own_word(tag))
    }

    /// Sets a knob. Says whether it takes this word; one that is not known changes nothing and takes every word.
    #[must_use]
    pub fn set_word(&mut self, tag: u16, word: u64) -> bool {
        let taken = self
            .set_own(tag, word)
            .or_else(|| self.timeouts.set_own(tag, word))
            .or_else(|| self.retreat.set_own(tag, word));
        self.retreat.window = if self.window == Micros::ZERO { MINUTE } else { self.window };
        taken.unwrap_or(true)
    }

    /// Hands out each knob's tag and word, for a record. [`Rules::decode_field`] on [`Rules::DEFAULT`] takes them back.
    pub fn encode_fields(&self, mut field: impl FnMut(u16, u64)) {
        self.retreat.each_own(&mut field);
        self.each_own(&mut field);
        self.timeouts.each_own(&mut field);
    }

    /// Takes up one field of a record. A tag that is not known is skipped, and a knob whose tag is missing keeps its
    /// default. Says whether the field is possible; if not, the record is none of ours.
    #[must_use]
    pub fn decode_field(&mut self, tag: u16, word: u64) -> bool {
        self.set_word(tag, word)
    }

    /// What the window guard holds to: as many grants in each window as the configured rate makes of it, rounded down,
    /// and at least 1. Exact for every window and rate that can be configured.
    pub fn window_rules(&self) -> WindowRules {
        let quota = u32::try_from(self.window_quota_milli() / 1_000).unwrap_or(u32::MAX).max(1);
        WindowRules { window: self.window, quota, margin: self.window_margin }
    }

    /// The requests that the configured rate makes of a window, in thousandths, rounded down.
    pub fn window_quota_milli(&self) -> u64 {
        // Minutes and the rest apart, so that a day at a million requests per minute does not overflow.
        let rate = u64::from(self.retreat.base.get());
        let (minutes, rest) = (self.window.get() / MINUTE_US, self.window.get() % MINUTE_US);
        minutes.saturating_mul(rate).saturating_add(rest.saturating_mul(rate) / MINUTE_US)
    }
}

impl Timeouts {
    /// The longest wait in `lane`.
    pub fn of(&self, lane: Lane) -> Micros {
        match lane {
            Lane::Queued(level) | Lane::Fallback(level @ Priority::Low) => {
                self.own(level).unwrap_or(if level == Priority::Low { self.low } else { self.others })
            }
            Lane::Fallback(level) => self.own(level).unwrap_or(FALLBACK_WAIT_MAX).min(FALLBACK_WAIT_MAX),
        }
    }

    /// The longest wait of any level.
    pub fn longest(&self) -> Micros {
        Priority::ALL.into_iter().map(|level| self.of(Lane::Queued(level))).max().unwrap_or_default()
    }

    /// The name of the knob that bounds a level's wait.
    pub fn setting(&self, level: Priority) -> &'static str {
        match (level, self.own(level)) {
            (Priority::Urgent, Some(_)) => "max_wait_s.urgent",
            (Priority::High, Some(_)) => "max_wait_s.high",
            (Priority::Normal, Some(_)) => "max_wait_s.normal",
            (Priority::Low, Some(_)) => "max_wait_s.low",
            (Priority::Low, None) => "low_priority_timeout_s",
            (_, None) => "request_timeout_s",
        }
    }

    fn own(&self, level: Priority) -> Option<Micros> {
        match level {
            Priority::Urgent => self.own_urgent,
            Priority::High => self.own_high,
            Priority::Normal => self.own_normal,
            Priority::Low => self.own_low,
        }
    }
}

fn tenth_of_rate(rules: &Rules) -> u64 {
    u64::from((rules.retreat.base.as_rpm() / 10).max(1))
}

/// How long requests other than `low` wait outside a full queue, as in the Python sidecar.
pub const FALLBACK_WAIT_MAX: Micros = Micros::from_secs(30);

const MINUTE_US: u64 = 60_000_000;
const MINUTE: Micros = Micros::new(MINUTE_US);

/// The longest time that can be configured, in seconds: a day.
const TIME_S_MAX: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// Every tag that was ever given, in its order. A record of an older module may hold any of them.
    const TAGS: [&str; 20] = [
        "rate_rpm",
        "retreat.enabled",
        "retreat.floor_rpm",
        "retreat.retry_after_max_s",
        "retreat.obey_503",
        "retreat.probe_windows",
        "low_priority_timeout_s",
        "request_timeout_s",
        "max_wait_s.urgent",
        "max_wait_s.high",
        "max_wait_s.normal",
        "max_wait_s.low",
        "bucket_capacity",
        "window_s",
        "window_margin_ms",
        "max_in_flight",
        "mode",
        "queue_max_size",
        "queue_full_policy",
        "aging_s",
    ];
    /// A word that is none of `knob`'s defaults.
    fn another(knob: &Knob) -> u64 {
        let words = match knob.kind {
            Kind::Switch => vec![0, 1],
            Kind::Choice(words) => (0..words.len() as u64).collect(),
            Kind::Number(number) => vec![number.min, number.max],
        };
        *words.iter().find(|word| **word != knob.word(&Rules::DEFAULT)).unwrap()
    }

    #[test]
    fn tags_are_given_once_and_never_changed() {
        let mut given: Vec<u16> = knobs().map(|knob| knob.tag).collect();
        given.sort_unstable();
        assert!(given.windows(2).all(|pair| pair[0] < pair[1]), "{given:?}");
        for knob in knobs() {
            let listed = TAGS.get(usize::from(knob.tag) - 1).copied();
            assert_eq!(listed, Some(knob.path), "tag {} is another's, or is to be added to TAGS", knob.tag);
        }
        assert_eq!(knobs().count(), Rules::FIELDS as usize, "a knob's group is not in GROUPS");
    }

    #[test]
    fn defaults_are_possible_and_every_knob_survives_the_record() {
        let mut rules = Rules::DEFAULT;
        for knob in knobs() {
            assert!(knob.kind.takes(knob.word(&rules)), "{}", knob.path);
            assert!(rules.set_word(knob.tag, another(knob)));
            assert_eq!(knob.word(&rules), another(knob), "{}", knob.path);
        }
        let mut read = Rules::DEFAULT;
        let mut fields = Vec::new();
        rules.encode_fields(|tag, word| fields.push((tag, word)));
        assert_eq!(fields.len(), Rules::FIELDS as usize);
        for (tag, word) in fields {
            assert!(read.decode_field(tag, word));
        }
        assert_eq!(read, rules);
    }

    #[test]
    fn a_record_may_hold_more_or_less_but_nothing_impossible() {
        let mut rules = Rules::DEFAULT;
        assert!(rules.decode_field(60_000, u64::MAX));
        assert_eq!(rules, Rules::DEFAULT);
        for (tag, word) in [(1, 0), (1, u64::MAX), (2, 2), (13, 0), (14, 86_401_000_000), (17, 2), (20, 999)] {
            assert!(!rules.decode_field(tag, word), "{tag}: {word}");
        }
        assert_eq!(rules, Rules::DEFAULT);
        assert!(rules.decode_field(20, 0) && rules.aging.is_none());
    }

    #[test]
    fn the_retreat_counts_in_the_windows_of_the_limit() {
        let mut rules = Rules::DEFAULT;
        assert!(rules.set_word(14, 10_000_000));
        assert_eq!(rules.retreat.window, Micros::from_secs(10));
        assert!(rules.set_word(14, 0));
        assert_eq!(rules.retreat.window, MINUTE);
    }

    #[test]
    fn a_quota_is_exact() {
        for (window_s, rpm, quota) in
            [(60, 40, 40), (1, 100, 1), (1, 119, 1), (1, 120, 2), (90, 41, 61), (86_400, 1_000_000, 1_440_000_000)]
        {
            let mut rules = Rules { window: Micros::from_secs(window_s), ..Rules::DEFAULT };
            rules.retreat.base = MilliRpm::from_rpm(rpm);
            assert_eq!(rules.window_rules().quota, quota, "{window_s} s at {rpm}");
        }
    }

    #[test]
    fn a_levels_own_wait_goes_before_the_common_one() {
        let common = Timeouts { low: Micros::from_secs(7), others: Micros::from_secs(50), ..Timeouts::DEFAULT };
        let secs = |timeouts: &Timeouts, lane| timeouts.of(lane).as_secs_ceil();
        assert_eq!(Priority::ALL.map(|level| secs(&common, Lane::Queued(level))), [50, 50, 50, 7]);
        assert_eq!(Priority::ALL.map(|level| secs(&common, Lane::Fallback(level))), [30, 30, 30, 7]);
        assert_eq!(common.setting(Priority::Low), "low_priority_timeout_s");
        let own = Timeouts {
            own_urgent: Some(Micros::from_secs(5)),
            own_normal: Some(Micros::from_secs(200)),
            own_low: Some(Micros::from_secs(9)),
            ..common
        };
        assert_eq!(Priority::ALL.map(|level| secs(&own, Lane::Queued(level))), [5, 50, 200, 9]);
        assert_eq!(Priority::ALL.map(|level| secs(&own, Lane::Fallback(level))), [5, 30, 30, 9]);
        assert_eq!(
            Priority::ALL.map(|level| own.setting(level)),
            ["max_wait_s.urgent", "request_timeout_s", "max_wait_s.normal", "max_wait_s.low"]
        );
        assert_eq!(own.longest(), Micros::from_secs(200));
    }
}
