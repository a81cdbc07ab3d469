//! Knobs in a document: read as strictly as every other field, by the core's table ([`nimgate_core::limit::rules`]).

use super::number::WrittenNumber;
use super::{ConfigError, wrong};
use core::fmt;
use core::marker::PhantomData;
use nimgate_core::limit::rules::{self, GROUPS, Kind, Knob, Rules, Unit};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

/// An object with fields of its own, those of `T`, and knobs.
#[derive(Default)]
pub struct WithKnobs<T> {
    pub own: T,
    pub knobs: Given,
}

/// The knobs that a document gives, in its order.
#[derive(Default)]
pub struct Given {
    /// `None` is null.
    knobs: Vec<(&'static Knob, Option<Written>)>,
    groups: Vec<&'static str>,
}

#[derive(Clone, Copy)]
enum Written {
    Switch(bool),
    /// The word's place in the list.
    Choice(u64),
    Number(WrittenNumber),
}

impl Given {
    /// Whether the document names no knob, and no object that holds knobs.
    pub fn is_empty(&self) -> bool {
        self.knobs.is_empty() && self.groups.is_empty()
    }

    /// Sets in `rules` what the document gives. Where it says null the knob gets its value in `null`, or stays.
    pub fn apply(&self, rules: &mut Rules, null: Option<&Rules>, base: &str) -> Result<(), ConfigError> {
        for (knob, written) in &self.knobs {
            let path = format!("{base}{}", knob.path);
            let word = match (written, null) {
                (Some(written), _) => written.word(knob.kind, &path)?,
                (None, Some(null)) => knob.word(null),
                (None, None) => continue,
            };
            if !rules.set_word(knob.tag, word) {
                return Err(wrong(&path, "is impossible"));
            }
        }
        Ok(())
    }

    /// The rules of a limit that gives these knobs.
    pub fn rules(&self, base: &str) -> Result<Rules, ConfigError> {
        let mut rules = Rules::DEFAULT;
        self.apply(&mut rules, None, base)?;
        for knob in rules::knobs() {
            let is_given = self.knobs.iter().any(|(given, written)| given.tag == knob.tag && written.is_some());
            if let Some(derived) = knob.derived.filter(|_| !is_given)
                && !rules.set_word(knob.tag, (derived.word)(&rules))
            {
                return Err(wrong(&format!("{base}{}", knob.path), "is missing"));
            }
        }
        check_together(&rules, base)?;
        Ok(rules)
    }

    fn read<'de, A: MapAccess<'de>>(&mut self, knob: &'static Knob, map: &mut A) -> Result<(), A::Error> {
        if self.knobs.iter().any(|(given, _)| given.tag == knob.tag) {
            return Err(duplicate(knob.place().1));
        }
        let written = map.next_value_seed(KnobValue(knob.kind))?;
        self.knobs.push((knob, written));
        Ok(())
    }

