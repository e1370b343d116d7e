// An origin of one's own, docs/protocol.md §2-§4: its keys, its heads and its retractions.
import { envId, issue, publicKey, seal, sha256 } from './signed.mjs'
import * as tables from './tables.mjs'

const LIFETIME_H = 100
const MATURE = 3

export class Author {
  /** Seeds of 32 bytes. hour: hours since 1970. */
  constructor(rootSeed, opSeed, hour) {
    this.opSeed = opSeed
    this.doc = issue(
      {
        epoch: 1,
        op: publicKey(opSeed),
        not_before_h: hour - 1,
        not_after_h: hour + 1000,
        revoked: []
      },
      rootSeed
    )
    this.name = sha256(this.doc.root)
    this.last = null // {seq, id} of the newest head
  }

  /** A retraction of one leaf, as `have/1`. */
  retraction(leaf, hour) {
    const env = seal(
      'retract/1',
      'Retract',
      { origin: this.name, epoch: 1, leaf, ts_h: hour, scope: 1 },
      this.opSeed
    )
    return { type: 'have/1', keys: [this.doc], heads: [], retracts: [env], forks: [] }
  }

  /** Sign the whole table of these leaves. Returns {message, head, table}. */
  head(leaves, hour) {
    const cards = leaves.map(mature).sort((a, b) => Buffer.compare(a.leaf, b.leaf))
    const rows = cards.map((card) => ({
      leaf: card.leaf,
      version: card.version,
      card: tables.cardHash(card)
    }))
    const table = {
      rows,
      ended: [],
      cards: new Map(cards.map((card, n) => [rows[n].card.toString('hex'), card])),
      usage: []
    }
    const jump = BigInt(hour) << 16n
    const seq = this.last && this.last.seq + 1n > jump ? this.last.seq + 1n : jump
    const env = seal(
      'head/1',
      'Head',
      {
        origin: this.name,
        epoch: 1,
        seq,
        prev_seq: this.last?.seq ?? 0n,
        prev: this.last?.id ?? Buffer.alloc(32),
        table_root: tables.tableRoot(table),
        n_live: rows.length,
        ts_h: hour,
        exp_h: hour + LIFETIME_H,
        flags: 1,
        enc: cards[0]?.enc ?? Buffer.alloc(8),
        usage: tables.usageHash([])
      },
      this.opSeed
    )
    this.last = { seq, id: envId(env) }
    return {
      message: { type: 'have/1', keys: [this.doc], heads: [env], retracts: [], forks: [] },
      env,
      table
    }
  }
}

/** A card that is well formed and says little: its centroid has one direction of the leaf's own. */
function mature(leaf) {
  const centroid = Buffer.alloc(384)
  centroid[leaf[0]] = 127
  return {
    leaf,
    version: 1,
    stage: MATURE,
    op: 1,
    centroid,
    sessions_log2: 8,
    chassis: Buffer.alloc(8),
    enc: Buffer.alloc(8),
    parents: [],
    growth_q: 10_000,
    scores: [],
    bundle: null
  }
}
