// Both sides of /groove/bundle/1, docs/protocol.md §9: serves what it was given or has fetched.
import { CHUNK_BYTES, open, openMessage, pack, packMessage } from './layouts.mjs'
import { Refused } from './msgpack.mjs'
import { sha256 } from './signed.mjs'

const ASKED_MAX = 4 // chunks on their way from one peer
const QUEUED_MAX = 8 // chunks that one peer may be owed
const LIST_MS = 5_000
const CHUNK_MS = 15_000

export class Bundles {
  /** send(peer, frame) returns a promise that is kept once the frame is on its way. */
  constructor({ send, tell }) {
    this.send = (peer, message) => send(peer, packMessage('bundle', message))
    this.tell = tell
    this.shelf = new Map() // by root, in hexadecimal: {list, data}
    this.fetches = new Map()
    this.owed = new Map() // chunks by peer
  }

  /** Serve these bytes; returns their root. */
  offer(data) {
    const hashes = []
    for (let at = 0; at < data.length; at += CHUNK_BYTES)
      hashes.push(sha256(data.subarray(at, at + CHUNK_BYTES)))
    const list = pack('ChunkList', {
      size_bytes: data.length,
      chunk_bytes: CHUNK_BYTES,
      hashes: Buffer.concat(hashes)
    })
    const root = sha256(list)
    this.shelf.set(hex(root), { list, data })
    return root
  }

  /** Get a bundle from these peers; resolves to {data, sources}. */
  fetch(root, sizeBytes, peers) {
    const done = Promise.withResolvers()
    const fetch = new Fetch(root, sizeBytes, done, this)
    this.fetches.set(hex(root), fetch)
    for (const peer of peers) fetch.begin(peer)
    if (peers.length === 0) done.reject(new Error('nobody to ask'))
    return done.promise.finally(() => {
      fetch.end()
      this.fetches.delete(hex(root))
    })
  }

  peerDown(peer) {
    this.owed.delete(peer)
    for (const fetch of this.fetches.values()) fetch.leave(peer, 'peer gone')
  }

  handle(peer, frame) {
    try {
      const message = openMessage(frame, 'bundle')
      if (message !== null) this.take(peer, message)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      this.tell({ ev: 'refused', peer, reason: error.message, urgent: false })
    }
  }

  take(peer, message) {
    const here = this.shelf.get(hex(message.root))
    const fetch = this.fetches.get(hex(message.root))
    switch (message.type) {
      case 'list-get/1':
        return this.send(
          peer,
          here
            ? { type: 'list/1', root: message.root, data: here.list }
            : { type: 'not-here/1', root: message.root }
        )
      case 'chunk-get/1':
        return this.serve(peer, message, here)
      case 'list/1':
        return fetch?.list(peer, message.data)
      case 'chunk/1':
        return fetch?.chunk(peer, message.index, message.data)
      case 'not-here/1':
        return fetch?.leave(peer, 'not here')
    }
  }

  async serve(peer, { root, indices }, here) {
    const owed = (this.owed.get(peer) ?? 0) + indices.length
    if (!here || owed > QUEUED_MAX) return this.send(peer, { type: 'not-here/1', root })
    const chunks = Math.ceil(here.data.length / CHUNK_BYTES)
    if (indices.some((index) => index >= chunks)) throw new Refused('no such chunk')
    this.owed.set(peer, owed)
    for (const index of indices) {
      const data = here.data.subarray(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES)
      await this.send(peer, { type: 'chunk/1', root, index, data })
      if (this.owed.has(peer)) this.owed.set(peer, this.owed.get(peer) - 1)
    }
  }
}

class Fetch {
  constructor(root, sizeBytes, done, bundles) {
    Object.assign(this, { root, sizeBytes, done, bundles })
    this.hashes = null // by index, once a list has been checked
    this.data = null
    this.wanted = [] // indices nobody has been asked for
    this.left = 0
    this.asked = new Map() // peer: indices on their way
    this.timers = new Map()
    this.sources = {}
  }

  begin(peer) {
    this.asked.set(peer, new Set())
    this.wait(peer, LIST_MS)
    this.bundles.send(peer, { type: 'list-get/1', root: this.root })
  }

  list(peer, data) {
    if (!this.asked.has(peer)) return
    if (!sha256(data).equals(this.root)) return this.refuse(peer, 'list does not match its root')
    if (this.hashes === null) {
      const list = open(data, 'ChunkList')
      if (list.size_bytes !== this.sizeBytes)
        return this.refuse(peer, 'size is not what the card says')
      this.data = Buffer.alloc(list.size_bytes)
      this.hashes = Array.from({ length: list.hashes.length / 32 }, (_, n) =>
        list.hashes.subarray(32 * n, 32 * n + 32)
      )
      this.wanted = this.hashes.map((_, n) => n)
      this.left = this.wanted.length
    }
    this.ask(peer)
  }

  ask(peer) {
    const onTheirWay = this.asked.get(peer)
    const indices = this.wanted.splice(0, ASKED_MAX - onTheirWay.size)
    for (const index of indices) onTheirWay.add(index)
    if (onTheirWay.size > 0) this.wait(peer, CHUNK_MS)
    else clearTimeout(this.timers.get(peer))
    if (indices.length > 0)
      this.bundles.send(peer, { type: 'chunk-get/1', root: this.root, indices })
  }

  chunk(peer, index, data) {
    if (!this.asked.get(peer)?.has(index)) return this.refuse(peer, 'chunk not asked for')
    if (!sha256(data).equals(this.hashes[index]))
      return this.refuse(peer, 'chunk does not match its hash')
    this.asked.get(peer).delete(index)
    data.copy(this.data, index * CHUNK_BYTES)
    this.sources[peer] = (this.sources[peer] ?? 0) + data.length
    this.left -= 1
    if (this.left === 0) this.done.resolve({ data: this.data, sources: this.sources })
    else this.ask(peer)
  }

  refuse(peer, reason) {
    this.bundles.tell({ ev: 'refused', peer, reason, urgent: false })
    this.leave(peer, reason)
  }

  /** Ask a peer for nothing more, and others for what it owes. */
  leave(peer, reason) {
    if (!this.asked.has(peer)) return
    clearTimeout(this.timers.get(peer))
    this.wanted.push(...this.asked.get(peer))
    this.asked.delete(peer)
    if (this.asked.size === 0) this.done.reject(new Error(reason))
    else if (this.hashes !== null) for (const other of this.asked.keys()) this.ask(other)
  }

  wait(peer, ms) {
    clearTimeout(this.timers.get(peer))
    this.timers.set(
      peer,
      setTimeout(() => this.leave(peer, 'no answer'), ms)
    )
  }

  end() {
    for (const timer of this.timers.values()) clearTimeout(timer)
  }
}

const hex = (data) => data.toString('hex')
