const NAME = "smoe";
const ENTRIES = "entries";

/** Entries {id, ...} in this browser's database. Every method throws DOMException where the browser keeps nothing. */
export class Store {
  #database = null;

  async list() {
    const entries = await this.#run("readonly", (entries) => entries.getAll());
    return entries.sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.#run("readonly", (entries) => entries.get(id));
  }

  put(entry) {
    return this.#run("readwrite", (entries) => entries.put(entry));
  }

  delete(id) {
    return this.#run("readwrite", (entries) => entries.delete(id));
  }

  async #run(mode, action) {
    this.#database ??= await this.#open();
    return resultOf(action(this.#database.transaction(ENTRIES, mode).objectStore(ENTRIES)));
  }

  #open() {
    const request = indexedDB.open(NAME, 1);
    request.addEventListener("upgradeneeded", () => request.result.createObjectStore(ENTRIES, { keyPath: "id" }));
    return resultOf(request);
  }
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}
