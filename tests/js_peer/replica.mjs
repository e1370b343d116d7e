// A peer's side of /groove/sync/1, docs/protocol.md §5: it holds what it hears, fetches tables,
// and tells it on. For tests: in memory, without quotas, and held to one bound on origins.
import * as digest from './digest.mjs'
import { FRAME_BYTES_MAX, open, openMessage, pack, packMessage } from './layouts.mjs'
import { Refused } from './msgpack.mjs'
import { headOf, Origin } from './origin.mjs'
import { envId, sha256 } from './signed.mjs'
import * as tables from './tables.mjs'

const ORIGINS_MAX = 10_000
const SUMMARIES_MAX = 1024
const FRAMES_MAX = 16 // that answer one question
const ZERO32 = Buffer.alloc(32)
const ROOM = FRAME_BYTES_MAX.sync - 64 // for the type and the lengths of arrays

export class Replica {
  /** send(peer, frame); tell(event): what a test wants to know; nowH(): hours since 1970. */
  constructor({ send, tell, nowH }) {
    this.send = (peer, message) => send(peer, packMessage('sync', message))
    this.tell = tell
    this.nowH = nowH
    this.origins = new Map() // by slot, in hexadecimal
    this.peers = new Set()
  }

  origin(name) {
    const slot = name.subarray(0, 16).toString('hex')
    if (!this.origins.has(slot)) {
      if (this.origins.size >= ORIGINS_MAX) throw new Refused('no room for another origin')
      this.origins.set(slot, new Origin(name))
    }
    return this.origins.get(slot)
  }

  // Connections and time

  peerUp(peer) {
    this.peers.add(peer)
    this.open(peer)
  }

  peerDown(peer) {
    this.peers.delete(peer)
    for (const origin of this.origins.values())
      if (origin.coming?.from === peer) origin.coming = null
  }

  /** Begin a round of reconciliation. */
  open(peer) {
    this.send(peer, { type: 'digest/1', ranges: [digest.opening(this.items())] })
  }

  items() {
    return [...this.origins.values()]
      .filter((one) => one.keys.size > 0)
      .map((one) => one.item())
      .sort(Buffer.compare)
  }

  // Frames

  /** Take what a peer said; urgent: over the broadcast, where nobody is blamed. */
  handle(peer, frame, { urgent = false } = {}) {
    try {
      const message = openMessage(frame, 'sync')
      if (message === null || (urgent && message.type !== 'have/1'))
        return this.tell({ ev: 'ignored', peer })
      this.take(peer, message, urgent)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      this.tell({ ev: 'refused', peer, reason: error.message, urgent })
    }
  }

  take(peer, message, urgent) {
    switch (message.type) {
      case 'have/1':
        return this.have(peer, message, urgent)
      case 'digest/1':
        return this.digest(peer, message)
      case 'compare/1':
        return this.compare(peer, message)
      case 'echo-get/1':
        return this.echo(peer, message)
      case 'echo/1':
        return this.tell({
          ev: 'echo',
          peer,
          origin: hex(message.origin),
          seq: String(message.head ? headOf(message.head).seq : 0)
        })
      case 'table-get/1':
        return this.serveTable(peer, message)
      case 'cards-get/1':
        return this.serveCards(peer, message)
      case 'manifest/1':
        return this.manifest(peer, message)
      case 'delta/1':
        return this.delta(peer, message)
      case 'cards/1':
        return this.cards(peer, message)
      case 'gone/1':
        return this.gone(peer, message)
    }
  }

