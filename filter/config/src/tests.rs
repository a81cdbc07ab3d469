//! What is accepted, and the sentence for each thing that is not.

use super::*;
use nimgate_core::units::{Micros, MilliRpm};
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[test]
fn nothing_means_all_defaults() {
    for json in ["", "  \n", "{}", "{\"limits\": null}"] {
        let config = Config::parse(json.as_bytes()).unwrap();
        assert_eq!(config.limits.len(), 1);
        let limit = &config.limits[0];
        let settings = &limit.rules;
        assert_eq!(limit.name, "nvidia");
        assert!(limit.models[0].matches(b"nvidia/x") && limit.models[1].matches(b"nvidia_nim/x"));
        assert_eq!(limit.rate_rpm, 40);
        assert_eq!(settings.capacity, 4);
        assert_eq!(settings.window, Micros::from_secs(60));
        assert_eq!(settings.queue_max, 1_000);
        assert_eq!(settings.timeouts.low, Micros::from_secs(30));
        assert_eq!(settings.timeouts.others, Micros::from_secs(120));
        assert_eq!(settings.aging, None);
        assert!(!settings.may_fall_back && settings.retreat.enabled);
        assert_eq!(settings.retreat.floor, MilliRpm::from_rpm(1));
        assert_eq!(limit.key, KeySource::Client);
        assert_eq!(config.priority.header, "x-priority");
        assert_eq!(config.on_unclassifiable, OnUnclassifiable::Meter);
        assert_eq!(config.hold_at, HoldAt::Headers);
        assert_eq!(config.bodies, Bodies::DEFAULT);
        assert_eq!(config.log_level, LogLevel::Info);
    }
}

#[test]
fn everything_can_be_said() {
    let config = Config::parse(
        br#"{"limits": [{"name": "a_B-1", "models": ["x/*"], "clusters": ["c"], "hosts": ["*.h"], "paths": ["/v1/*"],
            "rate_rpm": 600.0, "bucket_capacity": 7, "queue_max_size": 0, "queue_full_policy": "passthrough",
            "low_priority_timeout_s": 0.5, "request_timeout_s": 3, "aging_s": 10, "upstream_api_key": "k",
            "retreat": {"enabled": false, "floor_rpm": 5, "retry_after_max_s": 0}}],
            "priority": {"header": "X-Class", "default": "LOW", "ceiling": "high"},
            "on_unclassifiable": "pass", "log_level": "WARNING"}"#,
    )
    .unwrap();
    let limit = &config.limits[0];
    assert_eq!(limit.rules.capacity, 7);
    assert_eq!(limit.rules.timeouts.low, Micros::from_millis(500));
    assert_eq!(limit.rules.aging, Some(Micros::from_secs(10)));
    assert!(limit.rules.may_fall_back);
    assert_eq!(config.priority.header, "x-class");
    assert_eq!((config.priority.default, config.priority.ceiling), (Priority::Low, Priority::High));
    assert_eq!(config.log_level, LogLevel::Warn);
    assert!(!format!("{limit:?}").contains("\"k\""), "a key is never shown");
}

