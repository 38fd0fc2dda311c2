// Files on their way to the node.
import { Refused, said, Unreached } from '../api/client'

/**
 * Puts a file there, and tells how far it is, in percent: `fetch` does not.
 * @throws Refused, Unreached
 */
export function upload(path: string, file: File, progress: (percent: number) => void): Promise<void> {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest()
    request.open('PUT', path)
    request.upload.onprogress = (event) => progress((100 * event.loaded) / Math.max(1, event.total))
    request.onloadend = () => {
      if (request.status >= 200 && request.status < 300) done()
      else if (request.status === 0) failed(new Unreached(path))
      else failed(new Refused(request.status, refusal(request.responseText) ?? request.statusText))
    }
    progress(0)
    request.send(file)
  })
}

function refusal(text: string): string | undefined {
  try {
    return said(JSON.parse(text))
  } catch {
    return undefined
  }
}
