import { button, element, on } from "../dom.js";

const MAX_NAME = 80;
const KINDS = { chat: "Chat", completion: "Text" };

/** Returns a list item with the buttons of one entry. `actions` are {open(), rename(title), remove()}. */
export function historyItem(entry, isOpen, { open, rename, remove }) {
  const name = (entry.title || entry.name).slice(0, MAX_NAME);
  const when = new Date(entry.updated).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const opener = button("", open, { className: "quiet entry", ariaCurrent: String(isOpen) });
  opener.append(element("span", name), element("small", `${KINDS[entry.kind]} · ${when}`));
  const renamer = button("Rename", () => item.replaceChildren(...nameField(name, rename, () => item.replaceChildren(...parts))));
  const parts = [opener, renamer, deleter(remove)];
  const item = element("li", ...parts);
  return item;
}

function deleter(remove) {
  const made = button("Delete", () => (made.textContent === "Sure?" ? remove() : say("Sure?", true)));
  const say = (text, isAsking) => {
    made.textContent = text;
    made.classList.toggle("needed", isAsking);
  };
  on(made, "blur", () => say("Delete", false));
  return made;
}

function nameField(name, rename, cancel) {
  const field = element("input", { type: "text", value: name, ariaLabel: "Name", maxLength: MAX_NAME });
  on(field, "keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // Escape would close the list
    event.stopPropagation();
    if (event.key === "Escape" || !field.value.trim()) cancel();
    else rename(field.value.trim());
  });
  setTimeout(() => field.focus()); // when it is on the page
  return [field];
}
