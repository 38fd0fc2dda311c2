// Figures over time: the live ones, which the page has kept itself.

/** One line of a graph; times in seconds, as uPlot has them. */
export type Line = { label: string; values: (number | null)[] }
export type Lines = { times: number[]; lines: Line[] }
