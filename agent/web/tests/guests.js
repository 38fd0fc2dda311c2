// A guest's life, as somebody clicks it.
import assert from 'node:assert/strict'
import { createProbe, loggedIn, PAGE, picture, pindah, until, violations } from './site.js'

const terminal = (page) => page.locator('.xterm-rows')

export const tests = [
  [
    'guest is created, started, typed to, stopped and deleted',
    async () => {
      const { page, complaints } = await loggedIn()
      await page.getByRole('link', { name: 'Guests' }).first().click()
      await page.getByRole('button', { name: 'New guest' }).first().click()
      const dialog = page.getByRole('dialog')
      await dialog.getByLabel('Name').fill('Not A Name')
      assert.ok(await dialog.getByRole('button', { name: 'Create' }).isDisabled())
      await dialog.getByLabel('Name').fill('first')
      await dialog.getByLabel('Tags').fill('test, web')
      await dialog.getByLabel('A kernel').check()
      await dialog.getByRole('combobox', { name: 'Image' }).selectOption('nas/probe')
      await dialog.getByLabel('Kernel command line').fill('ws_mib=4 beat_ms=1000 gap_us=60000000')
      await dialog.getByLabel('Memory').fill('64')
      await dialog.getByLabel('Network').selectOption('none')
      await dialog.getByLabel('Start it at once').uncheck()
      assert.deepEqual(await violations(page), [])
      await picture(page, 'create')
      await dialog.getByRole('button', { name: 'Create' }).click()
      await page.getByRole('heading', { name: 'first', level: 1 }).waitFor()
      const title = page.locator('.title')
      await title.getByText('stopped').waitFor()

      await page.getByRole('button', { name: 'Start', exact: true }).click()
      await title.getByText('running').waitFor()
      await page.getByRole('link', { name: 'Console' }).click()
      await page.getByText('connected', { exact: true }).waitFor()
      await terminal(page).getByText('"ev":').first().waitFor()
      await page.locator('.xterm').click()
      await page.keyboard.type('status')
      await page.keyboard.press('Enter')
      await until('what was typed is answered', async () =>
        (await terminal(page).innerText()).includes('"ev":"status"'),
      )
      assert.deepEqual(await violations(page), [])
      await picture(page, 'console')

      await page.getByRole('button', { name: 'Stop', exact: true }).click()
      await title.getByText('stopped').waitFor()
      await page.getByRole('button', { name: 'More: first' }).click()
      await page.getByRole('button', { name: 'Delete', exact: true }).click()
      const sure = page.getByRole('button', { name: 'Delete for good' })
      assert.ok(await sure.isDisabled())
      await page.getByLabel('Type first to confirm').fill('first')
      await picture(page, 'confirm')
      await sure.click()
      await page.getByRole('heading', { name: 'Guests', level: 1 }).waitFor()
      await page.getByRole('link', { name: 'first', exact: true }).waitFor({ state: 'detached' })
      assert.deepEqual(complaints, [])
    },
  ],
  [
    'guest is dragged onto another node while two look on',
    async () => {
      createProbe('mover', 'ws_mib=32 rate_mib_s=10 verify=1 beat_ms=200', '--start')
      const [one, two] = [await loggedIn(), await loggedIn({ user: 'vera' })]
      for (const { page } of [one, two]) {
        await page.goto(`${PAGE}/nodes`)
        await page.locator('[data-node=node1] [data-guest=mover]').waitFor()
      }
      const { page } = one
      await page.locator('[data-guest=mover]').dragTo(page.locator('[data-node=node2]'))
      const dialog = page.getByRole('dialog')
      await dialog.getByText('live: it runs on the way').waitFor()
      assert.equal(await dialog.getByRole('combobox').inputValue(), 'node2')
      assert.deepEqual(await violations(page), [])
      await picture(page, 'move')
      await dialog.getByRole('button', { name: 'Migrate' }).click()
      await page.getByRole('heading', { name: 'Migrate guest' }).waitFor()
      await page.locator('.state').getByText('done').waitFor()
      await page.getByText('Round 1', { exact: true }).waitFor()
      await page.getByRole('log').getByText('done').waitFor()
      assert.match(await page.locator('.figures').innerText(), /\d ms/)
      assert.deepEqual(await violations(page), [])
      await picture(page, 'migration')
      // Nobody has touched the other browser.
      await two.page.locator('[data-node=node2] [data-guest=mover]').waitFor()

      // By keyboard alone, back.
      await page.goto(`${PAGE}/nodes`)
      await page.getByRole('button', { name: 'Migrate: mover' }).focus()
      await page.keyboard.press('Enter')
      await dialog.getByText('live: it runs on the way').waitFor()
      await dialog.getByRole('button', { name: 'Migrate' }).focus()
      await page.keyboard.press('Enter')
      await page.locator('.state').getByText('done').waitFor()
      await two.page.locator('[data-node=node1] [data-guest=mover]').waitFor()
      assert.deepEqual([...one.complaints, ...two.complaints], [])
      pindah('guest', 'delete', 'mover', '--force', '--yes')
    },
  ],
  [
    'hostile texts do no harm',
    async () => {
      const hostile = `<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">{{7*7}}`
      const guest = createProbe('hostile', 'ws_mib=4', '--start', '--notes', hostile)
      const { page, complaints } = await loggedIn()
      await page.goto(`${PAGE}/guests`)
      await page.getByLabel('Search').fill('<img')
      await page.getByRole('link', { name: 'hostile', exact: true }).click()
      await page.getByText(hostile).waitFor()
      await page.getByRole('link', { name: 'Console' }).click()
      await page.getByText('connected', { exact: true }).waitFor()
      assert.equal(await page.evaluate(() => window.pwned), undefined)
      assert.deepEqual(complaints, [])
      pindah('guest', 'delete', 'hostile', '--force', '--yes')
    },
  ],
]
