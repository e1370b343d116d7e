// Reads docs/wire-vectors.json with the modules of this peer: `node vectors.mjs FILE` prints for
// each part of the file how many cases were read, and fails at the first that is read otherwise.
import './polyfill.mjs'
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import * as digest from './digest.mjs'
import {
  FRAME_BYTES_MAX,
  MESSAGES,
  open,
  openMessage,
  pack,
  packMessage,
  STRUCTURES
} from './layouts.mjs'
import { decode, encode, Refused } from './msgpack.mjs'
import { conflict, headOf, Origin, proof } from './origin.mjs'
import { haves, Replica } from './replica.mjs'
import { peerName } from './peers.mjs'
import {
  checkAddress,
  checkEnvelope,
  checkKeyDoc,
  issue,
  publicKey,
  seal,
  sha256,
  signAddress
} from './signed.mjs'
import { readFrames, Writer } from './streams.mjs'
import * as tables from './tables.mjs'

const raw = (text) => Buffer.from(text, 'hex')
const hex = (data) => data.toString('hex')
// JSON.parse would round integers above 2^53.
const file = (await readFile(process.argv[2], 'utf8')).replace(
  /(?<=[[:,\s])\d{16,}(?=[,\s\]}])/g,
  '"$&n"'
)
const { frames, ...vectors } = JSON.parse(file, (_, value) =>
  /^\d+n$/.test(value) ? BigInt(value.slice(0, -1)) : value
)
vectors['frames on a stream'] = frames['on a stream']
const key = (name) => raw(vectors.keys.find((one) => one.name === name).public)

/** The key document under which the heads of the file are signed. */
function keyDoc() {
  const { encoding } = vectors.structures.find(({ structure }) => structure === 'KeyDoc')
  return open(raw(encoding), 'KeyDoc')
}

/** A value as the file writes it. */
function shown(value) {
  if (Buffer.isBuffer(value)) return hex(value)
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value
  if (Array.isArray(value)) return value.map(shown)
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [name, shown(field)]))
}

