//! Control: what the upstream's answers mean, and how much may be granted because of them.

pub mod answer;
pub mod attempts;
pub mod books;
pub mod controller;
pub mod rate;
pub mod retry_after;
pub mod scope;
