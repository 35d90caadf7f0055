import { save } from "../dom.js";
import { Conversation, areTexts } from "../text/conversation.js";

const FORMAT = "smoe-history";

export function exportEntries(entries) {
  const json = JSON.stringify({ format: FORMAT, version: 1, entries }, null, 1);
  save(new Blob([json]), `smoe-history-${new Date().toISOString().slice(0, 10)}.json`);
}

/** Reads the entries of an exported file. Throws TypeError, one line for the user, if it is something else. */
export async function readExport(file) {
  const content = await file.text().then(JSON.parse).catch(() => {
    throw new TypeError("The file is not JSON.");
  });
  if (content?.format !== FORMAT || !Array.isArray(content.entries)) throw new TypeError("The file is not an export of this page.");
  const broken = content.entries.findIndex((entry) => !isEntry(entry));
  if (broken >= 0) throw new TypeError(`Entry ${broken + 1} of the file is damaged; nothing was imported.`);
  return content.entries;
}

function isEntry(entry) {
  try {
    const { id, kind, name, title = "", system = "", updated, tree, versions } = entry;
    if (kind === "chat") Conversation.fromTree(tree);
    const texts = [id, name, title, system, ...(kind === "chat" ? [] : versions.flatMap(({ prompt, text, note = "" }) => [prompt, text, note]))];
    return ["chat", "completion"].includes(kind) && Number.isFinite(updated) && areTexts(texts);
  } catch {
    return false;
  }
}
