import { on } from "../dom.js";

const NAME = "smoe";
const ENTRIES = "entries";

// Entries {id, ...} in this browser's database. Every function throws DOMException where the browser keeps nothing.
let database = null;

export async function list() {
  const found = await run("readonly", (entries) => entries.getAll());
  return found.sort((a, b) => b.updated - a.updated);
}

export const get = (id) => run("readonly", (entries) => entries.get(id));
export const put = (entry) => run("readwrite", (entries) => entries.put(entry));
export const remove = (id) => run("readwrite", (entries) => entries.delete(id));

async function run(mode, action) {
  database ??= await open();
  return resultOf(action(database.transaction(ENTRIES, mode).objectStore(ENTRIES)));
}

function open() {
  const request = indexedDB.open(NAME, 1);
  on(request, "upgradeneeded", () => request.result.createObjectStore(ENTRIES, { keyPath: "id" }));
  return resultOf(request);
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    on(request, "success", () => resolve(request.result));
    on(request, "error", () => reject(request.error));
  });
}
