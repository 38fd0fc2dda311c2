// The page's addresses.
import navaid from 'navaid'

export type View =
  | 'overview'
  | 'guests'
  | 'guest'
  | 'nodes'
  | 'node'
  | 'report'
  | 'tasks'
  | 'task'
  | 'storage'
  | 'networks'
  | 'accounts'
  | 'settings'
  | 'nowhere'

class Route {
  view = $state<View>('overview')
  params = $state<Record<string, string | undefined>>({})
}

export const route = new Route()

const to = (view: View) => (params?: Record<string, string | undefined>) => {
  route.view = view
  route.params = params ?? {}
}

const router = navaid('/', () => to('nowhere')())
  .on('/', to('overview'))
  .on('/guests', to('guests'))
  .on('/guests/:guest/:tab?', to('guest'))
  .on('/nodes', to('nodes'))
  .on('/nodes/:node', to('node'))
  .on('/report', to('report'))
  .on('/tasks', to('tasks'))
  .on('/tasks/:task', to('task'))
  .on('/storage', to('storage'))
  .on('/networks', to('networks'))
  .on('/accounts', to('accounts'))
  .on('/settings', to('settings'))

export const listen = () => router.listen?.()
export const go = (path: string) => router.route(path)
