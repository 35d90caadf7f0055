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

/** Creates a button that calls `onClick`. `name` is what it is called where `text` is only a sign. */
export function button(text, onClick, { name, ...properties } = {}) {
  const node = element("button", { type: "button", className: "quiet", ...(name && { ariaLabel: name, title: name }), ...properties }, text);
  node.addEventListener("click", onClick);
  return node;
}

/** Calls `action` when the page's element with this id is clicked. */
export const onClick = (id, action) => byId(id).addEventListener("click", action);
