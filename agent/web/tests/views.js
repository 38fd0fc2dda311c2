// Every view: nothing to complain about, and a picture of it.
import assert from 'node:assert/strict'
import { createProbe, DEADLINE, loggedIn, PAGE, picture, violations } from './site.js'

const VIEWS = [
  ['overview', '/', 'Overview'],
  ['guests', '/guests', 'Guests'],
  ['nodes', '/nodes', 'Nodes'],
  ['node', '/nodes/node1', 'node1'],
  ['report', '/report', 'Report'],
  ['storage', '/storage', 'Storage'],
  ['networks', '/networks', 'Networks'],
  ['tasks', '/tasks', 'Tasks'],
  ['accounts', '/accounts', 'Users, tokens'],
  ['settings', '/settings', 'Settings'],
]

let web
const NAMES = ['web', 'db', 'mail', 'proxy', 'files', 'build']

function furnish() {
  if (web) return
  for (const name of NAMES) {
    const started = name === 'build' ? [] : ['--start']
    const words =
      name === 'db'
        ? 'ws_mib=24 rate_mib_s=20 beat_ms=500 gap_us=60000000'
        : 'ws_mib=4 beat_ms=1000 gap_us=60000000'
    const node = ['mail', 'files'].includes(name) ? 'node2' : 'node1'
    const guest = createProbe(
      name,
      words,
      '--tag',
      name === 'build' ? 'test' : 'prod',
      '--node',
      node,
      ...started,
    )
    if (name === 'web') web = guest
  }
}

async function look(options, suffix) {
  furnish()
  const { page, complaints } = await loggedIn(options)
  const places = [
    ...VIEWS,
    ...['', '/console', '/disks', '/network', '/log', '/tasks'].map((tab) => [
      `guest${tab.replace('/', '-')}`,
      `/guests/${web.uuid}${tab}`,
      'web',
    ]),
  ]
  for (const [name, path, heading] of places) {
    await page.goto(`${PAGE}${path}`)
    await page.getByRole('heading', { name: heading, level: 1 }).waitFor()
    if (['guest', 'node'].includes(name)) await page.locator('.uplot').first().waitFor()
    if (name === 'report') await page.getByRole('heading', { name: 'Advice' }).waitFor()
    if (name === 'guest-console') await page.getByText('connected', { exact: true }).waitFor()
    if (name === 'guest-console') await page.locator('.xterm-rows').getByText('"ev":').first().waitFor()
    if (name === 'accounts') await page.getByText('anna').first().waitFor()
    const found = await violations(page)
    assert.deepEqual(found, [], `${name}${suffix}`)
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)
    assert.ok(wide <= 0, `${name}${suffix}: ${wide} pixels too wide`)
    await picture(page, `${name}${suffix}`)
    assert.deepEqual(complaints, [], `${name}${suffix}`)
  }
}

export const tests = [
  ['every view is in order in the light', () => look({}, '')],
  ['every view is in order in the dark', () => look({ dark: true }, '-dark')],
  ['every view is in order on a phone', () => look({ phone: true }, '-phone')],
  [
    'page speaks Indonesian and remembers it',
    async () => {
      const { page } = await loggedIn()
      await page.goto(`${PAGE}/settings`)
      await page.getByLabel('Language').selectOption('id')
      await page.getByRole('heading', { name: 'Pengaturan' }).waitFor()
      await page.goto(`${PAGE}/guests`)
      await page.getByRole('heading', { name: 'Mesin virtual' }).waitFor()
      assert.equal(await page.evaluate(() => document.documentElement.lang), 'id')
      await picture(page, 'guests-id')
    },
  ],
  [
    'figures come by themselves, and nothing is asked for again and again',
    async () => {
      furnish()
      const { page } = await loggedIn()
      await page.goto(`${PAGE}/guests`)
      await page.getByRole('link', { name: 'db', exact: true }).waitFor()
      const asked = []
      page.on('request', (request) => asked.push(request.url()))
      const row = page.getByRole('row').filter({ hasText: 'db' })
      const line = () => row.locator('svg path:not(.floor)').first().getAttribute('d')
      const before = await line().catch(() => null)
      const end = Date.now() + DEADLINE
      while ((await line().catch(() => null)) === before && Date.now() < end) await page.waitForTimeout(200)
      assert.notEqual(await line(), before)
      assert.deepEqual(asked, [])
    },
  ],
  [
    'graphs show what the nodes have kept too',
    async () => {
      furnish()
      const { page, complaints } = await loggedIn()
      await page.goto(`${PAGE}/guests/${web.uuid}`)
      for (const period of ['Hour', 'Day', '15 days', 'Year']) {
        const asked = page.waitForResponse((answer) => answer.url().includes(`${web.uuid}/history?`))
        await page.getByRole('button', { name: period, exact: true }).click()
        assert.equal((await asked).status(), 200)
        await page.locator('.uplot').nth(3).waitFor()
      }
      await page.getByRole('button', { name: 'Hour', exact: true }).click()
      // What has run for some steps by now was measured.
      await page.locator('figure').filter({ hasText: 'Average' }).first().waitFor()
      await picture(page, 'guest-hour')
      assert.deepEqual(complaints, [])
    },
  ],
  [
    'two hundred guests are scrolled smoothly',
    async () => {
      const { page } = await loggedIn()
      // Copies of what is there, so that two hundred need not run.
      await page.route('**/api/v1/guests?*', async (route) => {
        const answer = await route.fetch()
        const { data } = await answer.json()
        const many = Array.from({ length: 200 }, (_, index) => ({
          ...data[index % data.length],
          name: `guest-${index}`,
          uuid: `00000000-0000-4000-8000-${String(index).padStart(12, '0')}`,
        }))
        await route.fulfill({ response: answer, json: { data: many } })
      })
      await page.goto(`${PAGE}/guests`)
      await page.getByRole('link', { name: 'guest-199', exact: true }).waitFor()
      const slow = await page.evaluate(async () => {
        const gaps = []
        let last = performance.now()
        for (let step = 0; step < 60; step++) {
          scrollBy(0, 120)
          await new Promise(requestAnimationFrame)
          gaps.push(performance.now() - last)
          last = performance.now()
        }
        return gaps.sort((a, b) => a - b)[Math.floor(gaps.length / 2)]
      })
      assert.ok(slow < 100, `half of the frames took more than ${slow} ms`)
      await page.getByLabel('Search').fill('guest-42')
      await page.getByRole('link', { name: 'guest-42', exact: true }).waitFor()
      assert.equal(await page.getByRole('row').count(), 2)
    },
  ],
]
