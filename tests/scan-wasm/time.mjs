// Times the scanner in V8: node time.mjs MODULE. Each figure is the best of several rounds, in GB/s.
import { readFileSync } from "node:fs";

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

console.log("| body | bytes | scanner GB/s | serde_json GB/s | memcpy GB/s | scanner / serde_json |");
console.log("| --- | ---: | ---: | ---: | ---: | ---: |");
kinds.forEach((kind, number) => {
  for (const size of sizes) {
    const bytes = prepare(number, size);
    if (scan(1) !== 2) throw new Error(`the model of ${kind} is not found`);
    const [ours, theirs, plain] = [scan, skip, copy].map((work) => speed(work, bytes));
    const row = [ours.toFixed(2), theirs.toFixed(2), plain.toFixed(1), (ours / theirs).toFixed(1)];
    console.log(`| ${kind} | ${bytes} | ${row.join(" | ")} |`);
  }
});
