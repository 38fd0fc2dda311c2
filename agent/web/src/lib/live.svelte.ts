// What there is, kept up to date by the agent's events.
import { SvelteMap } from 'svelte/reactivity'
import {
  all,
  api,
  must,
  Refused,
  type Guest,
  type Image,
  type Network,
  type Node,
  type Pool,
  type Schema,
  type Task,
} from '../api/client'
import { session } from './session.svelte'

type Happening = Schema['Event']
type Usage = Schema['GuestUsage']
type NodeUsage = Schema['NodeUsage']

/** Samples that are kept of each guest and node: half an hour. */
const KEPT = 180
/** Tasks that are kept. */
const TASKS = 300
/** A node that says nothing for so long is asked after. */
const SILENCE_MS = 25_000
/** A stream that says nothing for so long is asked whether it is still there. */
const QUIET_MS = 30_000
/** How long an answer to that may take. */
const ANSWER_MS = 8_000
/** Changes of one thing that come together are read once. */
const TOGETHER_MS = 120
/** Figures that come together are shown together. */
const FIGURES_MS = 200
/** Guests that change at once and are read one by one. */
const SINGLY = 8
const RETRY_MS = 3_000

export type Sample<U> = U & { at: number }

class Live {
  guests = new SvelteMap<string, Guest>()
  nodes = new SvelteMap<string, Node>()
  tasks = new SvelteMap<string, Task>()
  pools = new SvelteMap<string, Pool>()
  networks = new SvelteMap<string, Network>()
  images = $state.raw<Image[]>([])
  cluster = $state.raw<Schema['ClusterView'] | null>(null)
  guestSamples = new SvelteMap<string, Sample<Usage>[]>()
  nodeSamples = new SvelteMap<string, Sample<NodeUsage>[]>()
  /** How migrations have gone, a step a second. */
  moves = new SvelteMap<string, Schema['MoveProgress'][]>()
  logs = new SvelteMap<string, Schema['LogLine'][]>()
  /** Counts changes of users and tokens. */
  accounts = $state(0)

  loaded = $state(false)
  connected = $state(false)
  lostSince = $state<number | null>(null)
  failure = $state<string | null>(null)

  #source: EventSource | undefined
  #retry: ReturnType<typeof setTimeout> | undefined
  #watch: ReturnType<typeof setInterval> | undefined
  #heard = new Map<string, number>()
  #lastHeard = 0
  #stale = new Map<string, ReturnType<typeof setTimeout>>()
  #staleGuests = new Set<string>()
  #figures: (() => void)[] = []

  start() {
    this.stop()
    this.#open()
    this.#watch = setInterval(() => this.#lookForSilence(), 5_000)
  }

  stop() {
    this.#source?.close()
    this.#source = undefined
    clearTimeout(this.#retry)
    clearInterval(this.#watch)
    for (const timer of this.#stale.values()) clearTimeout(timer)
    this.#stale.clear()
    this.#staleGuests.clear()
    this.#figures = []
    this.#heard.clear()
    for (const map of [this.guests, this.nodes, this.tasks, this.pools, this.networks]) map.clear()
    for (const map of [this.guestSamples, this.nodeSamples, this.logs, this.moves]) map.clear()
    this.images = []
    this.cluster = null
    this.loaded = this.connected = false
    this.lostSince = this.failure = null
  }

  #open() {
    const source = new EventSource('/api/v1/events?details=true')
    this.#source = source
    // What happened while nobody listened is read anew.
    source.onopen = () => void this.#load()
    source.onmessage = (message) => {
      this.#lastHeard = Date.now()
      this.#hear(JSON.parse(message.data as string) as Happening)
    }
    source.addEventListener('lagged', () => void this.#load())
    source.onerror = () => this.#lose()
  }

  #lose() {
    this.connected = false
    this.lostSince ??= Date.now()
    this.#source?.close()
    clearTimeout(this.#retry)
    this.#retry = setTimeout(() => void this.#again(), RETRY_MS)
  }

  /** The stream ends with the login too, which only another request tells. */
  async #again() {
    try {
      await must(api.GET('/api/v1/session'))
      this.#open()
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return
      this.#retry = setTimeout(() => void this.#again(), RETRY_MS)
    }
  }

  async #load() {
    try {
      await Promise.all([this.#loadGuests(), this.#loadTasks()])
      if (session.seesAll) {
        await Promise.all([
          this.#loadNodes(),
          this.#loadPools(),
          this.#loadNetworks(),
          this.#loadImages(),
          this.#loadCluster(),
        ])
      }
      this.failure = null
      this.lostSince = null
      this.connected = true
      this.loaded = true
      this.#lastHeard = Date.now()
    } catch (error) {
      this.failure = error instanceof Error ? error.message : String(error)
      this.#lose()
    }
  }

  async #loadGuests() {
    const guests = await all((after) =>
      must(api.GET('/api/v1/guests', { params: { query: { after, limit: 500 } } })),
    )
    replace(this.guests, guests, (guest) => guest.uuid)
    for (const guest of guests) {
      if (guest.usage) this.#sample(this.guestSamples, guest.uuid, guest.usage)
    }
  }

  async #loadTasks() {
    const query = { limit: TASKS }
    const { data } = await must(api.GET('/api/v1/tasks', { params: { query } }))
    replace(this.tasks, data, (task) => task.id)
  }

  async #loadNodes() {
    const { data } = await must(api.GET('/api/v1/nodes'))
    replace(this.nodes, data, (node) => node.name)
    for (const node of data) {
      this.#heard.set(node.name, Date.now())
      if (node.usage) this.#sample(this.nodeSamples, node.name, node.usage)
    }
  }

