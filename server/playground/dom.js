/**
 * Creates an element. `selector` is a tag with classes, "p.hint"; behind it come properties, which may be left out, and
 * children. A name such as "--share" is a variable of its style. Strings become text nodes and are never parsed as HTML.
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
  node.append(...children);
  return node;
}

export function drawn(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Lets the browser save a blob as a file. */
export function save(blob, download) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000); // when the browser has read it
}

export const byId = (id) => document.getElementById(id);

/** Calls `action` at events of a node, or of the page's element with this id. `types` are their names. */
export function on(target, types, action) {
  const node = typeof target === "string" ? byId(target) : target;
  for (const type of types.split(" ")) node.addEventListener(type, action);
}

/** Calls `submit` at an Enter for which `isSubmit` holds, and `cancel` at Escape, in a field whose keys nobody else gets. */
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

/** Returns radio buttons that look like one switch. `labels` are their texts by value; the first one is chosen. */
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
    setTimeout(() => (made.textContent = "Copy"), 1600);
  });
  return made;
}

/** Creates a button that deletes at the second click. */
export function deleteButton(remove) {
  const say = (text, isAsking) => {
    made.textContent = text;
    made.classList.toggle("needed", isAsking);
  };
  const made = button("Delete", () => (made.textContent === "Sure?" ? remove() : say("Sure?", true)));
  on(made, "blur", () => say("Delete", false));
  return made;
}

/** Fills a box with "‹ 2/3 ›", whose arrows call `onStep` with -1 or 1. It is hidden if there is nothing to step to. */
export function branchArrows(box, place, count, noun, onStep) {
  box.hidden = count === 0 || (count === 1 && place === 0);
  const arrow = (text, by, name) => button(text, () => onStep(by), { name, disabled: place + by < 0 || place + by >= count });
  const words = place < count ? `${place + 1}/${count}` : `new/${count}`;
  box.replaceChildren(...(box.hidden ? [] : [arrow("‹", -1, `Previous ${noun}`), element("span", words), arrow("›", 1, `Next ${noun}`)]));
}

export const closeButton = (onClick) => button("×", onClick, { className: "quiet close", name: "Close" });
