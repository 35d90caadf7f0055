import { button, deleteButton, element, onEnter } from "../dom.js";

const MAX_NAME = 80;
const KINDS = { chat: "Chat", completion: "Text" };

/** Returns a list item with the buttons of one entry. `actions` are {open(), rename(title), remove()}. */
export function historyItem(entry, isOpen, { open, rename, remove }) {
  const name = (entry.title || entry.name).slice(0, MAX_NAME);
  const when = new Date(entry.updated).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const opener = button("", open, { className: "quiet entry", ariaCurrent: String(isOpen) });
  opener.append(element("span", name), element("small", `${KINDS[entry.kind]} · ${when}`));
  const renamer = button("Rename", () => item.replaceChildren(nameField(name, rename, () => item.replaceChildren(...parts))));
  const parts = [opener, renamer, deleteButton(remove)];
  const item = element("li", ...parts);
  return item;
}

function nameField(name, rename, cancel) {
  const field = element("input", { type: "text", value: name, ariaLabel: "Name", maxLength: MAX_NAME });
  onEnter(field, () => (field.value.trim() ? rename(field.value.trim()) : cancel()), cancel);
  setTimeout(() => field.focus()); // when it is on the page
  return field;
}
