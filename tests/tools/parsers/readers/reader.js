// Reads bodies as a Node server would: decoded as UTF-8, without a byte order mark, by JSON.parse.
//
// Standard input holds batches: how many bodies, how many bytes they take, and the bodies, each after its length; all
// numbers have 32 bits, little-endian. For each body one byte is answered: 1 where a metered model is read, 0 where not.
"use strict";
const fs = require("node:fs");

const decoder = new TextDecoder("utf-8");

function read(length) {
  const bytes = Buffer.alloc(length);
  let filled = 0;
  while (filled < length) {
    const got = fs.readSync(0, bytes, filled, length - filled, null);
    if (got === 0) return null;
    filled += got;
  }
  return bytes;
}

function isMetered(body) {
  let document;
  try {
    document = JSON.parse(decoder.decode(body));
  } catch {
    return 0;
  }
  const model = document === null ? undefined : document.model;
  return typeof model === "string" && /^nvidia(_nim)?\//i.test(model) ? 1 : 0;
}

for (;;) {
  const head = read(8);
  if (head === null) break;
  const count = head.readUInt32LE(0);
  const batch = read(head.readUInt32LE(4));
  const answers = Buffer.alloc(count);
  let at = 0;
  for (let number = 0; number < count; number += 1) {
    const length = batch.readUInt32LE(at);
    answers[number] = isMetered(batch.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  fs.writeSync(1, answers);
}
