// Where the time of a passed request goes, inside the Wasm VM: node profile.mjs NAME=MODULE[:CONFIGURATION]...
//
// Runs modules in V8, which is Envoy's engine too, on a host that does next to nothing: whole requests for another
// provider's model, with the callbacks that Envoy makes for one. Says for each module and size how long a request takes
// (the fastest of many rounds, in turns, so that other work on the machine meets all alike), how long each callback takes,
// and for the last module which functions the time is spent in. `scripts/measure profile` starts it.
import { readFileSync } from "node:fs";
import { Session } from "node:inspector";

const SIZES = [1024, 256 * 1024];
const PIECE = 64 * 1024;
const ROUNDS = 15;
const ROUND_MS = 40;
const FUNCTIONS = 16;
const OK = 0;
const NOT_FOUND = 1;
const HEADERS = [
  [":authority", "localhost:10000"],
  [":path", "/v1/chat/completions"],
  [":method", "POST"],
  [":scheme", "http"],
  ["content-type", "application/json"],
  ["x-forwarded-proto", "http"],
  ["x-request-id", "4b1c9a3e-6a5f-4f0e-9d68-0a5d3c2b1e7f"],
];
const encoder = new TextEncoder();

function headerMap(headers) {
  const texts = headers.flat().map((text) => encoder.encode(text));
  const map = new Uint8Array(4 + 4 * texts.length + texts.reduce((sum, text) => sum + text.length + 1, 0));
  const view = new DataView(map.buffer);
  view.setUint32(0, headers.length, true);
  let at = 4 + 4 * texts.length;
  texts.forEach((text, number) => {
    view.setUint32(4 + 4 * number, text.length, true);
    map.set(text, at);
    at += text.length + 1;
  });
  return map;
}

// The body of a chat with a long prompt, as scripts/bench sends it.
function chat(size) {
  const [before, after] = ['{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "', '"}], "stream": true}'];
  const words = "The quick brown fox jumps over the lazy dog, and then some. ";
  const room = size - before.length - after.length;
  return encoder.encode(before + words.repeat(Math.ceil(room / words.length)).slice(0, room) + after);
}

class Filter {
  constructor(name, path, configuration) {
    this.name = name;
    this.configuration = encoder.encode(configuration);
    this.headers = headerMap(HEADERS);
    this.body = new Uint8Array();
    this.context = 2;
    this.calls = 0;
    this.took = {};
    const { instance } = this.start(readFileSync(path));
    this.exports = instance.exports;
    this.exports._initialize?.();
    this.exports.proxy_on_context_create(1, 0);
    this.exports.proxy_on_vm_start?.(1, 0);
    if (!this.exports.proxy_on_configure(1, this.configuration.length)) throw new Error(`${name} refuses`);
  }

  start(bytes) {
    const module = new WebAssembly.Module(bytes);
    const imports = {};
    for (const { module: space, name } of WebAssembly.Module.imports(module)) {
      imports[space] ??= {};
      imports[space][name] = this.hostCall(name);
    }
    return { instance: new WebAssembly.Instance(module, imports) };
  }

  memory() {
    // It moves when it grows.
    if (this.bytes?.buffer !== this.exports.memory.buffer) {
      this.bytes = new Uint8Array(this.exports.memory.buffer);
      this.view = new DataView(this.exports.memory.buffer);
    }
    return this.bytes;
  }

  give(what, data, size) {
    const allocate = this.exports.proxy_on_memory_allocate ?? this.exports.malloc;
    const at = what.length ? allocate(what.length) : 0;
    this.memory().set(what, at);
    this.view.setUint32(data, at, true);
    this.view.setUint32(size, what.length, true);
    return OK;
  }

  hostCall(name) {
    const calls = {
      proxy_get_header_map_pairs: (_, data, size) => this.give(this.headers, data, size),
      proxy_get_buffer_bytes: (kind, start, max, data, size) => {
        const whole = kind === 7 ? this.configuration : this.body;
        return this.give(whole.subarray(start, start + (max >>> 0)), data, size);
      },
      proxy_define_metric: (_kind, _name, _size, id) => {
        this.memory();
        this.metrics = (this.metrics ?? 0) + 1;
        this.view.setUint32(id, this.metrics, true);
        return OK;
      },
      clock_time_get: (_clock, _precision, time) => {
        this.memory();
        this.view.setBigUint64(time, process.hrtime.bigint(), true);
        return OK;
      },
      proxy_get_shared_data: () => NOT_FOUND,
      proxy_get_property: () => NOT_FOUND,
      proxy_log: () => OK,
    };
    const call = calls[name] ?? (() => OK);
    return (...given) => {
      this.calls++;
      return call(...given);
    };
  }

