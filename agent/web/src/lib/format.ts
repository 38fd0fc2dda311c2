// Figures as people read them.
import { t, words } from '../i18n/index.svelte'

const locale = () => (words.language === 'id' ? 'id-ID' : 'en-GB')

export function number(value: number, digits = 0): string {
  return value.toLocaleString(locale(), { maximumFractionDigits: digits })
}

export function percent(value: number | null | undefined): string {
  return value == null ? '–' : `${number(value, value < 10 ? 1 : 0)} %`
}

export function mib(value: number | null | undefined): string {
  return value == null ? '–' : bytes(value * 1024 * 1024)
}

export function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${number(value, value < 10 && unit > 1 ? 1 : 0)} ${units[unit]}`
}

export function rate(kbit: number | null | undefined): string {
  if (kbit == null) return '–'
  if (kbit < 1000) return `${number(kbit)} kbit/s`
  if (kbit < 1e6) return `${number(kbit / 1000, 1)} Mbit/s`
  return `${number(kbit / 1e6, 1)} Gbit/s`
}

export function kib(value: number | null | undefined): string {
  return value == null ? '–' : `${bytes(value * 1024)}/s`
}

export function milliseconds(us: number): string {
  return `${number(us / 1000, us < 10_000 ? 2 : 0)} ms`
}

export function clock(unixMs: number): string {
  return new Date(unixMs).toLocaleTimeString(locale())
}

export function moment(unixMs: number): string {
  const date = new Date(unixMs)
  const today = new Date().toDateString() === date.toDateString()
  if (today) return clock(unixMs)
  return date.toLocaleString(locale(), { dateStyle: 'medium', timeStyle: 'short' })
}

/** How long something has taken, or has been so. */
export function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000))
  if (s < 60) return t('span.s', { s })
  if (s < 3600) return t('span.min', { min: Math.floor(s / 60), s: s % 60 })
  if (s < 86400) return t('span.h', { h: Math.floor(s / 3600), min: Math.floor((s % 3600) / 60) })
  return t('span.d', { d: Math.floor(s / 86400), h: Math.floor((s % 86400) / 3600) })
}