#[test]
fn what_is_not_given_follows_from_what_is() {
    let rules = |json: &str| {
        let json = format!(r#"{{"limits": [{{"name": "n", {json}}}]}}"#);
        Config::parse(json.as_bytes()).unwrap().limits[0].rules
    };
    assert_eq!(rules(r#""rate_rpm": 90"#).capacity, 9);
    assert_eq!(rules(r#""bucket_capacity": null, "rate_rpm": 9"#).capacity, 1);
    assert_eq!(rules(r#""bucket_capacity": 4, "rate_rpm": 90"#).capacity, 4);
    assert_eq!(rules(r#""window_s": 6"#).retreat.window, Micros::from_secs(6));
    assert_eq!(rules(r#""window_s": 0"#).retreat.window, Micros::from_secs(60));
    assert_eq!(rules(r#""mode": null, "retreat": null, "max_wait_s": {"low": null}, "aging_s": 0"#), Rules::DEFAULT);
    let some = rules(r#""max_in_flight": 3, "window_margin_ms": 20, "max_wait_s": {"urgent": 0.5, "low": 0}"#);
    assert_eq!((some.max_in_flight, some.window_rules().margin), (Some(3), Micros::from_millis(20)));
    assert_eq!((some.timeouts.own_urgent, some.timeouts.own_low), (Some(Micros::from_millis(500)), None));
    // Less than a tenth of a window's requests is lost, so this is let pass.
    assert_eq!(rules(r#""rate_rpm": 79, "window_s": 60"#).window_rules().quota, 79);
    assert_eq!(rules(r#""rate_rpm": 616, "window_s": 1"#).window_rules().quota, 10);
}

#[test]
fn all_fields_are_known_by_their_paths() {
    let fields = fields();
    for path in ["limits", "limits[].name", "limits[].retreat.floor_rpm", "priority.header", "console.upstream.path"] {
        assert!(fields.iter().any(|field| field == path), "{path} is not among {fields:?}");
    }
}

#[test]
fn each_refusal_names_the_path() {
    for (json, sentence) in [
        (r#"{"limits": [{"name": "n", "rate_rpm": 0}]}"#, "limits[0].rate_rpm: must be at least 1, got 0"),
        (r#"{"limits": [{"name": "n", "rate_rpm": -3}]}"#, "limits[0].rate_rpm: must be at least 1, got -3"),
        (r#"{"limits": [{"name": "n", "rate_rpm": 1.5}]}"#, "limits[0].rate_rpm: must be a whole number, got 1.5"),
        (r#"{"limits": [{"name": "n", "rate_rpm": 1e308}]}"#, "limits[0].rate_rpm: must be a whole number, got 1"),
        (r#"{"limits": [{"name": "n", "rate_rpm": 9999999}]}"#, "limits[0].rate_rpm: must be at most 1000000"),
        (r#"{"limits": [{"name": "n", "rate_rpm": "40"}]}"#, "limits[0].rate_rpm: invalid type: string"),
        (r#"{"limits": [{"name": "n", "rate_rpm": NaN}]}"#, "limits[0].rate_rpm: expected value"),
        (r#"{"limits": [{"name": "n", "bucket_capacity": 0}]}"#, "limits[0].bucket_capacity: must be at least 1"),
        (r#"{"limits": [{"name": "n"}, {"name": "m", "typo": 1}]}"#, "limits[1].typo: unknown field `typo`"),
        (r#"{"limits": [{"rate_rpm": 1}]}"#, "limits[0].name: is missing"),
        (r#"{"limits": [{"name": "a b"}]}"#, "limits[0].name: must be 1 to 64"),
        (r#"{"limits": [{"name": "n"}, {"name": "n"}]}"#, "limits[1].name: \"n\" is the name of an earlier limit"),
        (r#"{"limits": []}"#, "limits: must hold at least one limit"),
        (r#"{"limits": [{"name": "n", "models": []}]}"#, "limits[0]: can never match"),
        (r#"{"limits": [{"name": "n", "models": [""]}]}"#, "limits[0].models[0]: must be a pattern"),
        (r#"{"limits": [{"name": "n", "queue_full_policy": "drop"}]}"#, "limits[0].queue_full_policy: unknown variant"),
        (
            r#"{"limits": [{"name": "n", "request_timeout_s": 0}]}"#,
            "limits[0].request_timeout_s: must be at least 0.001",
        ),
        (r#"{"limits": [{"name": "n", "aging_s": -1}]}"#, "limits[0].aging_s: must be at least 0.001"),
        (r#"{"limits": [{"name": "n", "rate_rpm": 1, "window_s": 30}]}"#, "limits[0].window_s: must be long enough"),
        (
            r#"{"limits": [{"name": "n", "rate_rpm": 100, "window_s": 1}]}"#,
            "limits[0].window_s: must make a whole number of requests, or at most a tenth more: 1 s at 100 requests per \
             minute make 1.66, and only 1 could go",
        ),
        (r#"{"limits": [{"name": "n", "window_s": 86401}]}"#, "limits[0].window_s: must be at most 86400, got 86401"),
        (r#"{"limits": [{"name": "n", "window_s": -1}]}"#, "limits[0].window_s: must be at least 0, got -1"),
        (
            r#"{"limits": [{"name": "n", "window_margin_ms": 60001}]}"#,
            "limits[0].window_margin_ms: must be at most 60000",
        ),
        (
            r#"{"limits": [{"name": "n", "max_in_flight": -1}]}"#,
            "limits[0].max_in_flight: must be at least 1, or 0 to switch it off, got -1",
        ),
        (r#"{"limits": [{"name": "n", "aging_s": 1e308}]}"#, "limits[0].aging_s: must be at most 86400 seconds"),
        (
            r#"{"limits": [{"name": "n", "max_wait_s": {"low": 86401}}]}"#,
            "limits[0].max_wait_s.low: must be at most 86400 seconds, or 0 to switch it off, got 86401",
        ),
        (r#"{"limits": [{"name": "n", "max_wait_s": {"all": 1}}]}"#, "limits[0].max_wait_s.all: unknown field `all`"),
        (r#"{"limits": [{"name": "n", "max_wait_s": 5}]}"#, "limits[0].max_wait_s: invalid type: integer `5`"),
        (r#"{"limits": [{"name": "n", "retreat": [true]}]}"#, "limits[0].retreat: invalid type: sequence"),
        (
            r#"{"limits": [{"name": "n", "retreat": {"enabled": 1}}]}"#,
            "limits[0].retreat.enabled: invalid type: integer",
        ),
        (r#"{"limits": [{"name": "n", "low": 1}]}"#, "limits[0].low: unknown field `low`"),
        (r#"{"limits": [{"name": "n", "mode": "shadow", "mode": "shadow"}]}"#, "duplicate field `mode`"),
        (r#"{"limits": [{"name": "n", "retreat": {}, "retreat": {}}]}"#, "duplicate field `retreat`"),
        (r#"{"limits": [{"name": "n", "name": "n"}]}"#, "duplicate field `name`"),
        (r#"{"limits": [["n"]]}"#, "limits[0]: invalid type: sequence, expected an object"),
        (r#"{"limits": [{"name": "n", "mode": 1}]}"#, "limits[0].mode: invalid type: integer `1`, expected a string"),
        (r#"{"limits": [{"name": "n", "mode": "dark"}]}"#, "limits[0].mode: unknown variant"),
        (r#"{"console": {}, "limits": []}"#, "console: can't be given together with limits"),
        (r#"{"console": {"port": 1}}"#, "console.port: unknown field"),
        (r#"{"console": {"admin_token": "short"}}"#, "console.admin_token: must have at least 16 characters"),
        (
            r#"{"console": {"admin_token": "x", "admin_token_env": "X"}}"#,
            "console.admin_token_env: can't be given together",
        ),
        (r#"{"console": {"upstream": {"path": "v1"}}}"#, "console.upstream.path: must begin with a slash"),
        (r#"{"console": {"upstream": {"host": "a\r\nb: c"}}}"#, "console.upstream.host: must be 1 to 256 visible"),
        (r#"{"console": {"upstream": {"timeout_s": 0}}}"#, "console.upstream.timeout_s: must be at least"),
        (r#"{"console": {"upstream": {"timeout_s": 61}}}"#, "console.upstream.timeout_s: must be at most 60"),
        (
            r#"{"limits": [{"name": "n", "upstream_api_key": "a", "upstream_api_key_env": "B"}]}"#,
            "limits[0].upstream_api_key_env: can't be given together",
        ),
        (
            r#"{"limits": [{"name": "n", "upstream_api_key": "a\r\nb"}]}"#,
            "limits[0].upstream_api_key: must be of visible",
        ),
        (
            r#"{"limits": [{"name": "n", "rate_rpm": 5, "retreat": {"floor_rpm": 6}}]}"#,
            "limits[0].retreat.floor_rpm: must not be above rate_rpm (5), got 6",
        ),
        (r#"{"priority": {"ceiling": "top"}}"#, "priority.ceiling: must be urgent, high, normal or low, got \"top\""),
        (r#"{"priority": {"header": "x-nimgate-p"}}"#, "priority.header: must not begin with x-nimgate-"),
        (r#"{"priority": {"header": "a b"}}"#, "priority.header: must be the name of an HTTP header"),
        (
            r#"{"limits": [{"name": "n", "hosts": ["https://nv.test"]}]}"#,
            "limits[0].hosts[0]: is an address; a host is",
        ),
        (r#"{"limits": [{"name": "n", "hosts": ["a", "nv.test/v1"]}]}"#, "limits[0].hosts[1]: can't be a host"),
        (r#"{"limits": [{"name": "n", "hosts": ["m\u00fcnchen.test"]}]}"#, "limits[0].hosts[0]: can't be a host"),
        (r#"{"limits": [{"name": "n", "hosts": [" nv.test"]}]}"#, "limits[0].hosts[0]: must not have space around it"),
        (r#"{"limits": [{"name": "n", "paths": ["v1/*"]}]}"#, "limits[0].paths[0]: must begin with a slash or `*`"),
        (r#"{"limits": [{"name": "n", "paths": ["/v1/"]}]}"#, "limits[0].paths[0]: must not end with a slash"),
        (r#"{"limits": [{"name": "n", "paths": ["/v1?a=b"]}]}"#, "limits[0].paths[0]: must not hold `?`"),
        (r#"{"limits": [{"name": "n", "paths": ["/v1//chat"]}]}"#, "limits[0].paths[0]: can't match"),
        (r#"{"limits": [{"name": "n", "paths": ["/v1/../chat"]}]}"#, "limits[0].paths[0]: can't match"),
        (r#"{"limits": [{"name": "n", "clusters": [""]}]}"#, "limits[0].clusters[0]: must be the name of a cluster"),
        (r#"{"limits": [{"name": "n", "clusters": ["nv*"]}]}"#, "limits[0].clusters[0]: must be a name"),
        (r#"{"limits": [{"name": "n", "methods": []}]}"#, "limits[0].methods: must name at least one method"),
        (
            r#"{"limits": [{"name": "n", "methods": ["POST", "GET /"]}]}"#,
            "limits[0].methods[1]: must be an HTTP method",
        ),
        (r#"{"console": {"hosts": ["http://a"]}}"#, "console.hosts[0]: is an address"),
        (
            r#"{"priority": {"default": "high", "ceiling": "normal"}}"#,
            "priority.default: must not be more urgent than priority.ceiling (normal), got high",
        ),
        (r#"{"priority": {"header": "Authorization"}}"#, "priority.header: can't be authorization"),
        (r#"{"priority": {"header": "host"}}"#, "priority.header: can't be host"),
        (
            r#"{"limits": [{"name": "n", "upstream_api_key": "\"\""}]}"#,
            "limits[0].upstream_api_key: must be of visible",
        ),
        (r#"{"hold_at": "trailers"}"#, "hold_at: unknown variant"),
        (r#"{"bodies": {"worker_max_bytes": 1}}"#, "bodies.worker_max_bytes: must be 65536 to 4294967296 bytes"),
        (r#"{"bodies": {"connection_max_bytes": 1e5, "max": 2}}"#, "unknown field `max`"),
        (r#"{"bodies": {"connection_max_bytes": 65536.5}}"#, "bodies.connection_max_bytes: must be"),
        (
            r#"{"hold_at": "body", "limits": [{"name": "n", "upstream_api_key": "k"}]}"#,
            "limits[0]: can't have an upstream_api_key while hold_at is body",
        ),
        (
            r#"{"hold_at": "body", "limits": [{"name": "n"},
                {"name": "m", "models": [], "hosts": ["h"], "upstream_api_key_env": "K"}]}"#,
            "limits[1]: can't have an upstream_api_key while hold_at is body",
        ),
        (r#"{"on_unclassifiable": "maybe"}"#, "on_unclassifiable: unknown variant"),
        (r#"{"log_level": "info", "log_level": "debug"}"#, "duplicate field `log_level`"),
        ("[]", "expected an object"),
        ("{", "EOF while parsing"),
        ("{} {}", "trailing characters"),
    ] {
        let error = Config::parse(json.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(sentence) || error.contains(sentence), "{json}: {error}");
    }
}

#[test]
fn requests_held_at_the_body_keep_their_headers_so_keys_need_limits_that_read_none() {
    let config = Config::parse(
        br#"{"hold_at": "body", "limits": [{"name": "h", "models": [], "hosts": ["h"], "upstream_api_key": "k"},
            {"name": "n"}]}"#,
    )
    .unwrap();
    assert_eq!(config.hold_at, HoldAt::Body);
    assert_eq!(Config::parse(br#"{"hold_at": "headers"}"#).unwrap().hold_at, HoldAt::Headers);
}

#[test]
fn patterns_that_can_match_are_taken() {
    let config = Config::parse(
        br#"{"limits": [{"name": "n", "models": ["*"], "clusters": ["nvidia"], "paths": ["/", "*/chat", "/v1/*"],
            "hosts": ["*", "nv.test", "nv.test:8443", "[::1]:80", "*.nv.test"]}]}"#,
    );
    assert_eq!(config.unwrap().limits[0].hosts.len(), 5);
}

#[test]
fn a_default_that_is_not_given_follows_the_ceiling() {
    let priority = Config::parse(br#"{"priority": {"ceiling": "low"}}"#).unwrap().priority;
    assert_eq!((priority.default, priority.ceiling), (Priority::Low, Priority::Low));
}

#[test]
fn a_key_in_quotation_marks_is_taken_out_of_them() {
    let config = Config::parse(br#"{"limits": [{"name": "n", "upstream_api_key": "\"nvapi-x\""}]}"#).unwrap();
    assert_eq!(config.limits[0].key, KeySource::Inline("nvapi-x".to_owned()));
    for (written, key) in [("'a'", "a"), ("\"a'", "\"a'"), ("a", "a"), ("\"", "\""), ("''", "")] {
        assert_eq!(without_quotes(written), key);
    }
}

#[test]
fn a_key_never_appears_in_a_refusal() {
    let error = Config::parse(br#"{"limits": [{"name": "n", "upstream_api_key": "secret key"}]}"#).unwrap_err();
    assert!(!error.to_string().contains("secret"));
    let error = Config::parse(br#"{"limits": [{"name": "n", "upstream_api_key": 987654321}]}"#).unwrap_err();
    assert!(error.to_string().contains("upstream_api_key: must be a string") && !error.to_string().contains("9876"));
    let error = Config::parse(br#"{"limits": [{"name": "n", "upstream_api_key_env": "nvapi-secret"}]}"#).unwrap_err();
    assert_eq!(error.path, "limits[0].upstream_api_key_env");
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn a_console_has_its_listener_to_itself() {
    let config = Config::parse(
        br#"{"console": {"admin_token": "0123456789abcdef", "hosts": ["*.example"],
            "upstream": {"cluster": "c", "path": "/up", "timeout_s": 0.5}}}"#,
    )
    .unwrap();
    assert!(config.limits.is_empty());
    let console = config.console.unwrap();
    assert!(console.hosts[0].matches(b"a.example"));
    assert_eq!((console.upstream.cluster.as_str(), console.upstream.host.as_str()), ("c", "c"));
    assert_eq!(console.upstream.timeout, Micros::from_millis(500));
    assert!(!format!("{console:?}").contains("0123456789abcdef"), "a token is never shown");
    let console = Config::parse(br#"{"console": {}}"#).unwrap().console.unwrap();
    assert_eq!((console.admin_token, console.upstream.path.as_str()), (KeySource::Client, "/v1/models"));
    assert!(Config::parse(b"{}").unwrap().console.is_none(), "off unless asked for");
}
