// The time, for what says how long ago something was.

class Now {
  ms = $state(Date.now())

  constructor() {
    setInterval(() => (this.ms = Date.now()), 1000)
  }
}

export const now = new Now()
