// The API, with the types of its OpenAPI description.
import createClient from 'openapi-fetch'
import type { components, paths } from './schema'

export type Schema = components['schemas']
export type Guest = Schema['GuestView']
export type Node = Schema['NodeView']
export type Task = Schema['Task']
export type Pool = Schema['PoolView']
export type Network = Schema['NetworkView']
export type Image = Schema['Image']
export type Role = Schema['Role']

export const api = createClient<paths>({ baseUrl: '/' })

/** What the API refused, in its own words. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message)
  }
}

/** The node cannot be reached. */
export class Unreached extends Error {}

let onUnauthorized = () => {}

/** What happens when the login has ended. */
export function whenUnauthorized(then: () => void) {
  onUnauthorized = then
}

type Answer<T> = { data?: T; error?: unknown; response: Response }

/** What was asked for. @throws Refused, Unreached */
export async function must<T>(asked: Promise<Answer<T>>): Promise<T> {
  let answer: Answer<T>
  try {
    answer = await asked
  } catch (error) {
    throw new Unreached(String(error))
  }
  if (answer.response.ok) return answer.data as T
  const status = answer.response.status
  if (status === 401) onUnauthorized()
  throw new Refused(status, said(answer.error) ?? answer.response.statusText)
}

/** The sentence of an error's body. */
export function said(error: unknown): string | undefined {
  const body = error as { error?: { message?: unknown } } | undefined
  return typeof body?.error?.message === 'string' ? body.error.message : undefined
}

/** All pages of a list. */
export async function all<T>(
  page: (after: string | undefined) => Promise<{ data: T[]; next?: string | null }>,
): Promise<T[]> {
  const found: T[] = []
  let after: string | undefined
  do {
    const { data, next } = await page(after)
    found.push(...data)
    after = next ?? undefined
  } while (after)
  return found
}
