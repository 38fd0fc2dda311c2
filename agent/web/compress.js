// Puts a compressed form of each file beside it, for the agent to serve as it is.
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'

const SMALLEST = 512

for (const name of readdirSync('dist', { recursive: true })) {
  const path = join('dist', name)
  if (!statSync(path).isFile() || statSync(path).size < SMALLEST) continue
  const bytes = readFileSync(path)
  const quality = { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY }
  writeFileSync(`${path}.br`, brotliCompressSync(bytes, { params: quality }))
  writeFileSync(`${path}.gz`, gzipSync(bytes, { level: 9 }))
}
