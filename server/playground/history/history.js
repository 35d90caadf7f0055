import { button, byId, deleteButton, element, on, onEnter, save as saveFile } from "../dom.js";
import { Conversation, areTexts, checkVersions } from "../text/conversation.js";
import { display } from "../text/display.js";
import * as store from "./store.js";

const OPEN = "smoe-open"; // in the tab's storage: what a reload opens again
const FORMAT = "smoe-history";
const SAVE_MS = 500;
const MAX_NAME = 80;
const KINDS = { chat: "Chat", completion: "Text" };
const SEARCHED = ["title", "name", "system", "prompt", "text"];

let panels;
let playground;
const popover = byId("history-panel");
const opened = { chat: {}, completion: {} }; // {id, title}
const timers = {};
let isRestored = false;

/** Opens what the tab had open before a reload. */
export async function restore(texts, page) {
  [panels, playground] = [texts, page];
  const { ids = [], ...state } = JSON.parse(sessionStorage.getItem(OPEN) ?? "{}");
  await guard(async () => {
    for (const id of ids) {
      const entry = id && (await store.get(id));
      if (entry) put(entry.kind, entry);
    }
  });
  state.isWriting &&= performance.getEntriesByType("navigation")[0].type === "reload"; // not a tab that was opened again
  playground.setState(state);
  isRestored = true;
}

export function note(state) {
  if (!isRestored) return; // the storage has what a reload left
  const ids = Object.values(opened).map(({ id }) => id);
  try {
    sessionStorage.setItem(OPEN, JSON.stringify({ mode: playground.mode(), ids, ...state }));
  } catch {
    if (state) note(); // no room for what was typed
  }
}

display.changed = (kind) => {
  playground.showButtons();
  if (kind in panels) timers[kind] ??= setTimeout(() => save(kind), SAVE_MS);
};

const saveAll = () => Promise.all(Object.keys(panels).map(save));

/** Stores what has changed; a chat whose last message was deleted is removed. */
async function save(kind) {
  if (!timers[kind]) return;
  clearTimeout(timers[kind]);
  timers[kind] = null;
  const entry = panels[kind].entry();
  const open = opened[kind];
  if (!entry && open.id) await guard(() => store.remove(open.id));
  if (!entry) return;
  open.id ??= crypto.getRandomValues(new Uint32Array(3)).join("-");
  note();
  await guard(() => store.put({ kind, ...open, updated: Date.now(), ...entry }));
}

function put(kind, entry = null) {
  panels[kind].open(entry);
  playground.showButtons();
  opened[kind] = entry ? { id: entry.id, title: entry.title } : {};
  note();
}

/** Shows an entry that is not in the list. Throws TypeError. */
export async function putNew(kind, { versions, at, system, tree }) {
  await save(kind);
  put(kind, { versions, at, system, tree });
}

async function show(kind, id) {
  if (isBusy()) return;
  await save(kind);
  await guard(async () => put(kind, id && (await store.get(id))));
  popover.hidePopover();
  playground.show(kind);
}

/** Returns whether a text of an entry, at any depth, contains `wanted`. */
const has = (part, wanted) => Object.entries(part).some(([name, value]) =>
  typeof value === "object" ? has(value, wanted) : SEARCHED.includes(name) && value?.toLowerCase().includes(wanted));

function draw() {
  say("");
  return guard(async () => {
    const wanted = byId("history-search").value.toLowerCase();
    const entries = (await store.list()).filter((entry) => has(entry, wanted));
    byId("history-empty").textContent = entries.length ? "" : wanted ? "Nothing found." : "Texts and chats appear here.";
    byId("history-list").replaceChildren(...entries.map(itemOf));
  });
}

function itemOf(entry) {
  const { kind, id, title, name, updated } = entry;
  const when = new Date(updated).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const opener = button("", () => show(kind, id), { className: "quiet entry", ariaCurrent: String(opened[kind].id === id) });
  const field = element("input", { type: "text", value: (title || name).slice(0, MAX_NAME), ariaLabel: "Name", maxLength: MAX_NAME });
  const renamer = button("Rename", () => {
    item.replaceChildren(field);
    field.focus();
  });
  const parts = [opener, renamer, deleteButton(() => remove(entry))];
  const item = element("li", parts);
  const cancel = () => item.replaceChildren(...parts);
  opener.append(element("span", field.value), element("small", `${KINDS[kind]} · ${when}`));
  onEnter(field, () => (field.value.trim() ? rename(entry, field.value.trim()) : cancel()), cancel);
  return item;
}

async function rename({ kind, id }, title) {
  if (opened[kind].id === id) opened[kind].title = title;
  await guard(async () => store.put({ ...(await store.get(id)), title }));
  await draw();
}

async function remove({ kind, id }) {
  if (opened[kind].id === id) {
    if (isBusy()) return;
    put(kind);
  }
  await guard(() => store.remove(id));
  await draw();
}

/** Adds the entries of a file; one that is older than what is here changes nothing. */
async function importFile(input) {
  await guard(async () => {
    const own = new Map((await store.list()).map(({ id, updated }) => [id, updated]));
    const newer = (await readExport(input.files[0])).filter(({ id, updated }) => !(own.get(id) >= updated));
    for (const entry of newer) await store.put(entry);
    await draw();
    say(`${newer.length} imported.`);
  });
  input.value = "";
}

function exportEntries(entries) {
  const json = JSON.stringify({ format: FORMAT, version: 1, entries }, null, 1);
  saveFile(new Blob([json]), `smoe-history-${new Date().toISOString().slice(0, 10)}.json`);
}

/** Reads the entries of an exported file. Throws TypeError with a line for the user. */
async function readExport(file) {
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
    else checkVersions(versions);
    return ["chat", "completion"].includes(kind) && Number.isFinite(updated) && areTexts([id, name, title, system]);
  } catch {
    return false;
  }
}

async function guard(action) {
  try {
    await action();
  } catch (error) {
    say(error instanceof TypeError ? error.message : `This browser keeps no texts: ${error.message || error.name}`);
  }
}

function isBusy() {
  if (playground.isRunning()) say("A text is being written. Stop it first.");
  return playground.isRunning();
}

function say(text) {
  byId("history-fault").textContent = text;
  byId("history-fault").hidden = text === "";
}

on(popover, "toggle", async ({ newState }) => {
  if (newState !== "open") return;
  await saveAll();
  await draw();
});
on("history-new", "click", () => show(playground.mode() === "completion" ? "completion" : "chat"));
on("history-search", "input", draw);
on("history-export", "click", () => guard(async () => exportEntries(await store.list())));
on("history-import", "click", () => byId("history-file").click());
on("history-file", "change", ({ target }) => importFile(target));
on(window, "pagehide", () => {
  saveAll();
  note(playground.state());
});
