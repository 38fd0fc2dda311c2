// What somebody should look at, the worst first.
import { t } from '../i18n/index.svelte'
import { percent } from './format'
import type { live as Live } from './live.svelte'

export type Problem = { bad: boolean; text: string; detail?: string; link: string }

const FULL = 0.9
const SKEW_MS = 1000
const RECENT_MS = 24 * 3600_000

export function problemsOf(live: typeof Live, now: number): Problem[] {
  const found: Problem[] = []
  const add = (bad: boolean, text: string, link: string, detail?: string | null) =>
    found.push({ bad, text, link, detail: detail ?? undefined })

  if (live.cluster && !live.cluster.majority) add(true, t('problem.majority'), '/nodes')
  for (const warning of live.cluster?.warnings ?? []) add(false, warning, '/nodes')
  for (const node of live.nodes.values()) {
    const name = node.name
    if (node.health === 'unreachable') add(true, t('problem.node', { name }), '/nodes')
    else if (!node.kvm && !node.witness && node.health === 'ready') {
      add(true, t('problem.kvm', { name }), '/nodes')
    }
    if (Math.abs(node.clock_ahead_ms ?? 0) > SKEW_MS) {
      add(false, t('problem.clock', { name, s: ((node.clock_ahead_ms ?? 0) / 1000).toFixed(1) }), '/nodes')
    }
    for (const network of node.networks ?? []) {
      if (network.state !== 'ready') {
        const bad = network.state === 'failed'
        add(
          bad,
          t(`problem.network.${network.state}`, { name: network.network, node: name }),
          '/networks',
          network.problem,
        )
      }
    }
  }
  for (const pool of live.pools.values()) {
    for (const on of pool.nodes) {
      if (on.state !== 'ready') {
        add(true, t(`problem.pool.${on.state}`, { name: pool.name, node: on.node }), '/storage', on.reason)
      } else if (on.total_mib > 0 && on.used_mib / on.total_mib >= FULL) {
        const full = percent((100 * on.used_mib) / on.total_mib)
        add(false, t('problem.full', { name: pool.name, node: on.node, full }), '/storage')
        if (on.shared) break
      }
    }
  }
  for (const guest of live.guests.values()) {
    const link = `/guests/${guest.uuid}`
    if (guest.state === 'crashed') add(true, t('problem.crashed', { name: guest.name }), link, guest.reason)
    if (guest.state === 'paused' && guest.reason)
      add(false, t('problem.paused', { name: guest.name }), link, guest.reason)
    if (guest.state === 'unknown') add(true, t('problem.unknown', { name: guest.name }), link, guest.reason)
    if (guest.limits_error) add(false, t('problem.limits', { name: guest.name }), link, guest.limits_error)
  }
  for (const task of live.tasks.values()) {
    if (task.state === 'failed' && now - task.created_unix_ms < RECENT_MS) {
      const what = t(`kind.${task.kind}`)
      add(false, t('problem.task', { what, subject: task.subject }), `/tasks/${task.id}`, task.error)
    }
  }
  return found.sort((a, b) => Number(b.bad) - Number(a.bad))
}
