// What the page tells about what was asked of it: notices, and questions before what destroys.
import { t } from '../i18n/index.svelte'

export type Notice = { id: number; text: string; bad: boolean; link?: string }
export type Question = {
  title: string
  text: string
  /** What the button says. */
  sure: string
  /** What must be typed first. */
  typed?: string
  then: () => void
}

const SHOWN_MS = 6_000

class Notices {
  list = $state<Notice[]>([])
  question = $state<Question | null>(null)
  #next = 0

  tell(text: string, { bad = false, link }: { bad?: boolean; link?: string } = {}) {
    const id = this.#next++
    this.list.push({ id, text, bad, link })
    if (!bad) setTimeout(() => this.drop(id), SHOWN_MS)
  }

  drop(id: number) {
    this.list = this.list.filter((notice) => notice.id !== id)
  }

  ask(question: Question) {
    this.question = question
  }

  /** Does something, and tells why not. */
  async try<T>(what: () => Promise<T>): Promise<T | undefined> {
    try {
      return await what()
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error)
      this.tell(text || t('error.unreached'), { bad: true })
      return undefined
    }
  }
}

export const notices = new Notices()
