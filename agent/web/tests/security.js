// Who gets in, and what others' pages can do.
import assert from 'node:assert/strict'
import {
  createProbe,
  createUser,
  login,
  loggedIn,
  PAGE,
  picture,
  pindah,
  SERVER,
  until,
  violations,
  visitor,
} from './site.js'

export const tests = [
  [
    'wrong password is refused and the right one lets in',
    async () => {
      const { page, context, complaints } = await visitor()
      await login(page, 'anna', 'wrong horse')
      await page.getByRole('alert').getByText('The user or the password is wrong.').waitFor()
      assert.deepEqual(await violations(page), [])
      await picture(page, 'login')
      assert.equal((await context.cookies()).length, 0)
      await page.getByLabel('Password').fill('correct horse')
      await page.getByLabel('Password').press('Enter')
      await page.getByRole('heading', { name: 'Overview', level: 1 }).waitFor()
      const [cookie] = await context.cookies()
      assert.equal(cookie.name, '__Host-pindah')
      assert.ok(cookie.httpOnly && cookie.secure)
      assert.equal(cookie.sameSite, 'Strict')
      assert.equal(await page.evaluate(() => document.cookie), '')
      const unexpected = complaints.filter((text) => !text.includes('401'))
      assert.deepEqual(unexpected, [])
      await page.getByRole('button', { name: 'Log out' }).click()
      await page.getByRole('button', { name: 'Log in' }).waitFor()
      assert.equal((await context.cookies()).length, 0)
    },
  ],
  [
    'policy lets nothing inline run',
    async () => {
      const { page } = await loggedIn()
      const answer = await page.goto(`${PAGE}/settings`)
      const policy = answer.headers()['content-security-policy']
      assert.match(policy, /script-src 'self'/)
      assert.doesNotMatch(policy, /unsafe/)
      await page.evaluate(() => {
        const script = document.createElement('script')
        script.textContent = 'window.pwned = 1'
        document.head.append(script)
      })
      assert.equal(await page.evaluate(() => window.pwned), undefined)
    },
  ],
  [
    "another site's page changes nothing",
    async () => {
      const { page, context } = await loggedIn()
      const data = { name: 'forged', role: 'admin', password: 'correct horse' }
      const forge = (headers) => context.request.post(`${SERVER}/api/v1/users`, { data, headers })
      assert.equal((await forge({ origin: 'https://example.org' })).status(), 403)
      assert.equal((await forge({ 'sec-fetch-site': 'cross-site' })).status(), 403)
      assert.doesNotMatch(pindah('user', 'list'), /forged/)
      // A real page of another origin, whose requests go along with whatever cookies the browser gives.
      await page.route('http://elsewhere.test/', (route) =>
        route.fulfill({
          contentType: 'text/html',
          body: `<form method="post" enctype="text/plain" action="${SERVER}/api/v1/users"><input name='{"name":"forged","role":"admin","password":"correct horse","x":"' value='"}'></form>`,
        }),
      )
      await page.goto('http://elsewhere.test/')
      await page.evaluate(() => document.forms[0].submit())
      await page.waitForURL(`${SERVER}/**`)
      assert.match(await page.textContent('body'), /error/)
      assert.doesNotMatch(pindah('user', 'list'), /forged/)
    },
  ],
  [
    'viewer sees everything and can change nothing',
    async () => {
      const guest = createProbe('seen', 'ws_mib=4', '--start')
      const { page, complaints } = await loggedIn({ user: 'vera' })
      await page.getByRole('link', { name: 'Guests' }).first().click()
      await page.getByRole('link', { name: 'seen', exact: true }).waitFor()
      for (const name of ['New guest', 'Stop: seen', 'More: seen', 'Console: seen']) {
        assert.equal(await page.getByRole('button', { name }).count(), 0, name)
      }
      assert.equal(await page.getByRole('link', { name: 'Users, tokens' }).count(), 0)
      await page.goto(`${PAGE}/guests/${guest.uuid}/console`)
      await page.getByText('not use its console').waitFor()
      await page.goto(`${PAGE}/nodes`)
      await page.locator('[data-guest=seen]').waitFor()
      assert.equal(await page.getByRole('button', { name: /Drain|Migrate/ }).count(), 0)
      await page.goto(`${PAGE}/storage`)
      await page.getByText('probe', { exact: true }).waitFor()
      assert.equal(await page.getByRole('button', { name: /Delete|Upload|New/ }).count(), 0)
      const refused = await page.evaluate(
        async () => (await fetch('/api/v1/guests/seen/stop', { method: 'POST' })).status,
      )
      assert.equal(refused, 403)
      assert.deepEqual(
        complaints.filter((text) => !/40[13]/.test(text)),
        [],
      )
      pindah('guest', 'delete', 'seen', '--force', '--yes')
    },
  ],
  [
    'login that is taken away ends at the login form',
    async () => {
      createUser('budi', 'operator')
      const { page } = await loggedIn({ user: 'budi' })
      pindah('user', 'delete', 'budi')
      await page.getByText('Your login has ended').waitFor()
      await until(
        'the page shows nothing more',
        async () => (await page.getByRole('heading', { name: 'Overview' }).count()) === 0,
      )
    },
  ],
]
