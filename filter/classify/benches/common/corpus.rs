//! Bodies as clients send them, of any size: what a scan costs depends on what a body is made of.

/// Makes a body of about so many bytes.
pub type Make = fn(usize) -> Vec<u8>;

/// The kinds of bodies.
pub const KINDS: [(&str, Make); 5] =
    [("prompt", prompt), ("code", code), ("base64", base64), ("tools", tools), ("unicode", unicode)];

const PROMPT: &str = "Summarise the following report for a reader who has five minutes. Name the three largest risks, \
                      what each would cost, and who should decide. Keep every figure as it stands.\\n\\n";
const CODE: &str = "fn main() {\\n    let path = std::env::args().nth(1).expect(\\\"no path\\\");\\n    println!(\\\"{}\\\", \
                    path.replace('\\\\', \\\"/\\\"));\\n}\\n\\n";
const BASE64: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg";
const UNICODE: &str =
    "Лев Толстой писал «Войну и мир» шесть лет. 今日は良い天気ですね。 \\u00e9\\u4e2d 🙂 naïve café. ";
const TOOL: &str = "{\"type\": \"function\", \"function\": {\"name\": \"search\", \"description\": \"Look things up\", \
                    \"parameters\": {\"type\": \"object\", \"properties\": {\"query\": {\"type\": \"string\"}, \"limit\": \
                    {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 50, \"default\": 10}, \"exact\": {\"type\": \
                    \"boolean\"}}, \"required\": [\"query\"]}}}";

/// One message with a text made of `piece`, `size` bytes in all or a little less, the model first or last.
fn message(piece: &str, size: usize, first: bool) -> Vec<u8> {
    let (head, tail) = if first {
        ("{\"model\": \"meta/llama-3.1-8b-instruct\", \"messages\": [{\"role\": \"user\", \"content\": \"", "\"}]}")
    } else {
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"", "\"}], \"model\": \"meta/llama-3.1-8b-instruct\"}")
    };
    let times = size.saturating_sub(head.len() + tail.len()) / piece.len();
    [head, &piece.repeat(times), tail].concat().into_bytes()
}

fn prompt(size: usize) -> Vec<u8> {
    message(PROMPT, size, true)
}

fn code(size: usize) -> Vec<u8> {
    message(CODE, size, false)
}

fn base64(size: usize) -> Vec<u8> {
    message(BASE64, size, true)
}

fn unicode(size: usize) -> Vec<u8> {
    message(UNICODE, size, false)
}

/// Many small values, and hardly a long string.
fn tools(size: usize) -> Vec<u8> {
    let count = (size.saturating_sub(60) / (TOOL.len() + 2)).max(1);
    let tools = vec![TOOL; count].join(", ");
    format!("{{\"tools\": [{tools}], \"model\": \"meta/llama-3.1-8b-instruct\"}}").into_bytes()
}
