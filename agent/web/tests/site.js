// The cluster that `agent/web/test` has started, a browser, and what tests ask of both.
import { execFileSync, spawn } from 'node:child_process'
import { openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createRequire } from 'node:module'
import { chromium } from 'playwright-core'

export const SERVER = process.env.PINDAH_SERVER
/** Where the page is: with `npm run dev` somewhere else than the API. */
export const PAGE = process.env.PINDAH_PAGE ?? SERVER
const OUT = process.env.PINDAH_OUT
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
/** How long a condition may take on the slowest host. */
export const DEADLINE = 45_000

const OPTIONS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

export const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: OPTIONS })

/** Runs `pindah` on node1. */
export const pindah = (...words) => execFileSync(process.env.PINDAH_CLI, words, { encoding: 'utf8' })

/** Makes a user whose password is that of all here. */
export function createUser(name, role) {
  const words = ['user', 'create', name, '--role', role]
  execFileSync(process.env.PINDAH_CLI, words, { input: 'correct horse\n' })
}

/** Makes a guest with the probe. */
export function createProbe(name, cmdline, ...more) {
  const words = ['guest', 'create', name, '--memory', '96M', '--no-network', '--disk', '8M', '--pool', 'nas']
  pindah(...words, '--kernel', 'nas/probe', '--cmdline', cmdline, ...more)
  return JSON.parse(pindah('guest', 'show', name, '--json'))
}

/** Ends node1's agent, and starts it again. Its guests run on. */
export const agent = {
  kill() {
    const found = execFileSync('pgrep', ['-f', 'pindahd --config /mnt/1/'], { encoding: 'utf8' })
    for (const pid of found.trim().split('\n')) process.kill(Number(pid), 'SIGKILL')
  },
  start() {
    const log = openSync(join(OUT, 'node1.log'), 'a')
    const program = join(process.env.PINDAH_CLI, '../pindahd')
    spawn(program, ['--config', '/mnt/1/pindahd.toml'], {
      stdio: ['ignore', 'ignore', log],
      detached: true,
    }).unref()
  },
}

/** A browser of somebody's own, and what its page complains about. */
export async function visitor({ dark = false, phone = false } = {}) {
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    locale: 'en-GB',
    colorScheme: dark ? 'dark' : 'light',
    viewport: phone ? { width: 390, height: 844 } : { width: 1360, height: 860 },
    reducedMotion: 'reduce',
    // The axe below is not the page's own script.
    bypassCSP: false,
  })
  context.setDefaultTimeout(DEADLINE)
  const page = await context.newPage()
  const complaints = []
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(String(error)))
  return { context, page, complaints }
}

export async function login(page, user = 'anna', password = 'correct horse') {
  await page.goto(`${PAGE}/`)
  await page.getByLabel('User').fill(user)
  await page.getByLabel('Password').fill(password)
  await page.getByRole('button', { name: 'Log in' }).click()
}

/** Somebody who has logged in and sees the overview. */
export async function loggedIn(options = {}) {
  const all = await visitor(options)
  await login(all.page, options.user)
  await all.page.getByRole('heading', { name: 'Overview', level: 1 }).waitFor()
  // Asking whether there is a login is answered with 401, which the browser mentions.
  all.complaints.length = 0
  return all
}

/** What is serious or critical, by axe. */
export async function violations(page) {
  // The debugger's scripts are not subject to the page's policy.
  await page.evaluate(AXE)
  return page.evaluate(async () => {
    const { violations } = await window.axe.run(document, { resultTypes: ['violations'] })
    const bad = violations.filter((one) => ['serious', 'critical'].includes(one.impact))
    return bad.map((one) => `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 160)).join(' | ')}`)
  })
}

export const picture = (page, name) => page.screenshot({ path: join(OUT, `${name}.png`) })

/** Waits until a condition holds. */
export async function until(what, condition) {
  const end = Date.now() + DEADLINE
  for (;;) {
    if (await condition()) return
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}
