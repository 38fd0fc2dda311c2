// xterm.js writes its colours and sizes into <style> elements and style attributes, which a content
// security policy without 'unsafe-inline' forbids. This gives it a document in which the same goes
// through the CSS object model, which the policy allows.

/** An element that has its text as a style sheet. */
function styleElement(): HTMLElement {
  const sheet = new CSSStyleSheet()
  const element = document.createElement('template')
  document.adoptedStyleSheets.push(sheet)
  Object.defineProperty(element, 'textContent', {
    get: () => '',
    set: (text: string) => sheet.replaceSync(text),
  })
  element.remove = () => {
    HTMLElement.prototype.remove.call(element)
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet)
  }
  return element
}

function createElement(name: string, options?: ElementCreationOptions): HTMLElement {
  if (name === 'style') return styleElement()
  const element = document.createElement(name, options)
  element.setAttribute = (attribute, value) => {
    if (attribute === 'style') element.style.cssText = value
    else HTMLElement.prototype.setAttribute.call(element, attribute, value)
  }
  return element
}

export const terminalDocument = new Proxy(document, {
  get(target, name) {
    if (name === 'createElement') return createElement
    const value: unknown = Reflect.get(target, name, target)
    return typeof value === 'function' ? value.bind(target) : value
  },
})
