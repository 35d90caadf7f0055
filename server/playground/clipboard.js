import { button } from "./dom.js";

/** Copies text, also on pages without TLS, where browsers only have the old command. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
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