  /** Keys first, then retractions, forks and heads: a head may need what came with it. */
  have(peer, message, urgent) {
    const news = { keys: [], heads: [], retracts: [], forks: [] }
    const moved = new Set()
    const heard = (part, record, origin, isNews) => {
      if (!isNews) return
      news[part].push(record)
      moved.add(origin)
    }
    try {
      for (const doc of message.keys) {
        const origin = this.origin(sha256(doc.root))
        heard('keys', doc, origin, origin.addKey(doc))
      }
      for (const env of message.retracts) {
        const { origin: name, leaf } = open(env.payload, 'Retract')
        const origin = this.origin(name)
        const isNews = origin.addRetract(env)
        heard('retracts', env, origin, isNews)
        if (isNews)
          this.tell({ ev: 'retracted', origin: hex(name), leaf: leaf && hex(leaf), peer, urgent })
      }
      for (const fork of message.forks) {
        const origin = this.origin(headOf(fork.a).origin)
        const isNews = origin.addFork(fork)
        heard('forks', fork, origin, isNews)
        if (isNews) this.tell({ ev: 'forked', origin: hex(origin.name), peer })
      }
      for (const env of message.heads) this.head(peer, headOf(env))
    } finally {
      if (moved.size > 0 && !urgent) this.pass(peer, news)
    }
  }

  head(peer, head) {
    const origin = this.origin(head.origin)
    const verdict = origin.judge(head, this.nowH())
    if (verdict === 'fork') {
      this.tell({ ev: 'forked', origin: hex(origin.name), peer })
      return this.pass(null, { keys: [], heads: [], retracts: [], forks: [origin.fork] })
    }
    if (verdict !== 'wanted') return
    const held = origin.head
    if (
      held &&
      held.table_root.equals(head.table_root) &&
      held.usage.equals(head.usage) &&
      held.n_live === head.n_live
    ) {
      return this.stand(origin, head, origin.table, peer)
    }
    origin.coming = { head, from: peer, table: null }
    this.send(peer, {
      type: 'table-get/1',
      origin: origin.name,
      head: head.id,
      base: held ? held.id : ZERO32
    })
  }

  stand(origin, head, table, peer) {
    origin.stand(head, table)
    this.tell({
      ev: 'held',
      origin: hex(origin.name),
      seq: String(head.seq),
      leaves: table.rows.map((row) => hex(row.leaf)),
      peer
    })
    const summary = { type: 'compare/1', summaries: [origin.summary()], answer: 1 }
    for (const other of this.peers) if (other !== peer) this.send(other, summary)
  }

  /** Tell all but one what was news here. */
  pass(from, news) {
    const slots = new Set(units(news).map((unit) => hex(unit.name.subarray(0, 16))))
    const frames = [...slots].flatMap((slot) => {
      const origin = this.origins.get(slot)
      const given = Object.fromEntries(
        Object.entries(news).map(([part, records]) => [
          part,
          records.filter((record) => nameOf(part, record).equals(origin.name))
        ])
      )
      return haves([[origin, given, { ids: Buffer.alloc(0) }]])
    })
    for (const other of this.peers)
      if (other !== from) for (const frame of frames) this.send(other, frame)
  }

  // Reconciliation

  digest(peer, { ranges: theirs }) {
    const { slots, ranges } = digest.answer(this.items(), theirs)
    if (ranges.length > 0) this.send(peer, { type: 'digest/1', ranges })
    if (slots.length > 0)
      this.say(
        peer,
        slots.map((slot) => this.at(slot).summary()),
        1
      )
    if (ranges.length === 0 && slots.length === 0) this.say(peer, [], 0)
  }

  compare(peer, { summaries, answer }) {
    const slots = new Set(summaries.map((one) => hex(one.slot)))
    if (slots.size < summaries.length) throw new Refused('slot twice')
    const given = haves(
      summaries.map((their) => [this.at(their.slot), this.at(their.slot).lackedBy(their), their])
    )
    for (const message of given.slice(0, FRAMES_MAX)) this.send(peer, message)
    if (answer === 0) return
    const lacking = summaries
      .map((their) => [this.at(their.slot), their])
      .filter(([mine, their]) => mine.lacks(their))
    if (lacking.length > 0 || given.length === 0)
      this.say(
        peer,
        lacking.map(([mine]) => mine.summary()),
        0
      )
  }

  /** What is held of a slot; of one unknown here, nothing. */
  at(slot) {
    return this.origins.get(hex(slot)) ?? new Origin(Buffer.concat([slot, Buffer.alloc(16)]))
  }

