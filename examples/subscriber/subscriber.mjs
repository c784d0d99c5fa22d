// The twin of subscriber.py for Node.js 24 or newer: the same rules and tables, so that either can go on with
// the other's file. It needs amqplib (npm install amqplib).
//
//     node subscriber.mjs maintenance.sqlite maintenance 'fpso.equipment.*'

import { matchesGlob } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout } from "node:timers/promises";
import { parseArgs } from "node:util";
import amqp from "amqplib";

const { values: options, positionals: [file, name, ...types] } = parseArgs({
  allowPositionals: true,
  options: { stream: { type: "boolean" }, "look-seconds": { type: "string", default: "30" } },
});
if (types.some((type) => type.replace(/\.\*$/, "").includes("*"))) // AMQP knows whole words only
  throw new Error("a * stands at the end of a type, after a dot");
const AMQP_URL = process.env.FPSO_SUBSCRIBER_AMQP_URL ?? "amqp://localhost/";
const GATEWAY_URL = process.env.FPSO_GATEWAY_URL ?? "http://localhost:8088";
const TOKEN = process.env.FPSO_TOKEN; // of an auditor of the whole fleet, where access control is on
const PAGE = 1000; // events, and deliveries that are out unacknowledged
const KEPT = 100_000; // events whose work can be undone
const GATHERING = 20; // milliseconds, in which deliveries are gathered to be committed together
const PREFIX = "cloudEvents_";
const NEEDED = ["id", "source", "type", "subject", "position", "previousposition", "previousoftype"];
const STATUS = { registered: "active", activated: "active", deactivated: "inactive" };
const OPERATIONS = { "operation-recorded": 1, "operation-voided": -1 };

const db = new DatabaseSync(file);
db.exec(`
  PRAGMA journal_mode = WAL;
  CREATE TABLE IF NOT EXISTS subscription (
    types TEXT NOT NULL, stream_offset INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0, examined INTEGER NOT NULL DEFAULT 0
  );
  CREATE TABLE IF NOT EXISTS checkpoints (chain TEXT PRIMARY KEY, position INTEGER NOT NULL);
  CREATE TABLE IF NOT EXISTS equipment (
    code TEXT PRIMARY KEY,
    status TEXT, status_at INTEGER NOT NULL DEFAULT 0,
    operations INTEGER NOT NULL DEFAULT 0
  );
  CREATE TABLE IF NOT EXISTS journal (
    number INTEGER PRIMARY KEY, position INTEGER NOT NULL, chain TEXT NOT NULL, previous INTEGER NOT NULL,
    code TEXT, status TEXT, status_at INTEGER, operations INTEGER
  );
`);
const prepared = {};
const prepare = (statement) => (prepared[statement] ??= db.prepare(statement));
const run = (statement, ...parameters) => prepare(statement).run(...parameters);
const one = (query, ...parameters) => Object.values(prepare(query).get(...parameters) ?? {})[0] ?? 0;
const commit = () => db.isTransaction && db.exec("COMMIT");
const reached = () => one("SELECT max(position) FROM checkpoints");
const checkpoint = (chain) => one("SELECT position FROM checkpoints WHERE chain = ?", chain);
const log = (text) => console.error(new Date().toISOString(), text);
const inWords = (taken) =>
  taken.length ? `${taken.length} events, positions ${taken[0]} to ${taken.at(-1)}` : "nothing";
class Stopped extends Error {} // what no later attempt would mend

// What an event means here, in the transaction that moves the checkpoint: put your own work in its place.
function work({ subject, type, position }) {
  const [, kind, code] = subject.match(/^(\w+)\/(.*)$/);
  const what = type.replace(/^fpso\.equipment\.|\.v1$/g, "");
  if (kind !== "equipment") return;
  run("INSERT OR IGNORE INTO equipment (code) VALUES (?)", code);
  const newer = "UPDATE equipment SET status = ?, status_at = ? WHERE code = ? AND status_at < ?";
  if (STATUS[what]) run(newer, STATUS[what], position, code, position);
  const more = "UPDATE equipment SET operations = operations + ? WHERE code = ?";
  if (OPERATIONS[what]) run(more, OPERATIONS[what], code);
}

