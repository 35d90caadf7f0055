/** Creates an element with properties and children. Strings become text nodes and are never parsed as HTML. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Returns the page's element with this id. */
export const byId = (id) => document.getElementById(id);