const parts = {
  keys({ seed, public: expected, origin, peer }) {
    assert.equal(hex(publicKey(raw(seed))), expected)
    if (peer) assert.equal(peerName(raw(expected)), peer)
    if (origin) assert.equal(hex(sha256(raw(expected))), origin)
  },
  structures({ structure, fields, encoding, sha256: hash, at_most: atMost }) {
    const value = open(raw(encoding), structure)
    assert.deepEqual(shown(value), fields)
    assert.equal(hex(pack(structure, value)), encoding)
    assert.equal(hex(sha256(raw(encoding))), hash)
    assert.equal(STRUCTURES[structure].bytesMax, atMost)
  },
  messages({ plane, type, fields, encoding, sha256: hash }) {
    const message = openMessage(raw(encoding), plane)
    assert.deepEqual(shown(message), { type, ...fields })
    assert.equal(hex(packMessage(plane, message)), encoding)
    assert.equal(hex(sha256(raw(encoding))), hash)
  },
  signatures({ name, seed, prefix, payload, signature, envelope }) {
    if (name === 'AddressRecord') {
      const [, places, hour] = decode(raw(payload))
      return assert.equal(hex(signAddress(places, hour, raw(seed)).sig), signature)
    }
    if (!envelope) {
      // a key document, which is carried without one
      const [root, epoch, op, notBefore, notAfter, revoked] = decode(raw(payload))
      const doc = issue(
        { epoch, op, not_before_h: notBefore, not_after_h: notAfter, revoked },
        raw(seed)
      )
      assert.deepEqual([hex(doc.root), hex(doc.sig)], [hex(root), signature])
      return checkKeyDoc(doc)
    }
    const env = open(raw(envelope), 'Env')
    assert.equal(hex(Buffer.from(`groove/${env.type}\0`)), prefix)
    const structure = { 'head/1': 'Head', 'retract/1': 'Retract' }[env.type]
    const sealed = seal(env.type, structure, open(raw(payload), structure), raw(seed))
    assert.deepEqual([hex(sealed.payload), hex(sealed.sig)], [payload, signature], name)
    checkEnvelope(env, publicKey(raw(seed)))
  },
  merkle({ leaves, root }) {
    assert.equal(hex(tables.merkleRoot(leaves.map(raw))), root)
  },
  tables({ cards, index, n_live: live, table_root: root }) {
    const table = { ...open(raw(index), 'Index'), cards: new Map(), usage: [] }
    tables.checkIndex({ n_live: live, table_root: raw(root) }, table)
    tables.addCards(
      table,
      cards.map(({ card }) => open(raw(card), 'Card'))
    )
    assert.deepEqual(
      tables.lacking(table, () => false),
      []
    )
  },
  usage({ encoding, usage }) {
    const rows = decode(raw(encoding)).map((row) => open(encode(row), 'Usage'))
    assert.equal(hex(tables.usageHash(rows)), usage)
  },
  transfers(transfer) {
    return transfer.messages[0].bytes ? large(transfer) : small(transfer)
  },
  bundles({ size_bytes: size, chunk_list: expected, root }) {
    const hashes = []
    for (let at = 0; at < size; at += 262_144) {
      hashes.push(
        sha256(
          Buffer.from(
            Array.from({ length: Math.min(262_144, size - at) }, (_, n) => (at + n) % 251)
          )
        )
      )
    }
    const list = pack('ChunkList', {
      size_bytes: size,
      chunk_bytes: 262_144,
      hashes: Buffer.concat(hashes)
    })
    assert.equal(hex(list), expected)
    assert.equal(hex(sha256(list)), root)
    open(list, 'ChunkList')
  },
  conflicts({ a, b, conflict: expected, proof: given }) {
    const [one, other] = [a, b].map((env) => headOf(open(raw(env), 'Env')))
    assert.equal(conflict(one, other), expected)
    assert.equal(conflict(other, one), expected)
    if (expected) assert.equal(hex(pack('Fork', proof(one, other))), given)
  },
  bounds({ now_s: now, head: env, never, not_yet: notYet }) {
    const head = headOf(open(raw(env), 'Env'))
    const origin = new Origin(head.origin)
    origin.addKey(keyDoc())
    // Looked at once it is no longer too early.
    if (never) return assert.throws(() => origin.judge(head, head.ts_h), Refused)
    assert.equal(origin.judge(head, Math.floor(now / 3600)), notYet ? 'later' : 'wanted')
  },
  sequence({ last, now_s: now, next }) {
    const jump = BigInt(Math.floor(now / 3600)) << 16n
    assert.equal(BigInt(last) + 1n > jump ? BigInt(last) + 1n : jump, BigInt(next))
  },
  summaries({ origin: name, held, summary, encoding, item }) {
    const origin = heldBy(name, held)
    assert.deepEqual(shown(origin.summary()), summary)
    assert.equal(hex(pack('Summary', origin.summary())), encoding)
    assert.equal(hex(origin.item()), item)
  },
  answers({ mine, theirs, given, asks_back: asksBack }) {
    const [here, there] = [mine, theirs].map((name) =>
      vectors.summaries.find((one) => one.name === name)
    )
    const [one, other] = [here, there].map(({ origin, held }) => heldBy(origin, held))
    const their = other.summary()
    const messages = haves([[one, one.lackedBy(their), their]])
    assert.deepEqual(
      records(messages),
      records(given.map((frame) => openMessage(raw(frame), 'sync')))
    )
    assert.equal(one.lacks(their), asksBack)
  },
  fingerprints({ items, fingerprint }) {
    assert.equal(hex(digest.fingerprint(items.map(raw))), fingerprint)
  },
  rounds({ opener, answerer, steps }) {
    const sides = [answerer, opener].map((items) => items.map(raw))
    let ranges = [digest.opening(sides[1])]
    steps.forEach(({ message, slots_found: found }, n) => {
      assert.equal(hex(packMessage('sync', { type: 'digest/1', ranges })), message)
      const answer = digest.answer(sides[n % 2], openMessage(raw(message), 'sync').ranges)
      assert.deepEqual(answer.slots.map(hex), found)
      ranges = answer.ranges
    })
    assert.deepEqual(ranges, [])
  },
  async 'frames on a stream'({ frame, bytes }) {
    const [read, written] = [[], []]
    await readFrames(
      (async function* () {
        for (const byte of raw(bytes)) yield Buffer.of(byte)
      })(),
      65_536,
      (one) => read.push(hex(one))
    )
    assert.deepEqual(read, [frame])
    const stream = { writeStatus: 'writable', send: (data) => written.push(hex(data)) }
    await new Writer(async () => stream).send(raw(frame))
    assert.deepEqual(written, [bytes])
  },
  tags({ text, tag }) {
    assert.equal(hex(sha256(text).subarray(0, 8)), tag)
  },
  refused({ name, kind, bytes, reason }) {
    const data = Buffer.concat(
      bytes.map((part) => (typeof part === 'string' ? raw(part) : Buffer.alloc(part)))
    )
    assert.throws(
      () => {
        if (Object.hasOwn(FRAME_BYTES_MAX, kind)) {
          if (openMessage(data, kind) === null) throw new Refused('unknown type')
        } else if (kind.startsWith('signed ')) signed(data, kind.slice(7))
        else open(data, kind)
      },
      Refused,
      `${name}: ${reason}`
    )
  }
}

function signed(data, structure) {
  if (structure === 'AddressRecord') return checkAddress(open(data, structure))
  if (structure === 'KeyDoc') {
    const doc = open(data, structure)
    if (!doc.root.equals(key('root'))) throw new Refused('key of another origin')
    return checkKeyDoc(doc)
  }
  const env = open(data, 'Env')
  if (env.type !== `${structure.toLowerCase()}/1`) throw new Refused('wrong type')
  const { epoch } = open(env.payload, structure)
  if (epoch > 1) throw new Refused('record without its key')
  checkEnvelope(env, key(epoch === 1 ? 'op of epoch 1' : 'root'))
}

