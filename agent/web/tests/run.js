// Runs all tests, one after another, and counts them as cargo does.
import { browser } from './site.js'
import { tests as security } from './security.js'
import { tests as guests } from './guests.js'
import { tests as views } from './views.js'
import { tests as trouble } from './trouble.js'

const only = process.argv[2]
let passed = 0
let failed = 0
for (const [name, run] of [...security, ...guests, ...views, ...trouble]) {
  if (only && !name.includes(only)) continue
  const start = Date.now()
  try {
    await run()
    passed++
    console.log(`test ${name} ... ok (${((Date.now() - start) / 1000).toFixed(1)} s)`)
  } catch (error) {
    failed++
    console.log(`test ${name} ... FAILED\n${error.stack}`)
  }
  for (const context of browser.contexts()) await context.close()
}
await browser.close()
const word = failed ? 'FAILED' : 'ok'
console.log(`test result: ${word}. ${passed} passed; ${failed} failed; 0 ignored; 0 measured; 0 filtered out`)
process.exit(failed ? 1 : 0)
