// The table that a head vouches for, docs/protocol.md §3: rows, ended rows, cards and usage.
import { pack } from './layouts.mjs'
import { encode, Refused } from './msgpack.mjs'
import { sha256 } from './signed.mjs'

const ZERO32 = Buffer.alloc(32)

export const EMPTY = Object.freeze({ rows: [], ended: [], cards: new Map(), usage: [] })

/** The Merkle root of RFC 6962. */
export function merkleRoot(leaves) {
  if (leaves.length === 0) return sha256()
  if (leaves.length === 1) return sha256(Buffer.of(0), leaves[0])
  let half = 1
  while (half * 2 < leaves.length) half *= 2
  return sha256(Buffer.of(1), merkleRoot(leaves.slice(0, half)), merkleRoot(leaves.slice(half)))
}

export function tableRoot({ rows, ended }) {
  return merkleRoot([
    ...rows.map((row) => pack('Row', row)),
    ...ended.map((end) => pack('Ended', end))
  ])
}

export function usageHash(usage) {
  if (usage.length === 0) return ZERO32
  return sha256(
    encode(usage.map((row) => [row.origin, row.leaf, row.week, row.routed_log2, row.accepted_log2]))
  )
}

export const cardHash = (card) => sha256(pack('Card', card))

/** The table that follows from one by a delta: who is put is not ended, and the other way. */
export function patched(table, puts, ends) {
  const rows = new Map(table.rows.map((row) => [hex(row.leaf), row]))
  const ended = new Map(table.ended.map((end) => [hex(end.leaf), end]))
  const cards = new Map(table.cards)
  for (const card of puts) {
    const hash = cardHash(card)
    ended.delete(hex(card.leaf))
    rows.set(hex(card.leaf), { leaf: card.leaf, version: card.version, card: hash })
    cards.set(hex(hash), card)
  }
  for (const end of ends) {
    rows.delete(hex(end.leaf))
    ended.set(hex(end.leaf), end)
  }
  return { rows: inOrder(rows), ended: inOrder(ended), cards, usage: table.usage }
}

/** Throw Refused unless the index is the head's. */
export function checkIndex(head, table) {
  if (table.rows.length !== head.n_live || !tableRoot(table).equals(head.table_root)) {
    throw new Refused("table is not the head's")
  }
  if (new Set(table.rows.map((row) => hex(row.card))).size !== table.rows.length) {
    throw new Refused('one card in two rows')
  }
}

/** Add cards to a table whose index has been checked. Throws Refused at one that has no row. */
export function addCards(table, cards) {
  const rows = new Map(table.rows.map((row) => [hex(row.card), row]))
  for (const card of cards) {
    const row = rows.get(hex(cardHash(card)))
    if (!row) throw new Refused('card not asked for')
    if (!row.leaf.equals(card.leaf) || row.version !== card.version)
      throw new Refused('card contradicts its row')
    table.cards.set(hex(row.card), card)
  }
}

/** The hashes of the cards that are still to come. withdrawn(leaf): it is retracted. */
export function lacking(table, withdrawn) {
  return table.rows
    .filter((row) => !table.cards.has(hex(row.card)) && !withdrawn(row.leaf))
    .map((row) => row.card)
}

const inOrder = (byLeaf) => [...byLeaf.keys()].sort().map((leaf) => byLeaf.get(leaf))

const hex = (data) => data.toString('hex')
