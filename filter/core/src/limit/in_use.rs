//! Which rules are active.
//!
//! A new configuration's rules become active when Envoy hands the configuration to the filter: the last one wins. Envoy
//! hands over each configuration once, so whoever goes back to an earlier one while it still drains gets its old contexts
//! again, and the filter is told nothing. A connection's age does not tell either: a pooled connection that was idle since
//! before the change looks like a new one. So going back needs a configuration that differs in something: that is what
//! its field `revision` is for.
//!
//! An operator may override the configured rules while Envoy runs (the console's `POST /config`). The override is active
//! until the configuration's own rules change; a configuration that says what it said before is no change.

use super::rules::Rules;

/// The active rules, and the configured ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InUse {
    /// The active rules.
    pub rules: Rules,
    configured: Rules,
    epoch: u32,
}

impl InUse {
    /// These rules, as configured.
    pub fn new(rules: Rules) -> Self {
        Self { rules, configured: rules, epoch: 1 }
    }

    /// All there is, for the record: the active rules, the configured ones, the epoch.
    pub fn from_parts(rules: Rules, configured: Rules, epoch: u32) -> Self {
        Self { rules, configured, epoch }
    }

    /// The rules of the configuration, which are active unless an operator overrode them.
    pub fn configured(&self) -> &Rules {
        &self.configured
    }

    /// How many times rules have become active, from 1.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Makes the rules of a configuration active, whatever overrode the ones before.
    pub fn adopt(&mut self, rules: Rules) {
        self.configured = rules;
        self.override_with(rules);
    }

    /// Overrides the rules of the configuration.
    pub fn override_with(&mut self, rules: Rules) {
        self.rules = rules;
        self.epoch = self.epoch.saturating_add(1);
    }
}
