// What Xen Orchestra's client reads of an export: read.mjs PORT EXPORT CONNECTIONS [CERTIFICATE]
//
// All blocks of 2 MiB, as its backups read them, spread over the connections. Prints the size, the SHA-256 of what
// was read, and the map that it asks of nbdinfo; null where that has none (over TLS it is asked in the clear).

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import MultiNbdClient from '@vates/nbd-client/multi.mjs'

const BLOCK = 2 * 1024 * 1024
const [port, exportname, connections, certificate] = process.argv.slice(2)
const settings = { address: '127.0.0.1', port: Number(port), exportname }
if (certificate) settings.cert = readFileSync(certificate)

const client = new MultiNbdClient(settings, {
  nbdConcurrency: Number(connections),
  waitBeforeReconnect: 100,
  connectTimeout: 20_000,
  messageTimeout: 20_000,
})
await client.connect()
const size = Number(client.exportSize)

function* blocks() {
  for (let index = 0; index * BLOCK < size; index++) yield { index, size: BLOCK }
}

const hash = createHash('sha256')
for await (const block of client.readBlocks(blocks)) hash.update(block)
const map = await client.getMap().catch(() => null)
await client.disconnect()
console.log(JSON.stringify({ size, sha256: hash.digest('hex'), map }))