    fn read_group<'de, A: MapAccess<'de>>(&mut self, group: &'static str, map: &mut A) -> Result<(), A::Error> {
        if self.groups.contains(&group) {
            return Err(duplicate(group));
        }
        self.groups.push(group);
        map.next_value_seed(GroupValue { group, given: self })
    }
}

impl Written {
    fn word(self, kind: Kind, path: &str) -> Result<u64, ConfigError> {
        match (self, kind) {
            (Self::Number(number), Kind::Number(takes)) => check_number(number, takes, path),
            (Self::Number(_), _) => Err(wrong(path, "must not be a number")),
            (Self::Switch(on), _) => Ok(u64::from(on)),
            (Self::Choice(at), _) => Ok(at),
        }
    }
}

/// What no knob can say of itself: which values fit together. `base` is empty in a change, and the limit's path and a dot
/// in a configuration.
pub fn check_together(rules: &Rules, base: &str) -> Result<(), ConfigError> {
    let is_change = base.is_empty();
    let (rate, window_s) = (rules.retreat.base.as_rpm(), rules.window.as_secs_ceil());
    let milli = rules.window_quota_milli();
    if window_s > 0 && milli < 1_000 {
        return Err(wrong(
            &format!("{base}window_s"),
            &format!(
                "must be long enough for one request at {rate} requests per minute, or 0 for no window, got {window_s}"
            ),
        ));
    }
    // Only whole requests go, so the rest of a window's quota is lost in each window.
    let whole = milli / 1_000;
    if window_s > 0 && whole.saturating_mul(10_000) < milli.saturating_mul(9) {
        return Err(wrong(
            &format!("{base}window_s"),
            &format!(
                "must make a whole number of requests, or at most a tenth more: {window_s} s at {rate} requests per \
                 minute make {}.{:02}, and only {whole} could go",
                whole,
                milli % 1_000 / 10
            ),
        ));
    }
    let floor = rules.retreat.floor.as_rpm();
    if rules.retreat.floor > rules.retreat.base {
        // One sentence for all ways to get there: a lower rate, or a higher floor.
        let got = if is_change { "and would be" } else { "got" };
        return Err(wrong(
            &format!("{base}retreat.floor_rpm"),
            &format!("must not be above rate_rpm ({rate}), {got} {floor}"),
        ));
    }
    Ok(())
}

/// A number that is one of those that are taken, as a word.
pub fn check_number(number: WrittenNumber, takes: rules::Number, path: &str) -> Result<u64, ConfigError> {
    let or_off = if takes.zero_is_off { ", or 0 to switch it off" } else { "" };
    let out = |bound: &str, word: u64| {
        let (value, unit) = match takes.unit {
            Unit::Seconds => ((word as f64 / 1e6).to_string(), " seconds"),
            unit => (word.checked_div(unit.scale()).unwrap_or(0).to_string(), ""),
        };
        Err(wrong(path, &format!("must be at {bound} {value}{unit}{or_off}, got {number}")))
    };
    if takes.zero_is_off && number.whole() == Some(0) {
        return Ok(0);
    }
    if takes.unit == Unit::Seconds {
        let micros = number.float() * 1e6;
        return match micros {
            _ if micros < takes.min as f64 => out("least", takes.min),
            _ if micros > takes.max as f64 => out("most", takes.max),
            // In range, so the conversion is exact to the millisecond.
            _ => Ok(((number.float() * 1e3) as u64).saturating_mul(1_000)),
        };
    }
    let Some(value) = number.whole() else {
        return Err(wrong(path, &format!("must be a whole number, got {number}")));
    };
    match u64::try_from(value).ok().and_then(|value| value.checked_mul(takes.unit.scale())) {
        Some(word) if word < takes.min => out("least", takes.min),
        Some(word) if word <= takes.max => Ok(word),
        None if value < 0 => out("least", takes.min),
        Some(_) | None => out("most", takes.max),
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for WithKnobs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = WithKnobs<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WithKnobs<T>, A::Error> {
                let mut knobs = Given::default();
                let rest = Rest { map, own: field_names::<T>(), knobs: &mut knobs };
                let own = T::deserialize(de::value::MapAccessDeserializer::new(rest))?;
                Ok(WithKnobs { own, knobs })
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// What of an object is left when its knobs are taken out.
struct Rest<'a, A> {
    map: A,
    own: &'static [&'static str],
    knobs: &'a mut Given,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Rest<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let mut seed = seed;
        loop {
            seed = match self.map.next_key_seed(Name { group: "", own: self.own, seed })? {
                None => return Ok(None),
                Some(Named::Own(value)) => return Ok(Some(value)),
                Some(Named::Knob(knob, seed)) => {
                    self.knobs.read(knob, &mut self.map)?;
                    seed
                }
                Some(Named::Group(group, seed)) => {
                    self.knobs.read_group(group, &mut self.map)?;
                    seed
                }
            };
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// Reads a name. One that is not known is refused here and not later, so that the refusal's path ends with it.
struct Name<K> {
    group: &'static str,
    own: &'static [&'static str],
    /// For a name that is none of ours; given back otherwise.
    seed: K,
}

enum Named<T, K> {
    Own(T),
    Knob(&'static Knob, K),
    Group(&'static str, K),
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for Name<K> {
    type Value = Named<K::Value, K>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for Name<K> {
    type Value = Named<K::Value, K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some(knob) = rules::knobs_in(self.group).find(|knob| knob.place().1 == name) {
            return Ok(Named::Knob(knob, self.seed));
        }
        let groups = GROUPS.into_iter().filter(|group| self.group.is_empty() && !group.is_empty());
        if let Some(group) = groups.clone().find(|group| *group == name) {
            return Ok(Named::Group(group, self.seed));
        }
        if self.own.contains(&name) {
            return self.seed.deserialize(de::value::StrDeserializer::new(name)).map(Named::Own);
        }
        let knobs = rules::knobs_in(self.group).map(|knob| knob.place().1);
        let known: Vec<String> =
            self.own.iter().copied().chain(knobs).chain(groups).map(|name| format!("`{name}`")).collect();
        Err(E::custom(format_args!("unknown field `{name}`, expected one of {}", known.join(", "))))
    }
}

struct GroupValue<'a> {
    group: &'static str,
    given: &'a mut Given,
}

impl<'de> DeserializeSeed<'de> for GroupValue<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for GroupValue<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.given.knobs.extend(rules::knobs_in(self.group).map(|knob| (knob, None)));
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(named) = map.next_key_seed(Name { group: self.group, own: &[], seed: PhantomData::<()> })? {
            if let Named::Knob(knob, _) = named {
                self.given.read(knob, &mut map)?;
            }
        }
        Ok(())
    }
}

struct KnobValue(Kind);

impl<'de> DeserializeSeed<'de> for KnobValue {
    type Value = Option<Written>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.0 {
            Kind::Number(_) => Ok(Option::deserialize(deserializer)?.map(Written::Number)),
            Kind::Switch => Ok(Option::deserialize(deserializer)?.map(Written::Switch)),
            Kind::Choice(words) => {
                let Some(given) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
                let at = words.iter().position(|word| *word == given).and_then(|at| u64::try_from(at).ok());
                let listed: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                let unknown =
                    || D::Error::custom(format_args!("unknown variant `{given}`, expected {}", listed.join(" or ")));
                at.map(|at| Some(Written::Choice(at))).ok_or_else(unknown)
            }
        }
    }
}

fn duplicate<E: Error>(name: &str) -> E {
    E::custom(format_args!("duplicate field `{name}`"))
}

/// The names of a struct's fields, as its derived [`Deserialize`] knows them.
pub fn field_names<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct FieldNames<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for FieldNames<'_> {
        type Error = de::value::Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Error::custom("there is nothing to read"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names: &'static [&'static str] = &[];
    // It always fails: the names are known by then.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}