  // One request from its first callback to its last.
  request(timed) {
    const context = this.context++;
    const call = (name, ...given) => {
      const callback = this.exports[`proxy_on_${name}`];
      if (!callback) return 0;
      if (!timed) return callback(context, ...given);
      const began = process.hrtime.bigint();
      const answer = callback(context, ...given);
      this.took[name] = (this.took[name] ?? 0) + Number(process.hrtime.bigint() - began);
      return answer;
    };
    call("context_create", 1);
    let paused = call("request_headers", HEADERS.length, 0) === 1;
    for (let seen = 0; seen < this.body.length; ) {
      seen = Math.min(seen + PIECE, this.body.length);
      if (paused) paused = call("request_body", seen, 0) === 1;
    }
    if (call("request_body", this.body.length, 1) === 1) throw new Error(`${this.name} does not let it pass`);
    call("response_headers", 4, 0);
    call("response_body", 64, 1);
    call("done");
    call("log");
    call("delete");
  }

  // Nanoseconds for each request of a round.
  round(milliseconds) {
    let requests = 0;
    const began = process.hrtime.bigint();
    let took = 0;
    while (took < milliseconds * 1e6) {
      for (let n = 0; n < 20; n++) this.request(false);
      requests += 20;
      took = Number(process.hrtime.bigint() - began);
    }
    return took / requests;
  }
}

function demangled(name) {
  const parts = [...(name.match(/^_ZN(.*)17h[0-9a-f]{16}E$/)?.[1] ?? "").matchAll(/(\d+)/g)];
  if (!parts.length) return name;
  const path = [];
  let rest = name.slice(3);
  for (let size; (size = rest.match(/^\d+/)?.[0]); ) {
    const part = rest.slice(size.length, size.length + Number(size));
    if (!/^h[0-9a-f]{16}$/.test(part)) path.push(part);
    rest = rest.slice(size.length + Number(size));
  }
  return path.join("::").replaceAll("$LT$", "<").replaceAll("$GT$", ">").replaceAll("..", "::");
}

async function functions(filter) {
  const session = new Session();
  session.connect();
  const post = (method, given) =>
    new Promise((resolve, reject) =>
      session.post(method, given, (error, answer) => (error ? reject(error) : resolve(answer))),
    );
  await post("Profiler.enable");
  await post("Profiler.setSamplingInterval", { interval: 50 });
  await post("Profiler.start");
  for (let n = 0; n < ROUNDS; n++) filter.round(3 * ROUND_MS);
  const { profile } = await post("Profiler.stop");
  session.disconnect();
  const hits = {};
  let all = 0;
  for (const { callFrame, hitCount } of profile.nodes) {
    const name = callFrame.url.startsWith("wasm:") ? demangled(callFrame.functionName) : "(the host)";
    hits[name] = (hits[name] ?? 0) + hitCount;
    all += hitCount;
  }
  return Object.entries(hits)
    .sort(([, one], [, other]) => other - one)
    .slice(0, FUNCTIONS)
    .map(([name, count]) => [name, count / all]);
}

const filters = process.argv.slice(2).map((argument) => {
  const [, name, path, configuration] = argument.match(/^([^=]+)=([^:]+)(?::(.*))?$/s);
  return new Filter(name, path, configuration ?? "");
});
for (const size of SIZES) {
  const best = filters.map(() => Infinity);
  for (const filter of filters) filter.body = chat(size);
  for (const filter of filters) filter.round(500);
  for (let round = 0; round < ROUNDS; round++) {
    filters.forEach((filter, number) => (best[number] = Math.min(best[number], filter.round(ROUND_MS))));
  }
  console.log(`\n${size / 1024} KB`);
  filters.forEach((filter, number) => {
    const before = filter.calls;
    filter.request(false);
    const calls = filter.calls - before;
    const times = 2000;
    filter.took = {};
    for (let n = 0; n < times; n++) filter.request(true);
    const each = Object.entries(filter.took).map(([name, took]) => `${name} ${(took / times).toFixed(0)}`);
    console.log(`  ${filter.name}: ${best[number].toFixed(0)} ns, ${calls} host calls; with the timer's own cost: ${each.join(", ")}`);
  });
  const last = filters.at(-1);
  console.log(`  ${last.name}, share of each function:`);
  for (const [name, share] of await functions(last)) console.log(`    ${(100 * share).toFixed(1).padStart(5)} %  ${name}`);
}
