// Holds texts from before it listens, and makes and drops others as it is asked to. What it answers
// is told by the request alone, so that a client can compute it; load.jsp does the same.
const express = require("express");
const { Worker, isMainThread, parentPort, workerData } = require("node:worker_threads");

const KEYS = 600;

/** Letters by a linear congruential generator. */
function content(seed, length) {
  const bytes = Buffer.alloc(length);
  for (let i = 0, x = seed | 0; i < length; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) | 0;
    bytes[i] = 97 + ((x >>> 24) % 26);
  }
  return bytes;
}

/** FNV-1a of 32 bits. */
function sum(bytes) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < bytes.length; i++) hash = Math.imul(hash ^ bytes[i], 0x01000193);
  return hash >>> 0;
}

/** In one of three forms: one string, memory outside of the heap, many small strings. */
function hold(key, seed, length) {
  const bytes = content(seed, length);
  if (key % 3 === 0) return bytes.toString("latin1");
  if (key % 3 === 1) return bytes;
  const lines = [];
  for (let at = 0; at < length; at += 64) lines.push(bytes.toString("latin1", at, at + 64));
  return lines;
}

function text(held) {
  if (typeof held === "string") return held;
  return Buffer.isBuffer(held) ? held.toString("latin1") : held.join("");
}

/** Of many parts, put together from the last to the first. */
function make(seed, length, parts) {
  const made = new Map();
  for (let part = 0; part < parts; part++) {
    made.set(part, { text: content(seed + part, length).toString("latin1") });
  }
  const all = [...made.values()].reverse().map((part) => part.text);
  return sum(Buffer.from(all.join(""), "latin1"));
}

function serve() {
  const held = [];
  for (let key = 0; key < KEYS; key++) held.push(hold(key, key, 2000 + ((key * 7919) % 50000)));

  const app = express();
  app.get("/load", (request, response) => {
    const number = (name) => Number(request.query[name]);
    const [key, seed, length, parts] = ["key", "seed", "length", "parts"].map(number);
    const answer = (body) => response.type("text/plain").send(`${body}\n`);
    switch (request.query.do) {
      case "text":
        return answer(text(held[key]));
      case "sum":
        return answer(sum(Buffer.from(text(held[key]), "latin1")));
      case "keep": {
        const old = held[key];
        held[key] = hold(key, seed, length);
        return answer(sum(Buffer.from(text(old), "latin1")));
      }
      case "make":
        return answer(make(seed, length, parts));
      case "apart":
        return new Worker(__filename, { workerData: [seed, length, parts] }).once("message", answer);
      case "collect":
        global.gc();
        return answer("collected");
      default:
        return response.status(404).end();
    }
  });
  app.listen(Number(process.env.PORT), "127.0.0.1");
}

if (isMainThread) serve();
else parentPort.postMessage(make(...workerData));