  say(peer, summaries, answer) {
    for (const part of parted(summaries, (one) => pack('Summary', one).length, SUMMARIES_MAX)) {
      this.send(peer, { type: 'compare/1', summaries: part, answer })
    }
  }

  echo(peer, { origin: name }) {
    const origin = this.at(name.subarray(0, 16))
    const newest = [...origin.keys.values()]
      .map(({ doc }) => doc)
      .sort((a, b) => b.epoch - a.epoch)[0]
    this.send(peer, {
      type: 'echo/1',
      origin: name,
      key: newest ?? null,
      head: origin.head?.env ?? null
    })
  }

  // Tables, out

  serveTable(peer, asked) {
    const origin = this.served(peer, asked)
    if (!origin) return
    const { rows, ended, cards, usage } = origin.table
    const message = {
      type: 'manifest/1',
      head: origin.head.env,
      index: { rows, ended },
      cards: [],
      usage: []
    }
    const first = asked.base.equals(ZERO32)
      ? rows.map((row) => cards.get(hex(row.card))).filter(Boolean)
      : []
    this.send(peer, filled(message, first, usage))
  }

  serveCards(peer, asked) {
    const origin = this.served(peer, asked)
    if (!origin) return
    const wanted = []
    for (let at = 0; at + 32 <= asked.cards.length; at += 32) {
      const card = origin.table.cards.get(hex(asked.cards.subarray(at, at + 32)))
      if (card) wanted.push(card)
    }
    const message = {
      type: 'cards/1',
      origin: asked.origin,
      head: asked.head,
      cards: [],
      usage: []
    }
    this.send(peer, filled(message, wanted, asked.usage ? origin.table.usage : []))
  }

  /** The origin whose head is asked for; else "gone". Its retractions go before any answer. */
  served(peer, { origin: name, head }) {
    const origin = this.at(name.subarray(0, 16))
    const retracts = [...origin.retracts.values()].map(({ env }) => env)
    const given = { keys: [], heads: [], retracts, forks: [] }
    for (const message of haves([[origin, given, { ids: Buffer.alloc(0) }]]))
      this.send(peer, message)
    if (origin.head?.id.equals(head)) return origin
    this.send(peer, { type: 'gone/1', origin: name, head })
    return null
  }

  // Tables, in

  manifest(peer, message) {
    const origin = this.awaited(message.head)
    if (!origin) return
    const { head } = origin.coming
    const cards = new Map(origin.table?.cards)
    const table = { ...message.index, cards, usage: message.usage }
    tables.checkIndex(head, table)
    tables.addCards(table, message.cards)
    origin.coming.table = table
    this.advance(peer, origin)
  }

  cards(peer, { origin: name, head, cards, usage }) {
    const origin = this.at(name.subarray(0, 16))
    if (!origin.coming?.table || !origin.coming.head.id.equals(head)) return
    tables.addCards(origin.coming.table, cards)
    if (usage.length > 0) origin.coming.table.usage = usage
    this.advance(peer, origin)
  }

  delta(peer, message) {
    const told = headOf(message.head)
    const origin = this.at(told.origin.subarray(0, 16))
    if (!origin.coming?.head.id.equals(told.id)) {
      if (!origin.table || origin.judge(told, this.nowH()) !== 'wanted') return
      origin.coming = { head: told, from: peer, table: null }
    }
    const { head } = origin.coming
    if (!origin.table || !tables.tableRoot(origin.table).equals(message.base_root)) {
      return this.send(peer, {
        type: 'table-get/1',
        origin: origin.name,
        head: head.id,
        base: ZERO32
      })
    }
    const table = {
      ...tables.patched(origin.table, message.puts, message.ends),
      usage: message.usage
    }
    try {
      tables.checkIndex(head, table)
    } catch {
      throw new Refused("delta is not the head's")
    }
    origin.coming.table = table
    this.advance(peer, origin)
  }

