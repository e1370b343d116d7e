// Every structure and message of docs/protocol.md, by the names of their fields, with their limits.
// What is opened here is of the right form; whether it is true, origin.mjs and tables.mjs ask.
import { decode, encode, Refused } from './msgpack.mjs'

const int = (high, low = 0) => ({ kind: 'int', low: BigInt(low), high: BigInt(high) })
const bytes = (low, high = low) => ({ kind: 'bytes', low, high })
const text = (low, high) => ({ kind: 'text', low, high })
const many = (item, high, low = 0) => ({ kind: 'many', item, low, high })
const maybe = (item) => ({ kind: 'maybe', item })
const tuple = (fields, more = {}) => ({ kind: 'tuple', fields: Object.entries(fields), ...more })

export const CHUNK_BYTES = 262_144
export const FRAME_BYTES_MAX = { sync: 65_536, bundle: 327_680, peers: 24_576 }

const u8 = int(255)
const u32 = int(2 ** 32 - 1)
const u63 = int(2n ** 63n - 1n)
const i32 = int(2 ** 31 - 1, -(2 ** 31))
const log2 = int(63)
const epoch = int(255, 1)
const flag = int(1)
const op = int(5, 1)
const evalset = int(5, 1)
const b8 = bytes(8)
const b16 = bytes(16)
const b32 = bytes(32)

const Env = tuple({ type: text(1, 16), payload: bytes(0, 400), sig: bytes(64) }, { bytesMax: 512 })
const KeyDoc = tuple(
  {
    root: b32,
    epoch,
    op: b32,
    not_before_h: u32,
    not_after_h: u32,
    revoked: many(epoch, 255),
    pow: int(0),
    sig: bytes(64)
  },
  { bytesMax: 1024 }
)
const Fork = tuple({ a: Env, b: Env }, { bytesMax: 1040 })
const Bundle = tuple({
  root: b32,
  size_bytes: int(2 ** 28, 1),
  chassis: b8,
  rank: int(1024, 1),
  scores: many(tuple({ evalset, score_q: i32, parent_score_q: i32 }), 8),
  format: int(1, 1),
  label: b32
})
const Card = tuple(
  {
    leaf: b16,
    version: u32,
    stage: int(3, 1),
    op,
    centroid: bytes(384),
    sessions_log2: log2,
    chassis: b8,
    enc: b8,
    parents: many(bytes(0, 80), 8),
    growth_q: i32,
    scores: many(tuple({ evalset, score_q: i32 }), 8),
    bundle: maybe(Bundle)
  },
  {
    bytesMax: 1024,
    rule: (card) => card.parents.every((parent) => parent.length === (card.op === 5 ? 80 : 16))
  }
)
const Usage = tuple(
  { origin: b32, leaf: b16, week: u32, routed_log2: log2, accepted_log2: log2 },
  { bytesMax: 128 }
)
const Row = tuple({ leaf: b16, version: u32, card: b32 })
const Ended = tuple({ leaf: b16, version: u32, reason: int(5, 1), into: many(b16, 8) })
const Index = tuple(
  { rows: many(Row, 1024), ended: many(Ended, 1024) },
  {
    bytesMax: 61_440,
    rule: ({ rows, ended }) => {
      const live = new Set(rows.map((row) => row.leaf.toString('hex')))
      return (
        rows.length + ended.length <= 1024 &&
        ascending(rows) &&
        ascending(ended) &&
        !ended.some((end) => live.has(end.leaf.toString('hex')))
      )
    }
  }
)
const Range = tuple(
  { low: b16, high: b16, count: u32, fingerprint: b16, items: bytes(0, 32 * 1024) },
  {
    rule: (range) =>
      Buffer.compare(range.low, range.high) <= 0 &&
      (range.items.length === 0 || range.items.length === 32 * range.count)
  }
)
const Summary = tuple({
  slot: b16,
  epoch: u8,
  standing: int(2),
  seq: u63,
  head: b16,
  ids: bytes(0, 16 * 1279)
})

const AddressRecord = tuple(
  { key: b32, places: many(bytes(1, 256), 4, 1), ts_h: u32, sig: bytes(64) },
  { bytesMax: 1200 }
)

const envs = many(Env, 1024)
const cards = many(Card, 1024)
const usage = many(Usage, 256)

export const STRUCTURES = {
  Env,
  KeyDoc,
  Fork,
  Card,
  Usage,
  Row,
  Ended,
  Index,
  Range,
  Summary,
  AddressRecord,
  Head: tuple(
    {
      origin: b32,
      epoch,
      seq: u63,
      prev_seq: u63,
      prev: b32,
      table_root: b32,
      n_live: int(1024),
      ts_h: u32,
      exp_h: u32,
      flags: u8,
      enc: b8,
      usage: b32
    },
    { bytesMax: 400 }
  ),
  Retract: tuple(
    { origin: b32, epoch: u8, leaf: maybe(b16), ts_h: u32, scope: int(3, 1) },
    { bytesMax: 200 }
  ),
  ChunkList: tuple(
    {
      size_bytes: int(2 ** 28, 1),
      chunk_bytes: int(CHUNK_BYTES, CHUNK_BYTES),
      hashes: bytes(32, 32 * 1024)
    },
    {
      bytesMax: 33_792,
      rule: (list) => list.hashes.length === 32 * Math.ceil(list.size_bytes / CHUNK_BYTES)
    }
  )
}

