const TOAST_MS = 1600;
let toastTimer;

/**
 * Creates an element from a tag with classes, "p.hint", properties, if any ("--share" is a variable of its style), and children,
 * also in arrays. Strings become text nodes and are never parsed as HTML.
 */
export function element(selector, ...children) {
  const [tag, ...classes] = selector.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  const properties = children[0]?.constructor === Object ? children.shift() : {};
  for (const [name, value] of Object.entries(properties)) {
    if (/HTML|srcdoc/.test(name)) throw new TypeError(`${name} would be parsed.`);
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  for (const child of children.flat()) node.append(child);
  return node;
}

export function drawn(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Returns a text as nodes: `make` turns each match of a pattern into one. */
export function nodesOf(text, pattern, make) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    nodes.push(text.slice(end, match.index), make(match));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}

export function save(blob, download) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000); // when the browser has read it
}

export const byId = (id) => document.getElementById(id);

export function toast(text) {
  byId("toast").textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => byId("toast").replaceChildren(), TOAST_MS);
}

/** Calls `action` at events of a node, or of the element with this id. */
export function on(target, types, action) {
  const node = typeof target === "string" ? byId(target) : target;
  for (const type of types.split(" ")) node.addEventListener(type, action);
}

/** Calls `submit` at an Enter for which `isSubmit` holds, and `cancel` at Escape. */
export function onEnter(field, submit, cancel, isSubmit = () => true) {
  on(field, "keydown", (event) => {
    const isEnter = event.key === "Enter" && !event.isComposing && isSubmit(event);
    if (!isEnter && event.key !== "Escape") return;
    event.preventDefault(); // Escape would close the panel around it
    event.stopPropagation();
    (isEnter ? submit : cancel)();
  });
}

/** Creates a button that calls `onClick`. `name` is what it is called where `text` is only a sign. */
export function button(text, onClick, { name, ...properties } = {}) {
  const node = element("button", { type: "button", className: "quiet", ...(name && { ariaLabel: name, title: name }), ...properties }, text);
  on(node, "click", onClick);
  return node;
}

export const radios = (name, labels, chosen = Object.keys(labels)[0]) => Object.entries(labels).map(([value, text]) =>
  element("label", { id: `${name}-${value}` }, element("input", { type: "radio", name, value, checked: value === chosen }), element("span", text)));

export const labelled = (input, label) => element("label.field", element("span", label), input);

/** Copies text, also on pages without TLS, where browsers only have the old command. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function copyButton(read) {
  const made = button("Copy", async () => {
    await copy(read());
    made.textContent = "Copied";
    setTimeout(() => (made.textContent = "Copy"), TOAST_MS);
  });
  return made;
}

export function deleteButton(remove) {
  const say = (text, isAsking) => {
    made.textContent = text;
    made.classList.toggle("needed", isAsking);
  };
  const made = button("Delete", () => (made.textContent === "Sure?" ? remove() : say("Sure?", true)));
  on(made, "blur", () => say("Delete", false));
  return made;
}

/** Fills a box with "‹ 2/3 ›", whose arrows call `onStep` with -1 or 1. */
export function branchArrows(box, place, count, noun, onStep) {
  box.hidden = count === 0 || (count === 1 && place === 0);
  const arrow = (text, by, name) => button(text, () => onStep(by), { name, disabled: place + by < 0 || place + by >= count });
  const words = place < count ? `${place + 1}/${count}` : `new/${count}`;
  box.replaceChildren(...(box.hidden ? [] : [arrow("‹", -1, `Previous ${noun}`), element("span", words), arrow("›", 1, `Next ${noun}`)]));
}

export const closeButton = (onClick) => button("×", onClick, { className: "quiet close", name: "Close" });
