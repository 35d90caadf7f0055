import { byId, element } from "../dom.js";
import { formatRate, percent } from "../words.js";

const PHASES = {
  ready: "ready",
  loading: "loading",
  stuck: "the engine makes no progress",
  restarting: "the engine is restarting",
  draining: "shutting down",
  dead: "the engine has stopped",
  unreachable: "cannot be reached",
};

/** Panel of the server's state: health, requests, KV cache and tokens per second. */
export class ServerLoad {
  phase = "loading"; // of the last reading; "unreachable" without an answer
  #api;
  #health = byId("health");
  #values = {};
  #last = null; // {positions, ms} of the last reading

  constructor(api) {
    this.#api = api;
    for (const name of ["Running", "Waiting", "KV cache", "Tokens/s"]) {
      this.#values[name] = element("dd", {}, "–");
      byId("load").append(element("div", {}, element("dt", {}, name), this.#values[name]));
    }
    this.#values["KV cache"].className = "gauge";
  }

  /** Reads health and metrics and shows them. Throws ApiError if the metrics need a key. */
  async refresh() {
    this.#showHealth(await this.#readHealth());
    if (this.phase === "unreachable") return this.#clear();
    const samples = sampleValues(await (await this.#api.get("metrics")).text());
    const used = samples.get("smoe_kv_cache_usage_ratio") ?? 0;
    this.#showValue("Running", samples.get("smoe_requests_running") ?? 0);
    this.#showValue("Waiting", samples.get("smoe_requests_waiting") ?? 0);
    this.#showValue("KV cache", percent(used));
    this.#values["KV cache"].style.setProperty("--share", used);
    return this.#showRate(samples.get("smoe_step_tokens_sum") ?? 0);
  }

  async #readHealth() {
    try {
      return await (await this.#api.get("health")).json();
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
    this.#values["KV cache"].style.setProperty("--share", 0);
    this.#last = null;
  }

  #showValue(name, value) {
    this.#values[name].textContent = value;
  }

  /** Shows the tokens computed per second since the last reading, including prompts. */
  #showRate(positions) {
    const ms = performance.now();
    if (this.#last && positions >= this.#last.positions) {
      this.#showValue("Tokens/s", formatRate((1000 * (positions - this.#last.positions)) / (ms - this.#last.ms)));
    }
    this.#last = { positions, ms };
  }
}

/** Maps names to values of Prometheus's text format. A name with several samples maps to the last one. */
function sampleValues(text) {
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return new Map(lines.map((line) => [line.split(/[{ ]/, 1)[0], Number(line.slice(line.lastIndexOf(" ")))]));
}
