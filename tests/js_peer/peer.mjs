// A peer of groove nodes on js-libp2p, written from docs/protocol.md. Orders come on stdin, one
// JSON object a line, each with an `id`; what happens goes out the same way on stdout.
import './polyfill.mjs' // before libp2p
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify, identifyPush } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { preSharedKey } from '@libp2p/pnet'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { Author } from './author.mjs'
import { Bundles } from './bundles.mjs'
import { FRAME_BYTES_MAX, packMessage } from './layouts.mjs'
import { headOf } from './origin.mjs'
import { Peers } from './peers.mjs'
import { Replica } from './replica.mjs'
import { publicKey, sha256 } from './signed.mjs'
import { readFrames, Writer } from './streams.mjs'

const TOPIC = 'groove/urgent/1'
const URGENT_BYTES_MAX = 16 * 1024

const { values: options } = parseArgs({
  options: {
    listen: { type: 'string', default: '/ip4/127.0.0.1/tcp/0' },
    'swarm-key': { type: 'string', default: '' }, // 64 hexadecimal digits: a private swarm
    relay: { type: 'boolean', default: false }, // carry connections for others
    'sync-ms': { type: 'string', default: '1000' }, // between rounds with a peer at random
    'urgent-only': { type: 'boolean', default: false }, // speak no stream protocol
    'piece-bytes': { type: 'string', default: '0' }, // cut what is written into pieces
    'one-frame': { type: 'boolean', default: false }, // close a stream after each frame
    'idle-ms': { type: 'string', default: '120000' } // then js-libp2p resets a silent stream
  }
})

const PROTOCOLS = options['urgent-only']
  ? {}
  : { sync: '/groove/sync/1', bundle: '/groove/bundle/1', peers: '/groove/peers/1' }
const LIMITED = { runOnLimitedConnection: true } // which js-libp2p calls a relayed one
const tell = (event) => process.stdout.write(JSON.stringify(event) + '\n')
const nowH = () => Math.floor(Date.now() / 3_600_000)

const swarmKey = (digits) => Buffer.from(`/key/swarm/psk/1.0.0/\n/base16/\n${digits}`)
const seed = randomBytes(32)
const node = await createLibp2p({
  privateKey: privateKeyFromRaw(Buffer.concat([seed, publicKey(seed)])),
  addresses: { listen: [options.listen] },
  transports: [tcp(), circuitRelayTransport()],
  ...(options['swarm-key'] && {
    connectionProtector: preSharedKey({ psk: swarmKey(options['swarm-key']) })
  }),
  connectionEncrypters: [noise()],
  streamMuxers: [yamux({ streamOptions: { inactivityTimeout: Number(options['idle-ms']) } })],
  services: {
    identify: identify(LIMITED),
    identifyPush: identifyPush(),
    ping: ping(),
    ...(options.relay && { relay: circuitRelayServer() }),
    pubsub: gossipsub({
      ...LIMITED,
      emitSelf: false,
      allowPublishToZeroTopicPeers: true,
      globalSignaturePolicy: 'StrictSign',
      msgIdFn: (message) => sha256(message.data).subarray(0, 20)
    })
  }
})
const { pubsub } = node.services

// Streams

const writers = new Map() // by peer and plane
const send = (plane) => (peer, frame) => {
  const key = `${peer} ${plane}`
  if (!writers.has(key)) {
    const open = async () => {
      const [connection] = node.getConnections().filter((one) => one.remotePeer.toString() === peer)
      if (!connection || !PROTOCOLS[plane]) throw new Error('nobody to speak to')
      return connection.newStream(PROTOCOLS[plane], LIMITED)
    }
    writers.set(
      key,
      new Writer(open, {
        pieceBytes: Number(options['piece-bytes']),
        oneFrame: options['one-frame']
      })
    )
  }
  return writers.get(key).send(frame)
}
const replica = new Replica({ send: send('sync'), tell, nowH })
const bundles = new Bundles({ send: send('bundle'), tell })
const places = () =>
  node
    .getMultiaddrs()
    .map(String)
    .filter((address) => !address.includes('/p2p-circuit'))
    .map((address) => address.split('/p2p/')[0])
const peers = new Peers({ send: send('peers'), tell, nowH, seed, places })
const takers = { sync: replica, bundle: bundles, peers }

for (const [plane, protocol] of Object.entries(PROTOCOLS)) {
  await node.handle(
    protocol,
    async (stream, connection) => {
      const peer = connection.remotePeer.toString()
      try {
        await readFrames(stream, FRAME_BYTES_MAX[plane], (frame) =>
          takers[plane].handle(peer, frame)
        )
        await stream.close()
      } catch (error) {
        tell({ ev: 'stream-ended', peer, plane, reason: error.message })
        stream.abort(error)
      }
    },
    LIMITED
  )
}

