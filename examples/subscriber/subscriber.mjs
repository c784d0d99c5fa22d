// The twin of subscriber.py for Node.js 24 or newer: the same rules and tables, so that either can go on with
// the other's file. It needs amqplib (npm install amqplib).
//
//     node subscriber.mjs maintenance.sqlite maintenance 'fpso.equipment.*'

import { DatabaseSync } from "node:sqlite";
import { setTimeout } from "node:timers/promises";
import { parseArgs } from "node:util";
import { matchesGlob } from "node:path";
import amqp from "amqplib";

const { values: options, positionals: [file, name, ...types] } = parseArgs({
  allowPositionals: true,
  options: { stream: { type: "boolean" }, "look-seconds": { type: "string", default: "30" } },
});
const AMQP_URL = process.env.FPSO_SUBSCRIBER_AMQP_URL ?? "amqp://localhost/";
const GATEWAY_URL = process.env.FPSO_GATEWAY_URL ?? "http://localhost:8088";
const PAGE = 1000; // events, and deliveries that are out unacknowledged
const GATHERING = 20; // milliseconds, in which deliveries are gathered to be committed together
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
`);
const run = (statement, ...parameters) => db.prepare(statement).run(...parameters);
const one = (query, ...parameters) => Object.values(db.prepare(query).get(...parameters) ?? {})[0] ?? 0;
const commit = () => db.isTransaction && db.exec("COMMIT");
const checkpoint = (chain) => one("SELECT position FROM checkpoints WHERE chain = ?", chain);
const log = (text) => console.error(new Date().toISOString(), text);
const inWords = (taken) => (taken.length ? `${taken.length} events, positions ${taken[0]} to ${taken.at(-1)}` : "nothing");
class Stopped extends Error {} // what no later attempt would mend

// What an event means here, in the transaction that moves the checkpoint: put your own work in its place.
function work({ subject, type, position }) {
  const [, kind, code] = subject.match(/^(\w+)\/(.*)$/);
  const what = type.split(".")[2];
  if (kind !== "equipment") return;
  run("INSERT OR IGNORE INTO equipment (code) VALUES (?)", code);
  if (STATUS[what])
    run("UPDATE equipment SET status = ?, status_at = ? WHERE code = ? AND status_at < ?", STATUS[what], position, code, position);
  if (OPERATIONS[what])
    run("UPDATE equipment SET operations = operations + ? WHERE code = ?", OPERATIONS[what], code);
}

// The chain: what was taken before is skipped, what is missing before an event is taken from the feed first.
async function take(event) {
  const [chain, previous] = types.length ? [event.type, event.previousoftype] : ["#", event.previousposition];
  const after = checkpoint(chain);
  if (event.position <= after) return false;
  if (previous > after) {
    log(`missing on chain ${chain}: after position ${after}, up to ${previous}`);
    log(`healed on chain ${chain}: ${inWords((await read(after, types.length ? [chain] : [], previous)).taken)}`);
  }
  if (previous !== checkpoint(chain))
    throw new Stopped(`chain broken: ${event.id} follows ${previous}, but the checkpoint is ${checkpoint(chain)}`);
  if (!db.isTransaction) db.exec("BEGIN");
  work(event);
  run("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", chain, event.position);
  return true;
}

// Whether an epoch counts. After a restore from a backup, which opens one, what is here may never have happened.
function counts(epoch) {
  const known = one("SELECT epoch FROM subscription");
  if (epoch > known && one("SELECT max(position) FROM checkpoints"))
    throw new Stopped(`the system was restored from a backup, epoch ${epoch}: delete ${file} and start anew`);
  if (epoch > known) run("UPDATE subscription SET epoch = ?", epoch);
  return epoch >= known;
}

async function read(after, types, to = 0) {
  const taken = [];
  for (let isMore = !to || after < to; isMore; ) {
    const query = Object.entries({ after, type: types.join(), limit: PAGE, min_position: to }).filter(([, value]) => value);
    const answer = await fetch(`${GATEWAY_URL}/v1/events?${new URLSearchParams(query)}`, { signal: AbortSignal.timeout(30_000) });
    if (!answer.ok) throw new Error(`the feed answers ${answer.status}: ${await answer.text()}`);
    const page = await answer.json();
    counts(page.epoch);
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
  const { taken, after } = await read(types.length ? one("SELECT examined FROM subscription") : checkpoint("#"), types, to);
  run("UPDATE subscription SET examined = max(examined, ?)", to || after);
  if (taken.length) log(`taken from the feed, as nobody had delivered it: ${inWords(taken)}`);
}

function eventOf({ properties: { headers }, content }) {
  const attributes = Object.entries(headers).filter(([name]) => name.startsWith("cloudEvents_"));
  const event = Object.fromEntries(attributes.map(([name, value]) => [name.slice("cloudEvents_".length), value]));
  return { ...event, data: JSON.parse(content) };
}

const isWanted = ({ type }) => !types.length || types.some((one) => matchesGlob(type, one)); // the stream has all

async function takeBatch(channel, batch) {
  for (const message of batch) {
    if (!message) throw new Error("the broker ended the consumer");
    const event = eventOf(message);
    if (!isWanted(event) || !counts(Number(event.source.split("/").at(-1)))) continue;
    newest = Math.max(newest, event.position);
    await take(event);
  }
  if (options.stream) run("UPDATE subscription SET stream_offset = ?", batch.at(-1).properties.headers["x-stream-offset"]);
  commit();
  channel.ack(batch.at(-1), true);
}

async function follow() {
  const { promise: ended, reject } = Promise.withResolvers();
  const connection = await amqp.connect(AMQP_URL, { timeout: 10_000 });
  const channel = await connection.createChannel();
  for (const each of [connection, channel]) each.on("error", reject).on("close", () => reject(new Error("closed")));
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
      await channel.assertQueue(queue, { arguments: { "x-queue-type": "quorum", "x-single-active-consumer": true } });
      for (const type of types.length ? types : ["#"]) await channel.bindQueue(queue, "fpso.events", type.replace("*", "#"));
      if (!one("SELECT examined FROM subscription")) await look(); // history; meanwhile the queue fills
      await channel.consume(queue, receive);
    }
    log(`following from position ${one("SELECT max(position) FROM checkpoints")}`);
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
