// A third reading of the wire, to be compared with the others: for each line "KIND HEX" on stdin
// prints 1 if the bytes are the one encoding of such a structure, or of a message of such a plane,
// else 0.
import { createInterface } from 'node:readline'
import { FRAME_BYTES_MAX, open, openMessage, pack, packMessage } from './layouts.mjs'
import { Refused } from './msgpack.mjs'

function accepts(kind, data) {
  try {
    const plane = Object.hasOwn(FRAME_BYTES_MAX, kind)
    const value = plane ? openMessage(data, kind) : open(data, kind)
    if (value === null) return false // a type that is unknown here
    if (!(plane ? packMessage(kind, value) : pack(kind, value)).equals(data))
      throw new Error(`two encodings: ${data.toString('hex')}`)
    return true
  } catch (error) {
    if (error instanceof Refused) return false
    throw error
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const [kind, hex] = line.split(' ')
  console.log(Number(accepts(kind, Buffer.from(hex, 'hex'))))
}