const identified = new Map() // what each peer speaks, once it has said so
node.addEventListener('peer:identify', ({ detail }) =>
  identified.get(detail.peerId.toString())?.resolve(detail.protocols)
)
node.addEventListener('peer:connect', ({ detail }) => {
  identified.set(detail.toString(), Promise.withResolvers())
  tell({ ev: 'connected', peer: detail.toString() })
  replica.peerUp(detail.toString())
})
node.addEventListener('peer:disconnect', ({ detail }) => {
  const peer = detail.toString()
  for (const plane of Object.keys(PROTOCOLS)) writers.delete(`${peer} ${plane}`)
  identified.delete(peer)
  replica.peerDown(peer)
  bundles.peerDown(peer)
  tell({ ev: 'disconnected', peer })
})
let rounds = 0
setInterval(() => {
  const linked = [...replica.peers]
  if (linked.length > 0) replica.open(linked[Math.floor(Math.random() * linked.length)])
  tell({ ev: 'round', number: ++rounds })
}, Number(options['sync-ms']))

// The urgent plane

pubsub.topicValidators.set(TOPIC, (_, { data }) =>
  data.length > 0 && data.length <= URGENT_BYTES_MAX ? 'accept' : 'reject'
)
pubsub.addEventListener('gossipsub:message', ({ detail }) => {
  const frame = Buffer.from(detail.msg.data)
  tell({
    ev: 'urgent',
    peer: detail.propagationSource.toString(),
    author: detail.msg.from.toString(),
    id: Buffer.from(detail.msgId, 'base64').toString('hex'),
    frame: frame.toString('hex')
  })
  replica.handle(detail.propagationSource.toString(), frame, { urgent: true })
})
pubsub.subscribe(TOPIC)

// Orders

let author = null
const bytes = (text) => Buffer.from(text, 'hex')
const broadcast = async (message) =>
  (await pubsub.publish(TOPIC, packMessage('sync', message))).recipients.length

const orders = {
  async dial({ address }) {
    const connection = await node.dial(multiaddr(address))
    return {
      peer: connection.remotePeer.toString(),
      encryption: connection.encryption,
      multiplexer: connection.multiplexer
    }
  },
  async connection({ peer }) {
    const { encryption, multiplexer, direction } = connected(peer)
    return { encryption, multiplexer, direction, protocols: await identified.get(peer)?.promise }
  },
  /** Reserve at a relay: `…/p2p/RELAY/p2p-circuit`. */
  async listen({ address }) {
    await node.components.transportManager.listen([multiaddr(address)])
  },
  async ping({ peer }) {
    return { ms: await node.services.ping.ping(connected(peer).remotePeer) }
  },
  async identify_push() {
    return node.services.identifyPush.push()
  },
  async ask_peers({ peer }) {
    await peers.ask(peer)
  },
  async mesh() {
    return { peers: pubsub.getMeshPeers(TOPIC).map(String) }
  },
  async author({ root_seed: root, op_seed: op }) {
    author = new Author(bytes(root), bytes(op), nowH())
    return { origin: author.name.toString('hex') }
  },
  /** What a node does before its first head. */
  async ask_echo() {
    for (const peer of replica.peers)
      await send('sync')(peer, packMessage('sync', { type: 'echo-get/1', origin: author.name }))
  },
  async publish({ leaves }) {
    const { message, env, table } = author.head(leaves.map(bytes), nowH())
    const origin = replica.origin(author.name)
    origin.addKey(author.doc)
    replica.stand(origin, headOf(env), table, null)
    return { recipients: await broadcast(message) }
  },
  async retract({ leaf }) {
    const message = author.retraction(bytes(leaf), nowH())
    replica.have('', message, true)
    return { recipients: await broadcast(message) }
  },
  async offer({ path }) {
    return { root: bundles.offer(await readFile(path)).toString('hex') }
  },
  async fetch({ root, size_bytes: size, holders }) {
    const { data, sources } = await bundles.fetch(bytes(root), size, holders)
    bundles.offer(data)
    return { sha256: sha256(data).toString('hex'), size_bytes: data.length, sources }
  },
  async hang_up({ peer }) {
    await connected(peer).close()
  },
  async stop() {
    await node.stop()
    setImmediate(() => process.exit(0))
  }
}

function connected(peer) {
  const [connection] = node.getConnections().filter((one) => one.remotePeer.toString() === peer)
  if (!connection) throw new Error(`not connected to ${peer}`)
  return connection
}

createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const { id, do: what, ...order } = JSON.parse(line)
    try {
      tell({ ev: 'done', id, ...(await orders[what](order)) })
    } catch (error) {
      tell({ ev: 'failed', id, what, reason: error.message })
    }
  })
  .on('close', () => process.exit(0)) // whoever started this is gone

tell({ ev: 'ready', peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
