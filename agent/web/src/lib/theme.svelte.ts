// Light, dark, or as the system has it.

export type Theme = 'system' | 'light' | 'dark'

const KEY = 'pindah-theme'
const query = matchMedia('(prefers-color-scheme: dark)')

class Look {
  theme = $state<Theme>((localStorage.getItem(KEY) as Theme | null) ?? 'system')
  #systemDark = $state(query.matches)
  dark = $derived(this.theme === 'dark' || (this.theme === 'system' && this.#systemDark))

  constructor() {
    query.addEventListener('change', () => (this.#systemDark = query.matches))
  }

  choose(theme: Theme) {
    this.theme = theme
    localStorage.setItem(KEY, theme)
  }

  apply() {
    document.documentElement.dataset.theme = this.dark ? 'dark' : 'light'
  }
}

export const look = new Look()
