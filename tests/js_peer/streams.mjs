// Frames on libp2p streams, docs/protocol.md §11: four bytes of length, then as many bytes; one
// outbound stream for each peer and protocol, opened when there is something to say.
import { Refused } from './msgpack.mjs'

const LENGTH_BYTES = 4
const TRIES = 3

/** Hand over each frame of a stream until it ends. Throws Refused at what is no frame. */
export async function readFrames(stream, bytesMax, take) {
  let parts = []
  let held = 0
  let size = null
  for await (const arrived of stream) {
    const data = Buffer.from(arrived.subarray()) // a list of pieces, or one
    parts.push(data)
    held += data.length
    while (held >= LENGTH_BYTES + (size ?? 0)) {
      if (parts.length > 1) parts = [Buffer.concat(parts)]
      if (size === null) {
        size = parts[0].readUInt32BE()
        if (size < 1 || size > bytesMax) throw new Refused(size ? 'frame too large' : 'frame empty')
        continue
      }
      take(parts[0].subarray(LENGTH_BYTES, LENGTH_BYTES + size))
      parts[0] = parts[0].subarray(LENGTH_BYTES + size)
      held -= LENGTH_BYTES + size
      size = null
    }
  }
  if (held > 0) throw new Refused('frame cut short')
}

/** Sends frames in order over one stream, which it opens again when it has been closed. */
export class Writer {
  /** open(): a new outbound stream. pieceBytes: how the bytes are cut into writes, 0 for whole.
   * oneFrame: close the stream after each frame. */
  constructor(open, { pieceBytes = 0, oneFrame = false } = {}) {
    this.openStream = open
    this.pieceBytes = pieceBytes
    this.oneFrame = oneFrame
    this.stream = null
    this.last = Promise.resolve()
  }

  send(frame) {
    const framed = Buffer.alloc(LENGTH_BYTES + frame.length)
    framed.writeUInt32BE(frame.length)
    frame.copy(framed, LENGTH_BYTES)
    this.last = this.last.then(() => this.write(framed))
    return this.last
  }

  async write(framed) {
    for (let tries = 1; ; tries++) {
      try {
        if (this.stream?.writeStatus !== 'writable') this.stream = await this.openStream()
        const step = this.pieceBytes || framed.length
        for (let at = 0; at < framed.length; at += step) {
          if (!this.stream.send(framed.subarray(at, at + step))) await this.stream.onDrain()
        }
        if (this.oneFrame) await this.stream.close()
        return
      } catch (error) {
        this.stream?.abort(error)
        this.stream = null
        if (tries === TRIES) return // the peer is gone, or does not speak the protocol
      }
    }
  }
}
