// English and Indonesian. A key that one of them lacks is a type error.
import { en } from './en'
import { id } from './id'

export type Key = keyof typeof en
export type Language = 'en' | 'id'

const KEY = 'pindah-language'
const dictionaries: Record<Language, Record<Key, string>> = { en, id }

function initial(): Language {
  const chosen = localStorage.getItem(KEY)
  if (chosen === 'en' || chosen === 'id') return chosen
  return navigator.language.startsWith('id') ? 'id' : 'en'
}

class Words {
  language = $state<Language>(initial())

  choose(language: Language) {
    this.language = language
    localStorage.setItem(KEY, language)
  }
}

export const words = new Words()

/** The text of a key, with `{name}` replaced. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  const text = dictionaries[words.language][key]
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole))
}
