// The connection is cut, and comes back.
import assert from 'node:assert/strict'
import { agent, createProbe, loggedIn, PAGE, picture, pindah, until, violations } from './site.js'

export const tests = [
  [
    'lost connection is shown, and what happened meanwhile is there afterwards',
    async () => {
      const { page } = await loggedIn()
      await page.goto(`${PAGE}/guests`)
      await page.getByRole('heading', { name: 'Guests' }).waitFor()
      agent.kill()
      await page.getByText('The connection was lost').waitFor()
      assert.deepEqual(await violations(page), [])
      await picture(page, 'lost')
      agent.start()
      await until('node1 answers', () => {
        try {
          return pindah('node', 'list').includes('node1')
        } catch {
          return false
        }
      })
      createProbe('meanwhile', 'ws_mib=4')
      await page.getByText('The connection was lost').waitFor({ state: 'detached' })
      await page.getByRole('link', { name: 'meanwhile' }).waitFor()
      pindah('guest', 'delete', 'meanwhile', '--yes')
      await page.getByRole('link', { name: 'meanwhile' }).waitFor({ state: 'detached' })
    },
  ],
]
