import { byId, on } from "../dom.js";
import { exportEntries, readExport } from "./exchange.js";
import { historyItem } from "./item.js";
import { Store } from "./store.js";

const OPEN = "smoe-open"; // in the tab's storage: what a reload opens again
const SAVE_MS = 500;

/** The texts of this browser: a list to search, rename, delete, export and import. */
export class History {
  #store = new Store();
  #panels;
  #playground;
  #popover = byId("history-panel");
  #open = { completion: {}, chat: {} }; // {id, title} of the entries that are open
  #timers = {};

  constructor(panels, playground) {
    this.#panels = panels;
    this.#playground = playground;
    for (const [kind, panel] of Object.entries(panels)) panel.onChange = () => this.#changed(kind);
    on(this.#popover, "toggle", async ({ newState }) => {
      if (newState !== "open") return;
      await this.#saveAll();
      await this.#draw();
    });
    on("history-new", "click", () => this.#show(playground.mode === "completion" ? "completion" : "chat"));
    on("history-search", "input", () => this.#draw());
    on("history-export", "click", () => this.#guard(async () => exportEntries(await this.#store.list())));
    on("history-import", "click", () => byId("history-file").click());
    on("history-file", "change", ({ target }) => this.#import(target));
    on(window, "pagehide", () => this.#saveAll());
  }

  /** Opens again what the tab had open before a reload. */
  async restore() {
    const { mode, ids = [] } = JSON.parse(sessionStorage.getItem(OPEN) ?? "{}");
    await this.#guard(async () => {
      for (const id of ids) {
        const entry = id && (await this.#store.get(id));
        if (entry) this.#put(entry.kind, entry);
      }
    });
    if (mode in this.#panels) this.#playground.show(mode);
  }

  note() {
    sessionStorage.setItem(OPEN, JSON.stringify({ mode: this.#playground.mode, ids: Object.values(this.#open).map(({ id }) => id) }));
  }

  #changed(kind) {
    this.#playground.showButtons();
    this.#timers[kind] ??= setTimeout(() => this.#save(kind), SAVE_MS);
  }

  #saveAll() {
    return Promise.all(Object.keys(this.#panels).map((kind) => this.#save(kind)));
  }

  /** Stores what has changed; a chat whose last message was deleted is removed. */
  async #save(kind) {
    if (!this.#timers[kind]) return;
    clearTimeout(this.#timers[kind]);
    this.#timers[kind] = null;
    const { entry } = this.#panels[kind];
    const open = this.#open[kind];
    if (!entry && open.id) await this.#guard(() => this.#store.delete(open.id));
    if (!entry) return;
    open.id ??= crypto.getRandomValues(new Uint32Array(3)).join("-");
    this.note();
    await this.#guard(() => this.#store.put({ kind, ...open, updated: Date.now(), ...entry }));
  }

  #put(kind, entry = null) {
    byId("summary").replaceChildren();
    this.#panels[kind].open(entry);
    this.#open[kind] = entry ? { id: entry.id, title: entry.title } : {};
    this.note();
  }

  /** Shows an entry that is not in the list. Throws TypeError if it is none. */
  async putNew(kind, { versions, at, system, tree }) {
    await this.#save(kind);
    this.#put(kind, { versions, at, system, tree });
  }

  /** Opens an entry, or a new text; the one that was open stays in the list. */
  async #show(kind, id) {
    if (this.#isBusy()) return;
    await this.#save(kind);
    await this.#guard(async () => this.#put(kind, id && (await this.#store.get(id))));
    this.#popover.hidePopover();
    this.#playground.show(kind);
  }

  #draw() {
    this.#say("");
    return this.#guard(async () => {
      const wanted = byId("history-search").value.toLowerCase();
      const entries = (await this.#store.list()).filter((entry) => JSON.stringify(entry).toLowerCase().includes(wanted));
      const items = entries.map((entry) => historyItem(entry, this.#open[entry.kind].id === entry.id, {
        open: () => this.#show(entry.kind, entry.id), rename: (title) => this.#rename(entry, title), remove: () => this.#remove(entry),
      }));
      byId("history-empty").textContent = items.length ? "" : wanted ? "Nothing found." : "Texts and chats appear here.";
      byId("history-list").replaceChildren(...items);
    });
  }

  async #rename({ kind, id }, title) {
    if (this.#open[kind].id === id) this.#open[kind].title = title;
    await this.#guard(async () => this.#store.put({ ...(await this.#store.get(id)), title }));
    await this.#draw();
  }

  async #remove({ kind, id }) {
    if (this.#open[kind].id === id) {
      if (this.#isBusy()) return;
      this.#put(kind);
    }
    await this.#guard(() => this.#store.delete(id));
    await this.#draw();
  }

  /** Adds the entries of a file; one that is older than what is here changes nothing. */
  async #import(input) {
    await this.#guard(async () => {
      const own = new Map((await this.#store.list()).map(({ id, updated }) => [id, updated]));
      const newer = (await readExport(input.files[0])).filter(({ id, updated }) => !(own.get(id) >= updated));
      for (const entry of newer) await this.#store.put(entry);
      await this.#draw();
      this.#say(`${newer.length} imported.`);
    });
    input.value = "";
  }

  /** Runs an action on the store; says why it fails. */
  async #guard(action) {
    try {
      await action();
    } catch (error) {
      this.#say(error instanceof TypeError ? error.message : `This browser keeps no texts: ${error.message || error.name}`);
    }
  }

  #isBusy() {
    if (this.#playground.isRunning) this.#say("A text is being written. Stop it first.");
    return this.#playground.isRunning;
  }

  #say(text) {
    byId("history-fault").textContent = text;
    byId("history-fault").hidden = text === "";
  }
}
