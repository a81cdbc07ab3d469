//! Control: what the upstream's answers mean, and how much may be granted because of them.

pub mod answer;
pub mod attempts;
pub mod books;
mod chernoff;
pub mod controller;
pub mod history;
pub mod rate;
pub mod retry_after;
pub mod scope;
pub mod strays;
