//! One limit: its rules, the shared ledger with the grant rule, and the ledger's record in shared data.

pub mod form;
pub mod home;
pub mod in_use;
pub mod ledger;
pub mod record;
pub mod rules;
