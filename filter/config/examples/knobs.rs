//! Prints what the configuration takes, as JSON, for checks in other languages: the paths of all fields, and the knobs.

use nimgate_core::limit::rules::{Rules, knobs};
use serde_json::json;

fn main() {
    let knobs: Vec<_> = knobs()
        .map(|knob| {
            json!({
                "path": knob.path,
                "tag": knob.tag,
                "default": knob.value(&Rules::DEFAULT),
                "meaning": knob.meaning(),
                "expert": knob.expert,
            })
        })
        .collect();
    println!("{:#}", json!({"fields": nimgate_config::fields(), "knobs": knobs}));
}