// What is there before the work of an event is written down, so that it can be undone.
function remember({ subject, position }, chain, previous) {
  const [, kind, code] = subject.match(/^(\w+)\/(.*)$/);
  run(
    `INSERT INTO journal (position, chain, previous, code, status, status_at, operations)
     SELECT ?, ?, ?, code, status, status_at, operations
     FROM (SELECT ? AS code) LEFT JOIN equipment USING (code)`,
    position, chain, previous, kind === "equipment" ? code : null,
  );
}

// Brings back what was there before the first event from a position on was taken.
function undo(start) {
  const since = "number >= (SELECT min(number) FROM journal WHERE position >= ?)";
  for (const row of prepare(`SELECT * FROM journal WHERE ${since} ORDER BY number DESC`).all(start)) {
    run("DELETE FROM equipment WHERE code = ?", row.code);
    if (row.status_at !== null)
      run("INSERT INTO equipment VALUES (?, ?, ?, ?)", row.code, row.status, row.status_at, row.operations);
    run("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", row.chain, row.previous);
  }
  run(`DELETE FROM journal WHERE ${since}`, start);
}

// The chain: what was taken before is skipped, what is missing before an event is taken from the feed first.
async function take(event) {
  const [chain, previous] = types.length ? [event.type, event.previousoftype] : ["#", event.previousposition];
  const after = checkpoint(chain);
  if (event.position <= after) return false;
  if (previous > after) {
    log(`missing on chain ${chain}: after position ${after}, up to ${previous}`);
    const { taken } = await read(after, types.length ? [chain] : [], previous);
    log(`healed on chain ${chain}: ${inWords(taken)}`);
  }
  if (previous !== checkpoint(chain))
    throw new Stopped(`chain broken: ${event.id} follows ${previous}, not ${checkpoint(chain)}`);
  if (!db.isTransaction) db.exec("BEGIN");
  remember(event, chain, checkpoint(chain));
  try {
    work(event);
  } catch (cause) {
    throw new Stopped(`${event.id} at position ${event.position} could not be worked on`, { cause });
  }
  run("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", chain, event.position);
  return true;
}

// A restore from a backup opens an epoch, and positions from its first on are used again: what is delivered
// of an older one may never have happened. What of it still counts is in the feed, where the chain leads.
async function counts(epoch) {
  let known = one("SELECT epoch FROM subscription");
  if (epoch > known) {
    const newer = (await get("/v1/epochs", {})).items.filter((item) => item.epoch > known);
    if (newer.every((item) => item.epoch !== epoch)) throw new Error(`the feed knows no epoch ${epoch} yet`);
    known = Math.max(...newer.map((item) => item.epoch)); // older ones may still be in the stream
    if (!db.isTransaction) db.exec("BEGIN");
    run("UPDATE subscription SET epoch = ?", known);
    const start = Math.min(...newer.map((item) => item.from_position));
    if (start <= reached()) {
      const last = reached();
      heal(start);
      throw new Error(`restored from a backup: positions ${start} to ${last} never happened`);
    }
  }
  return epoch >= known;
}

// Undoes what was taken from a position on, or all where the journal does not go back so far.
function heal(start) {
  undo(start);
  if (reached() >= start)
    for (const table of ["equipment", "checkpoints", "journal"]) run(`DELETE FROM ${table}`);
  run("UPDATE subscription SET examined = min(examined, ?)", reached());
  commit();
  newest = 0;
}

async function get(path, query) {
  const given = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const headers = TOKEN ? { Authorization: `Bearer ${TOKEN}` } : {};
  const signal = AbortSignal.timeout(30_000);
  const answer = await fetch(`${GATEWAY_URL}${path}?${given}`, { headers, signal });
  if (!answer.ok) throw new Error(`the feed answers ${answer.status}: ${await answer.text()}`);
  return answer.json();
}

async function read(after, types, to = 0) {
  const taken = [];
  for (let isMore = !to || after < to; isMore; ) {
    const page = await get("/v1/events", { after, type: types.join(), limit: PAGE, min_position: to });
    await counts(page.epoch);
    for (const event of page.items)
      if ((!to || event.position <= to) && (await take(event))) taken.push(event.position);
    commit(); // between two events, work and checkpoints agree
    after = page.next_after;
    isMore = page.items.length > 0 && after < (to || page.head);
  }
  return { taken, after };
}

