// Who has logged in, and what that one may do.
import { api, must, Refused, whenUnauthorized, type Role, type Schema } from '../api/client'

/** How often the login is renewed while the page is open; it is good for an hour. */
const RENEWAL_MS = 15 * 60_000

const LEVELS: Record<Role, number> = { viewer: 1, operator: 2, admin: 3 }

type Known = 'asking' | 'nobody' | 'ended' | 'somebody' | 'unreached'

class Session {
  known = $state<Known>('asking')
  who = $state<Schema['SessionView'] | null>(null)
  #timer: ReturnType<typeof setInterval> | undefined

  constructor() {
    whenUnauthorized(() => {
      if (this.known === 'somebody') this.#end('ended')
    })
  }

  /** Finds out whether there is a login. */
  async ask() {
    try {
      const { data } = await must(api.GET('/api/v1/session'))
      this.#begin(data)
    } catch (error) {
      this.#end(error instanceof Refused && error.status === 401 ? 'nobody' : 'unreached')
    }
  }

  async login(user: string, password: string) {
    const { data } = await must(api.POST('/api/v1/session', { body: { user, password } }))
    this.#begin(data)
  }

  async logout() {
    await must(api.DELETE('/api/v1/session')).catch(() => {})
    this.#end('nobody')
  }

  #begin(who: Schema['SessionView']) {
    this.who = who
    this.known = 'somebody'
    clearInterval(this.#timer)
    const renew = () => void must(api.PUT('/api/v1/session')).catch(() => {})
    this.#timer = setInterval(renew, RENEWAL_MS)
    renew()
  }

  #end(known: Known) {
    clearInterval(this.#timer)
    this.who = null
    this.known = known
  }

  /** Whether there is a role for everything. */
  get seesAll() {
    return this.who?.role != null
  }

  has(role: Role) {
    const mine = this.who?.role
    return mine != null && LEVELS[mine] >= LEVELS[role]
  }

  #onGuest(uuid: string, role: Role) {
    const mine = this.who?.guests?.[uuid]
    return mine !== undefined && LEVELS[mine] >= LEVELS[role]
  }

  /** Start, stop and reset it, and use its console. */
  mayRun(uuid: string) {
    return this.has('operator') || this.#onGuest(uuid, 'operator')
  }

  /** Change, move and delete it. */
  mayChange(uuid: string) {
    return this.has('operator') || this.#onGuest(uuid, 'admin')
  }
}

export const session = new Session()
