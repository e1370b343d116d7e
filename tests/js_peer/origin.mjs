// What is held of one origin and what may be said of it, docs/protocol.md §4 and §6.
import { open, pack } from './layouts.mjs'
import { Refused } from './msgpack.mjs'
import { checkEnvelope, checkKeyDoc, envId, sha256 } from './signed.mjs'

const RETRACTS_MAX = 1024
const LIFETIME_H_MAX = 168
const HEADS_REMEMBERED = 16
const SOUND = 0
const FROZEN = 1
const DEAD = 2

/** Two heads of one origin and epoch that no honest owner can have signed both. */
export function conflict(a, b) {
  if (a.id.equals(b.id) || a.epoch !== b.epoch) return false
  const [low, high] = a.seq <= b.seq ? [a, b] : [b, a]
  if (low.seq === high.seq || high.prev_seq < low.seq) return true
  return high.prev_seq === low.seq && !high.prev.equals(low.id)
}

/** A head's fields, with its envelope and id. */
export function headOf(env) {
  if (env.type !== 'head/1') throw new Refused('wrong type')
  return { ...open(env.payload, 'Head'), env, id: envId(env) }
}

export function proof(a, b) {
  const [first, second] = Buffer.compare(a.id, b.id) < 0 ? [a, b] : [b, a]
  return { a: first.env, b: second.env }
}

export class Origin {
  constructor(name) {
    this.name = name
    this.keys = new Map() // by id, in hexadecimal
    this.retracts = new Map() // by leaf, in hexadecimal; '' for all leaves
    this.fork = null
    this.head = null // the one that stands
    this.table = null // its table
    this.recent = [] // heads that stood
    this.coming = null // {head, table, from}: a head whose table is on its way
  }

  get slot() {
    return this.name.subarray(0, 16)
  }

  get epoch() {
    return Math.max(0, ...[...this.keys.values()].map(({ doc }) => doc.epoch))
  }

  get standing() {
    const docs = [...this.keys.values()].map(({ doc }) => doc)
    if (
      new Set(docs.map((doc) => doc.epoch)).size < docs.length ||
      this.retracts.size > RETRACTS_MAX
    )
      return DEAD
    const epoch = this.epoch
    if (this.fork && headOf(this.fork.a).epoch === epoch) return FROZEN
    return docs.some((doc) => doc.revoked.includes(epoch)) ? FROZEN : SOUND
  }

  withdrawn(leaf) {
    return this.retracts.has('') || this.retracts.has(leaf.toString('hex'))
  }

  // Each of these returns whether it was news, and throws Refused at what is false.

  addKey(doc) {
    const id = sha256(pack('KeyDoc', doc))
    if (this.keys.has(hex(id)) || this.standing === DEAD) return false
    checkKeyDoc(doc)
    this.keys.set(hex(id), { doc, id })
    this.settle()
    return true
  }

  addRetract(env) {
    if (env.type !== 'retract/1') throw new Refused('wrong type')
    const retract = { ...open(env.payload, 'Retract'), env, id: envId(env) }
    const leaf = retract.leaf === null ? '' : hex(retract.leaf)
    const held = this.retracts.get(leaf)
    if (this.standing === DEAD || (held && Buffer.compare(held.id, retract.id) <= 0)) return false
    checkEnvelope(env, this.signer(retract.epoch))
    this.retracts.set(leaf, retract)
    if (this.table) {
      for (const row of this.table.rows)
        if (this.withdrawn(row.leaf)) this.table.cards.delete(hex(row.card))
    }
    this.settle()
    return true
  }

  addFork(fork) {
    const [a, b] = [headOf(fork.a), headOf(fork.b)]
    if (!conflict(a, b) || Buffer.compare(a.id, b.id) >= 0)
      throw new Refused('heads do not conflict')
    if (this.standing !== SOUND || a.epoch !== this.epoch) return false
    checkEnvelope(fork.a, this.signer(a.epoch))
    checkEnvelope(fork.b, this.signer(b.epoch))
    this.fork = fork
    this.settle()
    return true
  }

  /** Return 'ignored', 'later', 'wanted' or 'fork'. */
  judge(head, nowH) {
    if (this.standing !== SOUND || head.epoch < this.epoch) return 'ignored'
    const seen = [this.head, this.coming?.head, ...this.recent].filter((one) => one)
    if (seen.some((one) => one.id.equals(head.id))) return 'ignored'
    const rival = seen.find((one) => conflict(one, head))
    if (!rival) {
      if (head.seq <= (this.coming?.head ?? this.head)?.seq) return 'ignored'
      if (head.ts_h > nowH + 1 || head.seq >> 16n > BigInt(nowH + 24)) return 'later'
    }
    const signer = this.signer(head.epoch)
    checkEnvelope(head.env, signer)
    const [doc] = [...this.keys.values()]
      .map((key) => key.doc)
      .filter((key) => key.epoch === head.epoch)
    if (head.exp_h < head.ts_h || head.exp_h > head.ts_h + LIFETIME_H_MAX)
      throw new Refused('head lives too long')
    if (head.prev_seq >= head.seq) throw new Refused('head before itself')
    if (head.ts_h < doc.not_before_h || head.ts_h > doc.not_after_h)
      throw new Refused("head outside its key's time")
    if (!rival) return 'wanted'
    this.fork = proof(rival, head)
    this.settle()
    return 'fork'
  }