// History at first; later what was lost at the end of a chain, where nothing comes later that would show it.
let newest = 0; // position delivered since the last look: what is beyond may be on its way
async function look() {
  const to = newest;
  newest = 0;
  const from = types.length ? one("SELECT examined FROM subscription") : checkpoint("#");
  const { taken, after } = await read(from, types, to);
  run("UPDATE subscription SET examined = max(examined, ?)", to || after);
  if (taken.length) log(`taken from the feed, as nobody had delivered it: ${inWords(taken)}`);
}

// The CloudEvent in AMQP's binary mode, if it is one; the chain shows where something is missing.
function eventOf({ properties: { headers }, content }) {
  const attributes = Object.entries(headers).filter(([name]) => name.startsWith(PREFIX));
  const event = Object.fromEntries(attributes.map(([name, value]) => [name.slice(PREFIX.length), value]));
  if (!NEEDED.every((attribute) => attribute in event)) return;
  try {
    return { ...event, epoch: Number(event.source.split("/").at(-1)), data: JSON.parse(content) };
  } catch {}
}

// The stream has all types.
const isWanted = ({ type }) => !types.length || types.some((pattern) => matchesGlob(type, pattern));

async function takeBatch(channel, batch) {
  let taken = 0;
  for (const message of batch) {
    if (!message) throw new Error("the broker ended the consumer");
    const event = eventOf(message);
    if (!event || !isWanted(event) || !(await counts(event.epoch))) continue;
    newest = Math.max(newest, event.position);
    taken += await take(event);
  }
  const offset = batch.at(-1).properties.headers["x-stream-offset"];
  if (options.stream) run("UPDATE subscription SET stream_offset = ?", offset);
  run("DELETE FROM journal WHERE number <= ?", one("SELECT max(number) FROM journal") - KEPT);
  commit();
  channel.ack(batch.at(-1), true);
  log(`delivered ${batch.length}, taken ${taken}, up to position ${newest}`);
}

async function follow() {
  const { promise: ended, reject } = Promise.withResolvers();
  ended.catch(() => {}); // where something else fails first, nobody waits for it
  const connection = await amqp.connect(AMQP_URL, { timeout: 10_000 });
  const channel = await connection.createChannel();
  const close = () => reject(new Error("the connection was closed"));
  for (const each of [connection, channel]) each.on("error", reject).on("close", close);
  let working = Promise.resolve(); // one thing after the other
  const then = (step) => (working = working.then(step)).catch(reject);
  const waiting = [];
  const gathered = async () => (await setTimeout(GATHERING), takeBatch(channel, waiting.splice(0)));
  const receive = (message) => waiting.push(message) === 1 && then(gathered);
  let looking;
  try {
    await channel.prefetch(PAGE);
    if (options.stream) {
      const offset = one("SELECT stream_offset + 1 FROM subscription") || "first";
      await channel.consume("fpso.events.stream", receive, { arguments: { "x-stream-offset": offset } });
    } else {
      const queue = `subscriber.${name}`;
      const kind = { "x-queue-type": "quorum", "x-single-active-consumer": true };
      await channel.assertQueue(queue, { arguments: kind });
      for (const type of types.length ? types : ["#"])
        await channel.bindQueue(queue, "fpso.events", type.replace("*", "#"));
      if (!one("SELECT examined FROM subscription")) {
        log("reading history"); // what happens meanwhile waits in the queue: there is no seam
        await look();
      }
      await channel.consume(queue, receive);
    }
    log(`following from position ${reached()}`);
    looking = setInterval(() => then(look), Number(options["look-seconds"]) * 1000);
    await ended;
  } finally {
    clearInterval(looking);
    await working.catch(() => {});
    await connection.close().catch(() => {});
  }
}

const chosen = types.join() || "#";
if (!one("SELECT count(*) FROM subscription")) run("INSERT INTO subscription (types) VALUES (?)", chosen);
if (one("SELECT types FROM subscription") !== chosen) throw new Stopped(`${file} is of another subscription`);
for (;;) {
  try {
    await follow();
  } catch (error) {
    if (db.isTransaction) db.exec("ROLLBACK");
    if (error instanceof Stopped) throw error;
    log(`interrupted: ${error.message}`);
  }
  await setTimeout(1000);
}
