// Sums the ERC-20 transfers of a chain by contract, exactly once each, even if killed at any moment.
//
// An entry delivered to this consumer is pending until it is acknowledged. Only pending entries are
// processed, and the sums and the acknowledgements are written in one MULTI/EXEC: an entry is pending
// exactly as long as it is not in the sums, so that a kill neither loses it nor counts it twice.
//
//     CHAIN_ID=1 GROUP=sums CONSUMER=one node consumer.mjs [--finalized]
//
// With --finalized, an entry waits until its block is final. Use one reader per group in that case: the
// entries that take a block back must go to the consumer that holds the block's entries.

import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { decode } from "@msgpack/msgpack";
import { createClient, RESP_TYPES, WatchError } from "redis";

const { CHAIN_ID = "1", GROUP = "sums", CONSUMER = "one", REDIS_URL = "redis://127.0.0.1:6379" } =
  process.env;
// A consumer that has not acknowledged for this long is considered dead. Must exceed the time that any
// batch takes.
const CLAIM_IDLE_MS = process.env.CLAIM_IDLE_MS ?? "60000";
// Throws on any other argument.
const FINALIZED_ONLY = parseArgs({ options: { finalized: { type: "boolean" } } }).values.finalized;

const EVENTS = `events:${CHAIN_ID}`;
const BLOCKS = `blocks:{${EVENTS}}`;
const SUMS = `sums:{${EVENTS}}:${GROUP}`; // a hash; the braces put it in its stream's slot on a Cluster
const BATCH = 1000;
const FIELDS =
  "chain_id block_number block_hash tx_hash tx_index log_index contract topics data timestamp removed".split(" ");
const TRANSFER = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

// Replies as Buffers, because a packed entry is not text.
const client = createClient({ url: REDIS_URL, RESP: 2 }).withTypeMapping({
  [RESP_TYPES.BLOB_STRING]: Buffer,
});
client.on("error", (error) => console.error(`waiting for Redis: ${error.message}`));

/** The fields of an entry, from an array of alternating names and values. */
function toObject(fields) {
  const object = {};
  for (let i = 0; i < fields.length; i += 2) object[fields[i]] = fields[i + 1];
  return object;
}

/** An entry of either encoding: numbers, and Buffers for hashes and data. */
function readEvent(fields) {
  if (fields.e) {
    const plain = (value) => value instanceof Uint8Array ? Buffer.from(value) : value;
    const values = decode(fields.e).map((value) => Array.isArray(value) ? value.map(plain) : plain(value));
    return Object.fromEntries(FIELDS.map((name, i) => [name, values[i]]));
  }
  const text = (name) => fields[name].toString();
  const binary = (hex) => Buffer.from(hex.slice(2), "hex");
  const event = {};
  for (const name of ["chain_id", "block_number", "tx_index", "log_index", "timestamp"]) {
    event[name] = Number(text(name));
  }
  for (const name of ["block_hash", "tx_hash", "contract", "data"]) event[name] = binary(text(name));
  event.topics = JSON.parse(text("topics")).map(binary);
  event.removed = text("removed") === "true";
  return event;
}

/** Entries of this consumer: `>` has new ones delivered, an ID returns the pending ones above it. */
async function read(after, ...options) {
  const command = ["XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", `${BATCH}`, ...options];
  const answer = await client.sendCommand([...command, "STREAMS", EVENTS, after]);
  return answer ? answer[0][1] : [];
}

/** Entries delivered to us and not acknowledged, oldest first: one batch, or all of them if entries wait
 * until they are final. */
async function pending() {
  const entries = [];
  for (let after = "0"; ; ) {
    const page = await read(after);
    entries.push(...page);
    if (page.length < BATCH || !FINALIZED_ONLY) return entries;
    after = page.at(-1)[0];
  }
}

const hex = (bytes) => Buffer.from(bytes).toString("hex");

