// Times the scanner in V8: node time.mjs MODULE [--write]. Each figure is the best of several rounds, in GB/s. With --write
// the table takes its place in docs/performance.md.
import { readFileSync, writeFileSync } from "node:fs";

const kinds = ["prompt", "code", "base64", "tools", "unicode"];
const sizes = [1024, 16384, 65536, 1048576, 4194304];
const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[2]));
const { prepare, scan, skip, copy } = instance.exports;

function speed(work, bytes) {
  const times = Math.max(1, Math.round(2e7 / bytes));
  let best = Infinity;
  for (let round = 0; round < 7; round++) {
    const began = process.hrtime.bigint();
    work(times);
    best = Math.min(best, Number(process.hrtime.bigint() - began));
  }
  return (bytes * times) / best;
}

const lines = [];
function say(line) {
  console.log(line);
  lines.push(line);
}

say("| body | bytes | scanner GB/s | serde_json GB/s | memcpy GB/s | scanner / serde_json |");
say("| --- | ---: | ---: | ---: | ---: | ---: |");
kinds.forEach((kind, number) => {
  for (const size of sizes) {
    const bytes = prepare(number, size);
    if (scan(1) !== 2) throw new Error(`the model of ${kind} is not found`);
    const [ours, theirs, plain] = [scan, skip, copy].map((work) => speed(work, bytes));
    const row = [ours.toFixed(2), theirs.toFixed(2), plain.toFixed(1), (ours / theirs).toFixed(1)];
    say(`| ${kind} | ${bytes} | ${row.join(" | ")} |`);
  }
});

if (process.argv[3] === "--write") {
  const page = new URL("../../../docs/performance.md", import.meta.url);
  const text = readFileSync(page, "utf8");
  const place = /(<!-- scanner -->\n)[^]*?(<!-- \/scanner -->)/;
  if (!place.test(text)) throw new Error("docs/performance.md has no place for the table: <!-- scanner -->");
  writeFileSync(page, text.replace(place, (_, begin, end) => `${begin}${lines.join("\n")}\n${end}`));
}
