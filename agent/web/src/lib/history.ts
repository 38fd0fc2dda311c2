// Figures over time: the live ones, which the page has kept itself, and what the nodes keep.
import { api, must, type Schema } from '../api/client'
import type { Sample } from './live.svelte'

/** One line of a graph; times in seconds, as uPlot has them. */
export type Line = { label: string; values: (number | null)[] }
export type Lines = { times: number[]; lines: Line[] }

/** Of whom. */
export type Subject = { kind: 'guest' | 'node'; id: string }

/** The times that are offered: as much as the page keeps, and what the nodes keep. */
export const PERIODS = ['live', 'hour', 'day', 'fortnight', 'year'] as const
export type Period = (typeof PERIODS)[number]
const HOUR_S = 3600
const DAY_S = 24 * HOUR_S
const LENGTHS_S = { hour: HOUR_S, day: DAY_S, fortnight: 15 * DAY_S, year: 365 * DAY_S }

/** Steps of a graph: about one for two pixels. */
const POINTS = 240
/** What the live graphs show at most, and at least. */
const LIVE_S = 1800
const LIVE_LEAST_S = 300

/** Numbers that a graph may show, in what the page writes them: percent, MiB, kbit/s, KiB/s. */
export type Field = 'cpu' | 'cpuMost' | 'memory' | 'memoryMost' | 'resident' | 'rx' | 'tx' | 'read' | 'write'
export type Track = {
  from: number
  to: number
  times: number[]
  values: Partial<Record<Field, (number | null)[]>>
  /** Nodes that have not told what they know. */
  missing: string[]
}

type Usage = Sample<Partial<Schema['GuestUsage'] & Schema['NodeUsage']>>

/** What the page has kept itself. */
export function liveTrack(samples: Usage[]): Track {
  const times = samples.map((sample) => sample.at / 1000)
  const to = times.at(-1) ?? Date.now() / 1000
  const of = (field: Exclude<keyof Usage, 'at'>) => samples.map((sample) => sample[field] ?? null)
  return {
    from: Math.max(to - LIVE_S, Math.min(times[0] ?? to, to - LIVE_LEAST_S)),
    to,
    times,
    values: {
      cpu: of('cpu_percent'),
      memory: of('memory_used_mib'),
      resident: of('memory_resident_mib'),
      rx: of('network_rx_kbit_per_s'),
      tx: of('network_tx_kbit_per_s'),
      read: of('disk_read_kib_per_s'),
      write: of('disk_write_kib_per_s'),
    },
    missing: [],
  }
}

/** What the nodes have kept. @throws Refused, Unreached */
export async function readTrack(subject: Subject, period: Exclude<Period, 'live'>): Promise<Track> {
  const from = new Date(Date.now() - LENGTHS_S[period] * 1000).toISOString()
  const query = { from, points: POINTS }
  const { data } =
    subject.kind === 'guest'
      ? await must(
          api.GET('/api/v1/guests/{guest}/history', { params: { path: { guest: subject.id }, query } }),
        )
      : await must(api.GET('/api/v1/nodes/{node}/history', { params: { path: { node: subject.id }, query } }))
  const { series, step_s } = data
  const begin = Date.parse(data.from) / 1000
  const in_ = (values: (number | null)[], unit: number) => values.map((value) => value && value / unit)
  return {
    from: begin,
    to: Date.parse(data.to) / 1000,
    times: series.cpu_percent.map((_, index) => begin + (index + 0.5) * step_s),
    values: {
      cpu: series.cpu_percent,
      cpuMost: series.cpu_percent_max,
      memory: in_(series.memory_bytes, 1024 * 1024),
      memoryMost: in_(series.memory_bytes_max, 1024 * 1024),
      rx: in_(series.network_rx_bit_s, 1000),
      tx: in_(series.network_tx_bit_s, 1000),
      read: in_(series.disk_read_bytes_s, 1024),
      write: in_(series.disk_write_bytes_s, 1024),
    },
    missing: data.missing_nodes,
  }
}

/** After how long there is a new step of a time that is shown. */
export const stepMs = (period: Exclude<Period, 'live'>) =>
  Math.max(10_000, (LENGTHS_S[period] * 1000) / POINTS)
