// What guests and tasks look like.
import type { Guest, Task } from '../api/client'
import type { Key } from '../i18n/index.svelte'

type Tone = 'good' | 'warn' | 'bad' | 'idle' | 'busy'
type Shown = { tone: Tone; label: Key }

const TONES: Record<Guest['state'], Tone> = {
  running: 'good',
  stopped: 'idle',
  starting: 'busy',
  stopping: 'busy',
  arriving: 'busy',
  paused: 'warn',
  crashed: 'bad',
  unknown: 'warn',
}

export function stateOf(guest: Guest, alone: boolean): Shown {
  if (alone) return { tone: 'warn', label: 'state.unknown' }
  if (guest.moving_to) return { tone: 'busy', label: 'state.moving' }
  if (guest.incomplete) return { tone: 'busy', label: 'state.incomplete' }
  return { tone: TONES[guest.state], label: `state.${guest.state}` }
}

const TASK_TONES: Record<Task['state'], Tone> = {
  running: 'busy',
  done: 'good',
  failed: 'bad',
  cancelled: 'idle',
}

export function stateOfTask(task: Task): Shown {
  return { tone: TASK_TONES[task.state], label: `task.${task.state}` }
}

export const hasProcess = (guest: Guest) => !['stopped', 'crashed'].includes(guest.state)

/** Memory that is in use, by the guest's own word or what its process holds. */
export function memoryUsed(guest: Guest): number | null {
  return guest.usage?.memory_used_mib ?? guest.usage?.memory_resident_mib ?? null
}

/** An address without its prefix length. */
export const bare = (address: string) => address.split('/')[0] ?? address
