// The one encoding of docs/protocol.md §1, read without knowing the type: every header is compared
// on the spot with the shortest that could stand in its place. Integers are read as BigInt.

export const ITEMS_MAX = 1024
export const DEPTH_MAX = 6

/** What a peer said is not as the protocol has it; the message is a fixed phrase. */
export class Refused extends Error {}

export function decode(data) {
  const reader = new Reader(data)
  const value = reader.value(0)
  if (reader.at !== data.length) throw new Refused('malformed')
  return value
}

class Reader {
  constructor(data) {
    this.data = Buffer.from(data.buffer, data.byteOffset, data.byteLength)
    this.at = 0
  }

  value(depth) {
    const code = this.number(1)
    if (code < 0x80) return BigInt(code)
    if (code >= 0xe0) return BigInt(code - 0x100)
    if (code >= 0x90 && code <= 0x9f) return this.array(code & 0x0f, depth)
    if (code >= 0xa0 && code <= 0xbf) return this.text(code & 0x1f)
    switch (code) {
      case 0xc0:
        return null
      case 0xc4:
        return this.bytes(this.number(1))
      case 0xc5:
        return this.bytes(atLeast(this.number(2), 1 << 8))
      case 0xc6:
        return this.bytes(atLeast(this.number(4), 1 << 16))
      case 0xcc:
        return atLeast(BigInt(this.number(1)), 1n << 7n)
      case 0xcd:
        return atLeast(BigInt(this.number(2)), 1n << 8n)
      case 0xce:
        return atLeast(BigInt(this.number(4)), 1n << 16n)
      case 0xcf:
        return atLeast(this.take(8).readBigUInt64BE(), 1n << 32n)
      case 0xd0:
        return below(BigInt(this.take(1).readInt8()), -(1n << 5n))
      case 0xd1:
        return below(BigInt(this.take(2).readInt16BE()), -(1n << 7n))
      case 0xd2:
        return below(BigInt(this.take(4).readInt32BE()), -(1n << 15n))
      case 0xd3:
        return below(this.take(8).readBigInt64BE(), -(1n << 31n))
      case 0xd9:
        return this.text(atLeast(this.number(1), 32))
      case 0xdc:
        return this.array(atLeast(this.number(2), 16), depth)
    }
    throw new Refused('wrong fields') // a map, a float, a boolean, an extension, a longer length
  }

  array(items, depth) {
    if (items > ITEMS_MAX || depth >= DEPTH_MAX) throw new Refused('wrong fields')
    const values = []
    for (let n = 0; n < items; n++) values.push(this.value(depth + 1))
    return values
  }

  text(length) {
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.take(length))
    } catch {
      throw new Refused('malformed')
    }
  }

  bytes(length) {
    return this.take(length)
  }

  number(width) {
    return this.take(width).readUIntBE(0, width)
  }

  take(length) {
    if (length > this.data.length - this.at) throw new Refused('malformed')
    this.at += length
    return this.data.subarray(this.at - length, this.at)
  }
}

function atLeast(value, low) {
  if (value < low) throw new Refused('not canonical')
  return value
}

function below(value, high) {
  if (value >= high) throw new Refused('not canonical')
  return value
}

export function encode(value) {
  const parts = []
  put(parts, value)
  return Buffer.concat(parts)
}

function put(parts, value) {
  if (value === null) parts.push(Buffer.of(0xc0))
  else if (value instanceof Uint8Array)
    parts.push(head(value.length, [0xc4, 1], [0xc5, 2], [0xc6, 4]), value)
  else if (typeof value === 'string') {
    const data = Buffer.from(value)
    parts.push(
      data.length < 32 ? Buffer.of(0xa0 | data.length) : head(data.length, [0xd9, 1]),
      data
    )
  } else if (Array.isArray(value)) {
    parts.push(value.length < 16 ? Buffer.of(0x90 | value.length) : head(value.length, [0xdc, 2]))
    for (const item of value) put(parts, item)
  } else parts.push(integer(BigInt(value)))
}

/** A code and the length after it, in the first of the forms that can hold it. */
function head(length, ...forms) {
  for (const [code, width] of forms) {
    if (length < 2 ** (8 * width)) {
      const data = Buffer.alloc(1 + width)
      data[0] = code
      data.writeUIntBE(length, 1, width)
      return data
    }
  }
  throw new RangeError(`nothing here is ${length} long`)
}

function integer(value) {
  if (value >= -32n && value < 128n) return Buffer.of(Number(value) & 0xff)
  const [code, widths] = value < 0n ? [0xd0, [7n, 15n, 31n, 63n]] : [0xcc, [8n, 16n, 32n, 64n]]
  const size = value < 0n ? -value - 1n : value
  const n = widths.findIndex((bits) => size < 1n << bits)
  const data = Buffer.alloc(9)
  data.writeBigUInt64BE(BigInt.asUintN(64, value), 1)
  return Buffer.concat([Buffer.of(code + n), data.subarray(9 - (1 << n))])
}
