//! The answers, in the form of OpenAI's API as NVIDIA speaks it.

use serde_json::{Value, json};

/// The models that `GET /v1/models` lists.
const MODELS: [&str; 4] = [
    "meta/llama-3.3-70b-instruct",
    "nvidia/llama-3.1-nemotron-70b-instruct",
    "nvidia/nv-embedqa-e5-v5",
    "qwen/qwen3-235b-a22b",
];

/// The body of a plain answer to `path`; `None` for paths that this API does not have.
pub fn answer(method: &str, path: &str, request: &Value, seq: u64) -> Option<Value> {
    let model = request
        .get("model")
        .and_then(Value::as_str)
        .unwrap_or("unknown");
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12});
    Some(match (method, path) {
        ("POST", "/v1/chat/completions") => json!({
            "id": format!("chatcmpl-{seq}"), "object": "chat.completion", "created": CREATED, "model": model,
            "choices": [{"index": 0, "finish_reason": "stop",
                         "message": {"role": "assistant", "content": "Hello from the fake upstream."}}],
            "usage": usage,
        }),
        ("POST", "/v1/completions") => json!({
            "id": format!("cmpl-{seq}"), "object": "text_completion", "created": CREATED, "model": model,
            "choices": [{"index": 0, "finish_reason": "stop", "text": "Hello from the fake upstream."}],
            "usage": usage,
        }),
        ("POST", "/v1/embeddings") => {
            let inputs = match request.get("input") {
                Some(Value::Array(inputs)) => inputs.len(),
                _ => 1,
            };
            let data: Vec<Value> = (0..inputs)
                .map(|index| json!({"object": "embedding", "index": index, "embedding": [0.25, -0.5, 0.125]}))
                .collect();
            json!({"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}})
        }
        ("GET", "/v1/models") => {
            let data: Vec<Value> = MODELS
                .iter()
                .map(|id| json!({"id": id, "object": "model", "created": CREATED, "owned_by": id.split('/').next()}))
                .collect();
            json!({"object": "list", "data": data})
        }
        _ => return None,
    })
}

/// Whether the limit counts this request.
pub fn is_metered(method: &str, path: &str) -> bool {
    method == "POST"
        && matches!(
            path,
            "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings"
        )
}

/// The body of an error of NVIDIA's.
pub fn error(status: u16) -> Value {
    match status {
        429 => json!({"status": 429, "title": "Too Many Requests"}),
        404 => json!({"status": 404, "title": "Not Found",
                      "detail": "Function 'f00d': Not found for account 'secret-account-id'"}),
        503 => {
            json!({"error": {"message": "ResourceExhausted: Worker local total request limit reached (33/32)",
                                "type": "service_unavailable"}})
        }
        status => json!({"status": status, "title": "Error"}),
    }
}

/// The events of a streamed answer.
pub fn events(request: &Value, seq: u64, chunks: usize) -> Vec<String> {
    let model = request
        .get("model")
        .and_then(Value::as_str)
        .unwrap_or("unknown");
    let event = |delta: Value, finish: Value| {
        let chunk = json!({
            "id": format!("chatcmpl-{seq}"), "object": "chat.completion.chunk", "created": CREATED, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        format!("data: {chunk}\n\n")
    };
    let mut events = vec![event(
        json!({"role": "assistant", "content": ""}),
        Value::Null,
    )];
    events.extend((0..chunks).map(|n| event(json!({"content": format!("word{n} ")}), Value::Null)));
    events.push(event(json!({}), json!("stop")));
    events.push("data: [DONE]\n\n".to_owned());
    events
}

/// A fixed time of creation, so that answers can be compared.
const CREATED: u64 = 1_700_000_000;
