/** An element with properties and children. Text children are text: nothing is ever parsed as HTML. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** The page's element with this id. */
export const byId = (id) => document.getElementById(id);