  gone(peer, { origin: name, head }) {
    const origin = this.at(name.subarray(0, 16))
    if (origin.coming?.head.id.equals(head)) origin.coming = null
  }

  /** Ask for what a table still lacks, or let its head stand. */
  advance(peer, origin) {
    const { head, table } = origin.coming
    const wanted = tables.lacking(table, (leaf) => origin.withdrawn(leaf))
    const usage = tables.usageHash(table.usage).equals(head.usage) ? 0 : 1
    if (wanted.length === 0 && usage === 0) {
      const listed = new Set(table.rows.map((row) => hex(row.card)))
      for (const card of table.cards.keys()) if (!listed.has(card)) table.cards.delete(card)
      return this.stand(origin, head, table, peer)
    }
    const missing = 2 * wanted.length + usage
    if (missing >= (origin.coming.missing ?? Infinity))
      return this.gone(peer, { origin: origin.name, head: head.id })
    origin.coming.missing = missing
    this.send(peer, {
      type: 'cards-get/1',
      origin: origin.name,
      head: head.id,
      cards: Buffer.concat(wanted),
      usage
    })
  }

  awaited(env) {
    const origin = this.at(headOf(env).origin.subarray(0, 16))
    return origin.coming?.head.id.equals(envId(env)) ? origin : null
  }
}

/** Put in as many of the cards as fit, after the usage if all of that fits. */
function filled(message, cards, usage) {
  let room = ROOM - packMessage('sync', message).length
  const usageBytes = usage.reduce((sum, row) => sum + pack('Usage', row).length, 0)
  const whole = usageBytes <= room
  if (whole) room -= usageBytes
  return {
    ...message,
    usage: whole ? usage : [],
    cards: parted(cards, (card) => pack('Card', card).length, 1024, room)[0]
  }
}

/** Records as `have/1`, each in one frame with the document that opens it. */
export function haves(parts) {
  const messages = []
  let message = null
  let room = 0
  for (const [origin, given, their] of parts) {
    let opened = new Set()
    for (const { part, record, bytes } of units(given)) {
      const alone = { keys: [], heads: [], retracts: [], forks: [], [part]: [record] }
      const openers = part === 'keys' ? [] : origin.openers(alone, their)
      const cost = bytes + openers.reduce((sum, doc) => sum + pack('KeyDoc', doc).length, 0)
      if (message === null || cost > room) {
        message = { type: 'have/1', keys: [], heads: [], retracts: [], forks: [] }
        messages.push(message)
        room = ROOM
        opened = new Set()
      }
      for (const doc of part === 'keys' ? [record] : openers) {
        const id = hex(sha256(pack('KeyDoc', doc)))
        if (!opened.has(id)) message.keys.push(doc)
        opened.add(id)
      }
      if (part !== 'keys') message[part].push(record)
      room -= cost
    }
  }
  return messages
}

const STRUCTURE = { keys: 'KeyDoc', retracts: 'Env', forks: 'Fork', heads: 'Env' }

function units(given) {
  return Object.entries(STRUCTURE).flatMap(([part, structure]) =>
    given[part].map((record) => ({
      part,
      record,
      name: nameOf(part, record),
      bytes: pack(structure, record).length
    }))
  )
}

function nameOf(part, record) {
  switch (part) {
    case 'keys':
      return sha256(record.root)
    case 'retracts':
      return open(record.payload, 'Retract').origin
    case 'forks':
      return headOf(record.a).origin
    case 'heads':
      return headOf(record).origin
  }
}

/** Items in order, in parts of at most so many and so many bytes; without any, one empty part. */
function parted(items, size, most, bytesMax = ROOM) {
  const parts = [[]]
  let room = bytesMax
  for (const item of items) {
    const bytes = size(item)
    if (bytes > room || parts.at(-1).length === most) {
      parts.push([])
      room = bytesMax
    }
    parts.at(-1).push(item)
    room -= bytes
  }
  return parts
}

const hex = (data) => data.toString('hex')