export const MESSAGES = {
  sync: {
    'have/1': tuple({
      keys: many(KeyDoc, 1024),
      heads: envs,
      retracts: envs,
      forks: many(Fork, 1024)
    }),
    'digest/1': tuple(
      { ranges: many(Range, 256, 1) },
      {
        rule: ({ ranges }) =>
          ranges.every((range, n) => n === 0 || Buffer.compare(ranges[n - 1].high, range.low) < 0)
      }
    ),
    'compare/1': tuple({ summaries: many(Summary, 1024), answer: flag }),
    'echo-get/1': tuple({ origin: b32 }),
    'echo/1': tuple({ origin: b32, key: maybe(KeyDoc), head: maybe(Env) }),
    'table-get/1': tuple({ origin: b32, head: b32, base: b32 }),
    'delta/1': tuple({
      head: Env,
      base_seq: u63,
      base_root: b32,
      puts: cards,
      ends: many(Ended, 1024),
      usage
    }),
    'manifest/1': tuple({ head: Env, index: Index, cards, usage }),
    'cards-get/1': tuple({ origin: b32, head: b32, cards: bytes(0, 32 * 1024), usage: flag }),
    'cards/1': tuple({ origin: b32, head: b32, cards, usage }),
    'gone/1': tuple({ origin: b32, head: b32 })
  },
  bundle: {
    'list-get/1': tuple({ root: b32 }),
    'list/1': tuple({ root: b32, data: bytes(0, 65_536) }),
    'chunk-get/1': tuple({ root: b32, indices: many(int(1023), 8, 1) }),
    'chunk/1': tuple({ root: b32, index: int(1023), data: bytes(1, CHUNK_BYTES) }),
    'not-here/1': tuple({ root: b32 })
  },
  peers: {
    'peers-get/1': tuple({ count: int(15) }),
    'peers/1': tuple({ records: many(AddressRecord, 16) })
  }
}

/** Return a structure by the names of its fields. Throws Refused. */
export function open(data, structure) {
  const layout = STRUCTURES[structure]
  if (data.length > layout.bytesMax) throw new Refused('too large')
  return read(decode(data), layout)
}

/** Return a message of a plane as {type, ...fields}, or null if its type is unknown here. */
export function openMessage(data, plane) {
  if (data.length > FRAME_BYTES_MAX[plane]) throw new Refused('too large')
  const value = decode(data)
  if (!Array.isArray(value) || typeof value[0] !== 'string') throw new Refused('wrong fields')
  const [type, ...fields] = value
  if (!Object.hasOwn(MESSAGES[plane], type)) return null
  return { type, ...read(fields, MESSAGES[plane][type]) }
}

export const pack = (structure, value) => encode(bare(value, STRUCTURES[structure]))

export function packMessage(plane, message) {
  return encode([message.type, ...bare(message, MESSAGES[plane][message.type])])
}

function read(value, layout) {
  switch (layout.kind) {
    case 'int':
      if (typeof value !== 'bigint' || value < layout.low || value > layout.high)
        throw new Refused('wrong fields')
      return layout.high > BigInt(Number.MAX_SAFE_INTEGER) ? value : Number(value)
    case 'bytes':
      if (!Buffer.isBuffer(value)) throw new Refused('wrong fields')
      return within(value, value.length, layout)
    case 'text':
      if (typeof value !== 'string') throw new Refused('wrong fields')
      return within(value, Buffer.byteLength(value), layout)
    case 'maybe':
      return value === null ? null : read(value, layout.item)
    case 'many':
      if (!Array.isArray(value)) throw new Refused('wrong fields')
      return within(value, value.length, layout).map((item) => read(item, layout.item))
  }
  if (!Array.isArray(value) || value.length !== layout.fields.length)
    throw new Refused('wrong fields')
  const named = Object.fromEntries(
    layout.fields.map(([name, part], n) => [name, read(value[n], part)])
  )
  if (layout.rule && !layout.rule(named)) throw new Refused('wrong fields')
  // Of what is read there is one encoding, so its length can be had from the value.
  if (layout.bytesMax && encode(value).length > layout.bytesMax) throw new Refused('too large')
  return named
}

function bare(value, layout) {
  switch (layout.kind) {
    case 'maybe':
      return value === null ? null : bare(value, layout.item)
    case 'many':
      return value.map((item) => bare(item, layout.item))
    case 'tuple':
      return layout.fields.map(([name, part]) => bare(value[name], part))
  }
  return value
}

function within(value, length, { low, high }) {
  if (length < low || length > high) throw new Refused('wrong fields')
  return value
}

function ascending(rows) {
  return rows.every((row, n) => n === 0 || Buffer.compare(rows[n - 1].leaf, row.leaf) < 0)
}