/** Adds pending entries to the sums, only up to block `final` if that is set. */
async function work(final) {
  for (;;) {
    // If another consumer claims an entry of ours and applies it, the sums change and this transaction
    // fails.
    await client.watch(SUMS);
    const ids = [];
    const changes = new Map();
    let lost = 0;
    for (const [id, fields] of await pending()) {
      if (!fields) {
        ids.push(id); // trimmed by retention before we processed it
        lost += 1;
        continue;
      }
      const event = readEvent(toObject(fields));
      if (final !== undefined && event.block_number > final) continue;
      ids.push(id);
      const { topics, data } = event;
      if (topics.length === 3 && hex(topics[0]) === TRANSFER && data.length === 32) {
        const contract = `0x${hex(event.contract)}`;
        const value = BigInt(`0x${hex(data)}`);
        const change = event.removed ? -value : value; // undoes an earlier entry
        changes.set(contract, (changes.get(contract) ?? 0n) + change);
      }
    }
    if (ids.length === 0) return void (await client.unwatch());
    const held = changes.size ? await client.hmGet(SUMS, [...changes.keys()]) : [];
    const step = client.multi();
    [...changes].forEach(([contract, change], i) => {
      step.hSet(SUMS, contract, `${BigInt(held[i]?.toString() ?? 0) + change}`);
    });
    if (lost) step.hIncrBy(SUMS, "lost", lost);
    step.xAck(EVENTS, GROUP, ids);
    try {
      await step.exec();
    } catch (error) {
      if (!(error instanceof WatchError)) throw error; // else check again what is still ours
    }
  }
}

/** Takes over entries that another consumer has not acknowledged for too long. */
async function claimFromDeadConsumers() {
  for (let start = "0-0"; ; ) {
    const command = ["XAUTOCLAIM", EVENTS, GROUP, CONSUMER, CLAIM_IDLE_MS, start];
    const [next, , trimmed] = await client.sendCommand([...command, "COUNT", `${BATCH}`, "JUSTID"]);
    if (trimmed.length) {
      // Removed from the stream before anyone processed them: a loss.
      console.error(`${trimmed.length} entries were lost to retention`);
      await client.hIncrBy(SUMS, "lost", trimmed.length);
    }
    start = next.toString();
    if (start === "0-0") return;
  }
}

/** Read from the chain's markers; -1 while no block is final. */
async function newestFinalBlock() {
  for (let before = "+"; ; ) {
    const page = await client.sendCommand(["XREVRANGE", BLOCKS, before, "-", "COUNT", `${BATCH}`]);
    for (const [, fields] of page) {
      const marker = toObject(fields);
      if (marker.op.toString() === "finalized") return Number(marker.number);
    }
    if (page.length < BATCH) return -1;
    before = `(${page.at(-1)[0]}`;
  }
}

/** Returns the block up to which pending entries were processed; `done` is the previous round's. */
async function oneRound(done) {
  await claimFromDeadConsumers();
  await read(">", "BLOCK", "1000");
  let final;
  if (FINALIZED_ONLY) {
    final = await newestFinalBlock();
    // The entries that took a block back precede the marker that made its successor final.
    while ((await read(">")).length);
  }
  if (final === undefined || final !== done) await work(final);
  return final;
}

// The current round is finished first: what was delivered is processed.
let stopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => {
    stopping = true;
    if (!client.isReady) client.destroy(); // nothing was delivered, and Redis may be away for long
  });
}

while (!stopping) {
  try {
    if (!client.isOpen) await client.connect();
    await client.xGroupCreate(EVENTS, GROUP, "0", { MKSTREAM: true }).catch((error) => {
      if (!error.message.includes("BUSYGROUP")) throw error;
    });
    let done;
    while (!stopping) done = await oneRound(done);
  } catch (error) {
    if (stopping) break;
    console.error(`retrying: ${error.message}`);
    await sleep(1000);
  }
}
if (client.isOpen) client.destroy();