/** What is held of an origin after these `have/1`; tables are left out, as summaries leave them. */
function heldBy(name, frames) {
  const origin = new Origin(raw(name))
  for (const message of frames.map((frame) => openMessage(raw(frame), 'sync'))) {
    message.keys.forEach((doc) => origin.addKey(doc))
    message.retracts.forEach((env) => origin.addRetract(env))
    message.forks.forEach((fork) => origin.addFork(fork))
    for (const env of message.heads) origin.stand(headOf(env), tables.EMPTY)
    origin.settle()
  }
  return origin
}

function records(messages) {
  const named = messages.flatMap((message) => [
    ...message.keys.map((doc) => pack('KeyDoc', doc)),
    ...[...message.heads, ...message.retracts].map((env) => pack('Env', env)),
    ...message.forks.map((fork) => pack('Fork', fork))
  ])
  return [...new Set(named.map(hex))].sort()
}

/** A replica that holds a table is shown the next head, and says what the file says. */
function small({ held, index, cards, head, messages }) {
  const sent = []
  const told = []
  const replica = new Replica({
    send: (_, frame) => sent.push(hex(frame)),
    tell: (event) => told.push(event),
    nowH: () => headOf(open(raw(head), 'Env')).ts_h
  })
  const old = headOf(open(raw(held), 'Env'))
  const origin = replica.origin(old.origin)
  origin.addKey(keyDoc())
  const table = { ...open(raw(index), 'Index'), cards: new Map(), usage: [] }
  tables.addCards(
    table,
    cards.map((card) => open(raw(card), 'Card'))
  )
  origin.stand(old, table)
  replica.head('peer', headOf(open(raw(head), 'Env')))
  for (let n = 0; n < messages.length; n += 2) {
    assert.equal(sent.at(-1), messages[n])
    replica.handle('peer', raw(messages[n + 1]))
  }
  assert.deepEqual(
    told.map(({ ev }) => ev),
    ['held']
  )
}

/** Two replicas, one of which holds the large table: their frames are those of the file. */
function large({ head, card, count, usage, usage_count: rows, messages }) {
  const env = open(raw(head), 'Env')
  const frames = []
  const make = (other) =>
    new Replica({
      send: (_, frame) => {
        frames.push(frame)
        queue.push([other, frame])
      },
      tell: () => {},
      nowH: () => headOf(env).ts_h
    })
  const queue = []
  const [giver, asker] = [make('asker'), make('giver')]
  const numbered = (n) =>
    Buffer.concat([Buffer.alloc(12), Buffer.of(n >>> 24, n >>> 16, n >>> 8, n)])
  const cards = Array.from({ length: count }, (_, n) => ({
    ...open(raw(card), 'Card'),
    leaf: numbered(n),
    version: n
  }))
  const table = {
    rows: cards.map((one) => ({
      leaf: one.leaf,
      version: one.version,
      card: tables.cardHash(one)
    })),
    ended: [],
    cards: new Map(cards.map((one) => [hex(tables.cardHash(one)), one])),
    usage: Array.from({ length: rows }, (_, n) => ({
      ...open(raw(usage), 'Usage'),
      leaf: numbered(n)
    }))
  }
  for (const replica of [giver, asker]) replica.origin(headOf(env).origin).addKey(keyDoc())
  giver.origin(headOf(env).origin).stand(headOf(env), table)
  asker.head('giver', headOf(env))
  while (queue.length > 0) {
    const [to, frame] = queue.shift()
    ;(to === 'asker' ? asker : giver).handle(to === 'asker' ? 'giver' : 'asker', frame)
  }
  assert.equal(asker.origin(headOf(env).origin).table.cards.size, count)
  assert.deepEqual(
    frames.map((frame) => [frame.length, hex(sha256(frame))]),
    messages.map((step) => [step.bytes, step.sha256])
  )
}

const read = {}
for (const [part, check] of Object.entries(parts)) {
  for (const one of vectors[part]) {
    try {
      await check(one)
    } catch (error) {
      console.error(`${part}: ${one.name ?? JSON.stringify(one).slice(0, 100)}`)
      throw error
    }
  }
  read[part] = vectors[part].length
}
const types = [
  ...vectors.structures.map((one) => one.structure),
  ...vectors.messages.map((one) => one.type)
]
const unread = Object.keys(Object.assign({}, STRUCTURES, ...Object.values(MESSAGES))).filter(
  (type) => !types.includes(type) && !['Row', 'Ended', 'Range', 'Summary'].includes(type)
)
assert.deepEqual(unread, [])
console.log(JSON.stringify(read))