  async #loadPools() {
    const { data } = await must(api.GET('/api/v1/pools'))
    replace(this.pools, data, (pool) => pool.name)
  }

  async #loadNetworks() {
    const { data } = await must(api.GET('/api/v1/networks'))
    replace(this.networks, data, (network) => network.name)
  }

  async #loadImages() {
    this.images = (await must(api.GET('/api/v1/images'))).data
  }

  /** A node that is alone has none. */
  async #loadCluster() {
    try {
      this.cluster = (await must(api.GET('/api/v1/cluster'))).data
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      this.cluster = null
    }
  }

  async #loadGuest(uuid: string) {
    try {
      const params = { path: { guest: uuid } }
      const { data } = await must(api.GET('/api/v1/guests/{guest}', { params }))
      this.guests.set(uuid, data)
    } catch (error) {
      if (error instanceof Refused && error.status === 404) this.guests.delete(uuid)
      else throw error
    }
  }

  async #loadTask(id: string) {
    const params = { path: { task: id } }
    const { data } = await must(api.GET('/api/v1/tasks/{task}', { params }))
    this.tasks.set(id, data)
  }

  #later(what: string, read: () => Promise<void>, ms = TOGETHER_MS) {
    if (this.#stale.has(what)) return
    const timer = setTimeout(() => {
      this.#stale.delete(what)
      read().catch(() => {})
    }, ms)
    this.#stale.set(what, timer)
  }

  #readGuest(uuid: string) {
    this.#staleGuests.add(uuid)
    this.#later('guests', async () => {
      const stale = [...this.#staleGuests]
      this.#staleGuests.clear()
      if (stale.length > SINGLY) await this.#loadGuests()
      else await Promise.all(stale.map((guest) => this.#loadGuest(guest)))
    })
  }

  /** Reads a thing after it was changed here, without waiting for its event. */
  touch(what: 'pools' | 'networks' | 'images' | 'nodes') {
    if (!session.seesAll) return
    if (what === 'pools') this.#later('pools', () => this.#loadPools())
    if (what === 'networks') this.#later('networks', () => this.#loadNetworks())
    if (what === 'images') this.#later('images', () => this.#loadImages())
    if (what === 'nodes') {
      this.#later('nodes', async () => {
        await Promise.all([this.#loadNodes(), this.#loadCluster()])
      })
    }
  }

  take(guest: Guest) {
    this.guests.set(guest.uuid, guest)
  }

  takeTask(task: Task) {
    if (!this.tasks.has(task.id)) this.tasks.set(task.id, task)
  }

  #hear(event: Happening) {
    switch (event.type) {
      case 'guest_state': {
        const guest = this.guests.get(event.uuid)
        if (guest) this.guests.set(event.uuid, { ...guest, state: event.state })
        this.#readGuest(event.uuid)
        break
      }
      case 'guest_changed':
        this.#readGuest(event.uuid)
        break
      case 'guest_deleted':
        this.guests.delete(event.uuid)
        this.guestSamples.delete(event.uuid)
        break
      case 'task':
        this.#later(`task ${event.id}`, () => this.#loadTask(event.id))
        if (event.guest) this.#readGuest(event.guest)
        if (event.state !== 'running') {
          this.touch('pools')
          if (['drain_node', 'undrain_node', 'update_node'].includes(event.kind)) this.touch('nodes')
        }
        break
      case 'task_progress': {
        const task = this.tasks.get(event.id)
        if (task) this.tasks.set(event.id, { ...task, progress: event.progress })
        break
      }
      case 'move':
        this.moves.set(event.id, [...(this.moves.get(event.id) ?? []), event.progress])
        break
      case 'task_log': {
        const lines = this.logs.get(event.id)
        if (lines) this.logs.set(event.id, [...lines, event.line])
        break
      }
      case 'guest_usage':
        this.#figure(() => {
          this.#sample(this.guestSamples, event.uuid, event.usage)
          const guest = this.guests.get(event.uuid)
          if (guest) this.guests.set(event.uuid, { ...guest, usage: event.usage })
        })
        break
      case 'node_usage':
        this.#heard.set(event.node, Date.now())
        this.#figure(() => {
          this.#sample(this.nodeSamples, event.node, event.usage)
          const node = this.nodes.get(event.node)
          if (!node || node.health !== 'ready') this.touch('nodes')
          else this.nodes.set(event.node, { ...node, usage: event.usage })
        })
        break
      case 'changed':
        if (event.what === 'accounts') this.accounts++
        else this.touch(event.what)
    }
  }

  /** Takes figures up together with those that follow at once: hundreds of guests are drawn once. */
  #figure(take: () => void) {
    this.#figures.push(take)
    this.#later(
      'figures',
      async () => {
        for (const one of this.#figures.splice(0)) one()
      },
      FIGURES_MS,
    )
  }

  #lookForSilence() {
    if (!this.connected) return
    const now = Date.now()
    if (now - this.#lastHeard > QUIET_MS) {
      // A cable that was pulled ends no connection.
      this.#lastHeard = now
      const signal = AbortSignal.timeout(ANSWER_MS)
      must(api.GET('/api/v1/session', { signal })).catch(() => this.#lose())
    }
    if (!session.seesAll) return
    for (const [node, heard] of this.#heard) {
      if (now - heard > SILENCE_MS) {
        this.#heard.set(node, now)
        this.touch('nodes')
      }
    }
  }

  #sample<U extends { sampled_unix_ms?: number | null }>(
    samples: SvelteMap<string, Sample<U>[]>,
    key: string,
    usage: U,
  ) {
    const at = usage.sampled_unix_ms
    if (at == null) return
    const before = samples.get(key) ?? []
    if (before.at(-1)?.at === at) return
    samples.set(key, [...before.slice(1 - KEPT), { ...usage, at }])
  }

  /** Reads a task's log; from then on it grows by itself. */
  async follow(id: string) {
    if (!this.logs.has(id)) this.logs.set(id, [])
    const params = { path: { task: id } }
    const { data } = await must(api.GET('/api/v1/tasks/{task}/log', { params }))
    const known = this.logs.get(id) ?? []
    const last = data.at(-1)?.time_unix_ms ?? 0
    this.logs.set(id, [...data, ...known.filter((line) => line.time_unix_ms > last)])
    if (!this.tasks.has(id)) await this.#loadTask(id)
  }
}

/** Changes what differs and leaves alone what does not, so that nothing flickers. */
function replace<T>(map: SvelteMap<string, T>, now: T[], key: (value: T) => string) {
  const keys = new Set(now.map(key))
  for (const gone of [...map.keys()].filter((known) => !keys.has(known))) map.delete(gone)
  for (const value of now) {
    const known = map.get(key(value))
    if (!known || JSON.stringify(known) !== JSON.stringify(value)) map.set(key(value), value)
  }
}

export const live = new Live()
