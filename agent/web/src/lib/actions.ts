// What is done to guests.
import { api, must, type Guest, type Node, type Schema } from '../api/client'
import { t, type Key } from '../i18n/index.svelte'
import { live } from './live.svelte'
import { notices } from './notices.svelte'
import { go } from './route.svelte'

const of = (guest: Guest) => ({ params: { path: { guest: guest.uuid } } })

/** Tells that a task has begun. */
export function begun(task: Schema['Task']) {
  live.takeTask(task)
  const text = t('begun', { what: t(`kind.${task.kind}`), subject: task.subject })
  notices.tell(text, { link: `/tasks/${task.id}` })
}

const begin = (what: Promise<Schema['Accepted']>) => notices.try(async () => begun((await what).task))

const change = (what: Promise<Schema['Data_GuestView']>) =>
  notices.try(async () => live.take((await what).data))

export const start = (guest: Guest) => begin(must(api.POST('/api/v1/guests/{guest}/start', of(guest))))

export const stop = (guest: Guest) => begin(must(api.POST('/api/v1/guests/{guest}/stop', of(guest))))

export const pause = (guest: Guest) => change(must(api.POST('/api/v1/guests/{guest}/pause', of(guest))))

export const resume = (guest: Guest) => change(must(api.POST('/api/v1/guests/{guest}/resume', of(guest))))

function confirm(guest: Guest, what: 'kill' | 'reset' | 'delete', then: () => void) {
  const name = guest.name
  const key = (part: string) => `confirm.${what}.${part}` as Key
  notices.ask({
    title: t(key('title'), { name }),
    text: t(key('text'), { name }),
    sure: t(key('sure')),
    typed: what === 'delete' ? name : undefined,
    then,
  })
}

export const kill = (guest: Guest) =>
  confirm(guest, 'kill', () => {
    const body = { force: true }
    void begin(must(api.POST('/api/v1/guests/{guest}/stop', { ...of(guest), body })))
  })

export const reset = (guest: Guest) =>
  confirm(guest, 'reset', () => {
    void change(must(api.POST('/api/v1/guests/{guest}/reset', of(guest))))
  })

export const remove = (guest: Guest) =>
  confirm(guest, 'delete', () => {
    void begin(must(api.DELETE('/api/v1/guests/{guest}', of(guest)))).then(() => go('/guests'))
  })

export function drain(node: Node) {
  const params = { path: { node: node.name } }
  notices.ask({
    title: t('drain.title', { name: node.name }),
    text: t('drain.text', { count: node.guests_running }),
    sure: t('drain.do'),
    then: () => void begin(must(api.POST('/api/v1/nodes/{node}/drain', { params }))),
  })
}

export function undrain(node: Node) {
  const params = { path: { node: node.name } }
  return begin(must(api.POST('/api/v1/nodes/{node}/undrain', { params })))
}

export const setTemplate = (guest: Guest, template: boolean) => {
  const path = '/api/v1/guests/{guest}/template'
  return change(must(template ? api.PUT(path, of(guest)) : api.DELETE(path, of(guest))))
}
