import { byId, element, on, toast } from "../dom.js";

const MAX_BYTES = 1_000_000;

// Text files, chosen or dropped, become part of the message or the prompt.
const chooser = element("input", { type: "file", multiple: true });

async function attach(files) {
  const field = ["message", "prompt", "compare-prompt"].map(byId).find((one) => one.checkVisibility());
  for (const file of files) {
    const text = file.size > MAX_BYTES ? "\0" : await file.text().catch(() => "\0"); // a folder has none
    const language = file.name.split(".").at(-1);
    if (/[\0\ufffd]/.test(text)) toast(`${file.name} is no text in UTF-8, or larger than 1 MB`);
    else field.value += field.id === "message" ? `${field.value && "\n\n"}${file.name}:\n\`\`\`${language}\n${text.trimEnd()}\n\`\`\`\n` : text;
  }
  field.dispatchEvent(new Event("input", { bubbles: true }));
  field.focus();
}

on("attach", "click", () => chooser.click());
on(chooser, "change", async () => {
  await attach(chooser.files);
  chooser.value = ""; // the same file may be chosen again
});
on("write", "dragover drop", (event) => {
  const { types, files } = event.dataTransfer;
  if (!types.includes("Files")) return;
  event.preventDefault();
  if (event.type === "drop") attach(files);
});
