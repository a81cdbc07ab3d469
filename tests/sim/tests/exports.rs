//! What the module exports is what the filter implements: `filter/wasm/exports.txt`, from which the linker takes it, against
//! the sources. A callback that is implemented and not exported would never be made; one that is exported and not
//! implemented has Envoy enter the VM for nothing. (`scripts/lib/check_wasm.py` compares the list with the module itself.)

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use syn::{ImplItem, Item};

/// What every module of the SDK has, whatever it implements.
const ALWAYS: [&str; 4] = ["_initialize", "malloc", "memory", "proxy_abi_version_0_2_1"];
/// The SDK's traits whose functions are callbacks.
const TRAITS: [&str; 4] = ["Context", "RootContext", "HttpContext", "StreamContext"];

fn filter(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../filter/wasm").join(path)
}

/// The functions that are implemented of the SDK's traits, anywhere in the module's sources.
fn implemented() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(filter("src")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.extension().and_then(|ending| ending.to_str()), Some("rs"), "{path:?} is not looked into");
        let file = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for item in file.items {
            let Item::Impl(of) = item else { continue };
            let Some((_, name, _)) = of.trait_ else { continue };
            let name = name.segments.last().unwrap().ident.to_string();
            if TRAITS.contains(&name.as_str()) {
                found.extend(of.items.iter().filter_map(|item| match item {
                    ImplItem::Fn(function) => Some(function.sig.ident.to_string()),
                    _ => None,
                }));
            }
        }
    }
    found
}

/// The exports through which the host calls a function of the SDK's traits.
fn exports_of(function: &str) -> Vec<String> {
    match function {
        // The SDK's own question.
        "get_type" => Vec::new(),
        "create_http_context" => vec!["proxy_on_context_create".to_owned(), "proxy_on_delete".to_owned()],
        _ => {
            let event =
                function.strip_prefix("on_").unwrap_or_else(|| panic!("{function} is no callback that is known"));
            let of_a_message = event.starts_with("http_request_") || event.starts_with("http_response_");
            let event = event.strip_prefix("http_").filter(|_| of_a_message).unwrap_or(event);
            vec![format!("proxy_on_{event}")]
        }
    }
}

#[test]
fn callbacks_are_exported_if_and_only_if_they_are_implemented() {
    let functions = implemented();
    assert!(functions.contains("on_http_request_body") && functions.contains("on_tick"), "{functions:?}");
    let mut expected: BTreeSet<String> = functions.iter().flat_map(|function| exports_of(function)).collect();
    expected.extend(ALWAYS.map(str::to_owned));
    let listed = std::fs::read_to_string(filter("exports.txt")).unwrap();
    let lines: Vec<String> = listed.lines().map(str::to_owned).collect();
    assert_eq!(lines, expected.into_iter().collect::<Vec<_>>(), "filter/wasm/exports.txt, sorted");
}
