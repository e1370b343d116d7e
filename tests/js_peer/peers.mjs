// A peer's side of /groove/peers/1, docs/protocol.md §12: it tells where it listens, and says what
// others say of themselves once their signature has been checked.
import { openMessage, packMessage } from './layouts.mjs'
import { Refused } from './msgpack.mjs'
import { checkAddress, signAddress } from './signed.mjs'

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
const ASKED = 15

/** How libp2p names an Ed25519 key: an identity multihash of its protobuf, in base58. */
export function peerName(key) {
  const data = Buffer.concat([Buffer.from('002408011220', 'hex'), key])
  let name = ''
  for (let number = BigInt(`0x${data.toString('hex')}`); number > 0n; number /= 58n)
    name = BASE58[Number(number % 58n)] + name
  return '1' + name // for the zero it begins with
}

export class Peers {
  /** seed: of the transport's key. places(): multiaddrs without their end /p2p/PEER. */
  constructor({ send, tell, nowH, seed, places }) {
    Object.assign(this, { tell, nowH, seed, places })
    this.send = (peer, message) => send(peer, packMessage('peers', message))
  }

  ask(peer) {
    return this.send(peer, { type: 'peers-get/1', count: ASKED })
  }

  handle(peer, frame) {
    try {
      const message = openMessage(frame, 'peers')
      if (message === null) return
      if (message.type === 'peers-get/1') {
        const records = [
          signAddress(
            this.places().map((place) => Buffer.from(place)),
            this.nowH(),
            this.seed
          )
        ]
        return this.send(peer, { type: 'peers/1', records })
      }
      for (const record of message.records) {
        checkAddress(record)
        this.tell({
          ev: 'introduced',
          peer: peerName(record.key),
          places: record.places.map(String),
          by: peer
        })
      }
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      this.tell({ ev: 'refused', peer, reason: error.message, urgent: false })
    }
  }
}
