import { byId, element } from "../dom.js";
import { formatRate, milliseconds, percent } from "../words.js";
import { sparkline } from "./charts.js";

/** Figures: name, column of GET /load/recent, and how a value is written. */
const HISTORIES = [
  ["KV cache", "kv_usage", percent],
  ["Tokens/s", "generated_tokens_per_s", formatRate],
  ["Accepted drafts/s", "accepted_tokens_per_s", formatRate],
  ["Step", "step_ms", milliseconds],
  ["First token", "ttft_p50_ms", milliseconds],
];

const PHASES = {
  stuck: "the engine makes no progress",
  restarting: "the engine is restarting",
  draining: "shutting down",
  dead: "the engine has stopped",
  unreachable: "cannot be reached",
};

/** Panel of the server's state: health, requests, and two minutes of KV cache, tokens per second and times. */
export class ServerLoad {
  phase = "loading"; // of the last reading; "unreachable" without an answer
  #api;
  #health = byId("health");
  #values = {};
  #lines = {};

  constructor(api) {
    this.#api = api;
    for (const name of ["Running", "Waiting"]) this.#add(name);
    for (const [name] of HISTORIES) this.#add(name, (this.#lines[name] = sparkline()));
  }

  #add(name, ...more) {
    this.#values[name] = element("dd", "–");
    byId("load").append(element("div", element("dt", name), this.#values[name], ...more.map((line) => line.element)));
  }

  /** Reads health and load and shows them. Throws ApiError if they need a key. */
  async refresh() {
    this.#showHealth(await this.#readHealth());
    if (this.phase === "unreachable") return this.#clear();
    const [now, recent] = await Promise.all(["load", "load/recent?interval=2"].map((path) => this.#api.read(path)));
    this.#values.Running.textContent = now.running;
    this.#values.Waiting.textContent = now.waiting;
    for (const [name, column, format] of HISTORIES) {
      const newest = recent[column].at(-1);
      this.#values[name].textContent = newest === null ? "–" : format(newest);
      this.#lines[name].draw(recent[column]);
    }
    return undefined;
  }

  async #readHealth() {
    try {
      return await this.#api.read("health");
    } catch (error) {
      return error.status === 0 ? { phase: "unreachable" } : { phase: "dead", ...error.body };
    }
  }

  /** Shows the phase as a dot; unless it is "ready" also in words, with the progress of a load. */
  #showHealth({ phase, stage, loaded_bytes: loaded, total_bytes: total }) {
    this.phase = phase;
    const words = PHASES[phase] ?? phase;
    const progress = phase === "loading" && total ? ` ${stage}, ${percent(loaded / total)}` : "";
    this.#health.dataset.phase = phase;
    this.#health.ariaLabel = this.#health.title = `Server: ${words}`;
    byId("progress").textContent = phase === "ready" ? "" : words + progress;
  }

  #clear() {
    for (const value of Object.values(this.#values)) value.textContent = "–";
    for (const line of Object.values(this.#lines)) line.draw([]);
  }
}
