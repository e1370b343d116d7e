// Ed25519 as docs/protocol.md §2 uses it, with node's own crypto.
import { createHash, createPrivateKey, createPublicKey, sign, verify } from 'node:crypto'
import { pack } from './layouts.mjs'
import { encode, Refused } from './msgpack.mjs'

const PKCS8 = Buffer.from('302e020100300506032b657004220420', 'hex') // before a seed

export const sha256 = (...parts) => {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest()
}

export function publicKey(seed) {
  const { x } = createPublicKey(privateKey(seed)).export({ format: 'jwk' })
  return Buffer.from(x, 'base64url')
}

/** Return an envelope around a structure ("Head", "Retract"). */
export function seal(type, structure, value, seed) {
  const payload = pack(structure, value)
  return { type, payload, sig: sign(null, envelopeBytes(type, payload), privateKey(seed)) }
}

/** Throw Refused unless `key` signed the envelope. */
export function checkEnvelope(env, key) {
  check(envelopeBytes(env.type, env.payload), env.sig, key)
}

export function issue(doc, rootSeed) {
  const unsigned = { ...doc, root: publicKey(rootSeed), pow: 0 }
  return { ...unsigned, sig: sign(null, keyDocBytes(unsigned), privateKey(rootSeed)) }
}

export function checkKeyDoc(doc) {
  check(keyDocBytes(doc), doc.sig, doc.root)
}

/** Throw Refused unless the key in an address record signed it. */
export function checkAddress({ key, places, ts_h: tsH, sig }) {
  check(addressBytes(key, places, tsH), sig, key)
}

export function signAddress(places, tsH, seed) {
  const key = publicKey(seed)
  return {
    key,
    places,
    ts_h: tsH,
    sig: sign(null, addressBytes(key, places, tsH), privateKey(seed))
  }
}

export const envId = (env) => sha256(pack('Env', env))

const envelopeBytes = (type, payload) => Buffer.concat([Buffer.from(`groove/${type}\0`), payload])

const addressBytes = (...fields) =>
  Buffer.concat([Buffer.from('groove/address/1\0'), encode(fields)])

function keyDocBytes(doc) {
  const fields = [
    doc.root,
    doc.epoch,
    doc.op,
    doc.not_before_h,
    doc.not_after_h,
    doc.revoked,
    doc.pow
  ]
  return Buffer.concat([Buffer.from('groove/keydoc/1\0'), encode(fields)])
}

function check(data, signature, key) {
  const jwk = { kty: 'OKP', crv: 'Ed25519', x: key.toString('base64url') }
  let good = false
  try {
    good = verify(null, data, createPublicKey({ key: jwk, format: 'jwk' }), signature)
  } catch {} // 32 bytes that are no point of the curve
  if (!good) throw new Refused('bad signature')
}

function privateKey(seed) {
  return createPrivateKey({ key: Buffer.concat([PKCS8, seed]), format: 'der', type: 'pkcs8' })
}