  stand(head, table) {
    this.head = head
    this.table = table
    this.coming = null
    this.recent = [head, ...this.recent].slice(0, HEADS_REMEMBERED)
  }

  /** Let go of heads that no longer stand. */
  settle() {
    const stands = (head) => this.standing === SOUND && head.epoch === this.epoch
    if (this.coming && !stands(this.coming.head)) this.coming = null
    if (this.head && !stands(this.head)) this.head = this.table = null
  }

  signer(epoch) {
    const docs = [...this.keys.values()].map(({ doc }) => doc)
    if (epoch === 0 && docs.length > 0) return docs[0].root
    const doc = docs.find((one) => one.epoch === epoch)
    if (!doc) throw new Refused('record without its key')
    return doc.op
  }

  // Reconciliation

  summary() {
    const nothing = {
      slot: this.slot,
      epoch: 0,
      standing: DEAD,
      seq: 0n,
      head: Buffer.alloc(16),
      ids: Buffer.alloc(0)
    }
    if (this.standing === DEAD) return nothing
    const ids = [...this.keys.values(), ...this.retracts.values()].map(({ id }) =>
      id.subarray(0, 16)
    )
    return {
      ...nothing,
      epoch: this.epoch,
      standing: this.standing,
      ...(this.head && { seq: this.head.seq, head: this.head.id.subarray(0, 16) }),
      ids: Buffer.concat(ids.sort(Buffer.compare))
    }
  }

  item() {
    return Buffer.concat([this.slot, sha256(pack('Summary', this.summary())).subarray(0, 16)])
  }

  /** What a peer with this summary is to be given: {keys, heads, retracts, forks}. */
  lackedBy(their) {
    const mine = this.summary()
    const given = { keys: [], heads: [], retracts: [], forks: [] }
    if (their.standing === DEAD) return given
    const known = idsOf(their)
    const fresh = ({ id }) => !known.has(hex(id.subarray(0, 16)))
    const retracts = [...this.retracts.values()]
    given.keys = [...this.keys.values()].filter(fresh).map(({ doc }) => doc)
    given.retracts = (mine.standing === DEAD ? retracts : retracts.filter(fresh)).map(
      ({ env }) => env
    )
    if (mine.standing === DEAD) return given
    const frozenThere = their.epoch === mine.epoch && their.standing === FROZEN
    if (this.fork && headOf(this.fork.a).epoch === mine.epoch && !frozenThere)
      given.forks = [this.fork]
    if (
      this.head &&
      !(
        their.epoch > mine.epoch ||
        frozenThere ||
        (their.epoch === mine.epoch &&
          (their.seq > mine.seq || (their.seq === mine.seq && their.head.equals(mine.head))))
      )
    ) {
      given.heads = [this.head.env]
    }
    return given
  }

  /** Whether who shows this summary has something that is lacking here. */
  lacks(their) {
    const mine = this.summary()
    if (their.standing === DEAD || mine.standing === DEAD) return mine.standing !== DEAD
    const known = idsOf(mine)
    if ([...idsOf(their)].some((id) => !known.has(id))) return true
    if (their.epoch !== mine.epoch || mine.standing === FROZEN) return false
    return (
      their.standing === FROZEN ||
      their.seq > mine.seq ||
      (their.seq === mine.seq && !their.head.equals(mine.head))
    )
  }

  /** The documents that open what is given, but those the peer has. */
  openers(given, their) {
    const known = idsOf(their)
    const epochs = new Set(given.heads.map((env) => headOf(env).epoch))
    for (const fork of given.forks) epochs.add(headOf(fork.a).epoch)
    for (const env of given.retracts) epochs.add(open(env.payload, 'Retract').epoch || this.epoch)
    return [...this.keys.values()]
      .filter(({ doc, id }) => epochs.has(doc.epoch) && !known.has(hex(id.subarray(0, 16))))
      .map(({ doc }) => doc)
  }
}

function idsOf(summary) {
  const ids = new Set()
  for (let at = 0; at < summary.ids.length; at += 16)
    ids.add(hex(summary.ids.subarray(at, at + 16)))
  return ids
}

const hex = (data) => data.toString('hex')
