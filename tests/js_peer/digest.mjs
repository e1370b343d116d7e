// Reconciliation of sorted items of 32 bytes, docs/protocol.md §6.
import { sha256 } from './signed.mjs'

const LISTED_MAX = 32 // items of one range that are listed instead of counted
const SPLIT = 16
const RANGES_MAX = 256
const ITEMS_MAX = 1280
const LOW = Buffer.alloc(16)
const HIGH = Buffer.alloc(16, 0xff)

export function fingerprint(items) {
  let sum = 0n
  for (const item of items) sum += BigInt(`0x${item.toString('hex')}`)
  const data = Buffer.alloc(36)
  data.write(BigInt.asUintN(256, sum).toString(16).padStart(64, '0'), 'hex')
  data.writeUInt32BE(items.length, 32)
  return sha256(data).subarray(0, 16)
}

/** The range that opens a round. items: ascending. */
export const opening = (items) => range(items, LOW, HIGH, items.length <= LISTED_MAX)

/** Return {slots, ranges}: in what the two differ, and what is still to be found out. */
export function answer(items, theirs) {
  const slots = []
  const ranges = []
  let room = ITEMS_MAX // what does not fit is left to another round
  for (const their of theirs) {
    const mine = items.filter(
      (item) =>
        Buffer.compare(item.subarray(0, 16), their.low) >= 0 &&
        Buffer.compare(item.subarray(0, 16), their.high) <= 0
    )
    if (fingerprint(mine).equals(their.fingerprint)) continue
    if (their.items.length === 32 * their.count) {
      slots.push(...differing(mine, their.items))
      continue
    }
    const listed = mine.length <= LISTED_MAX
    const parts = listed
      ? [range(mine, their.low, their.high, true)]
      : split(mine, their.low, their.high)
    if (ranges.length + parts.length > RANGES_MAX || (listed && mine.length > room)) continue
    if (listed) room -= mine.length
    ranges.push(...parts)
  }
  return { slots, ranges }
}

function differing(mine, listed) {
  const here = new Set(mine.map(hex))
  const there = new Set()
  for (let at = 0; at < listed.length; at += 32) there.add(hex(listed.subarray(at, at + 32)))
  const only = [...here]
    .filter((item) => !there.has(item))
    .concat([...there].filter((item) => !here.has(item)))
  return [...new Set(only.map((item) => item.slice(0, 32)))]
    .sort()
    .map((slot) => Buffer.from(slot, 'hex'))
}

function split(mine, low, high) {
  const size = Math.ceil(mine.length / SPLIT)
  const ranges = []
  for (let at = 0; at < mine.length; at += size) {
    const next = mine[at + size]
    ranges.push(
      range(mine.slice(at, at + size), low, next ? before(next.subarray(0, 16)) : high, false)
    )
    if (next) low = next.subarray(0, 16)
  }
  return ranges
}

function range(items, low, high, listed) {
  return {
    low,
    high,
    count: items.length,
    fingerprint: fingerprint(items),
    items: listed ? Buffer.concat(items) : Buffer.alloc(0)
  }
}

function before(slot) {
  return Buffer.from((BigInt(`0x${hex(slot)}`) - 1n).toString(16).padStart(32, '0'), 'hex')
}

const hex = (data) => data.toString('hex')
