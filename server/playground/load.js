import { byId, element } from "./dom.js";
import { percent, perSecond } from "./words.js";

const PHASES = {
  ready: "ready",
  loading: "loading",
  stuck: "the engine makes no progress",
  restarting: "the engine is started again",
  draining: "shutting down",
  dead: "the engine has stopped",
};

/** What the server is doing: requests, memory, pace; and whether it takes requests at all. */
export class ServerLoad {
  #api;
  #health = byId("health");
  #values = {};
  #before = null; // {positions, ms} of the last reading

  constructor(api) {
    this.#api = api;
    for (const name of ["Running", "Waiting", "KV cache", "Tokens/s"]) {
      this.#values[name] = element("dd", {}, "–");
      byId("load").append(element("div", {}, element("dt", {}, name), this.#values[name]));
    }
    this.#values["KV cache"].className = "gauge";
  }

  /** Asks the server and shows what it says. Throws ApiError where the metrics need a key. */
  async refresh() {
    this.#showHealth(await this.#phase());
    const samples = sampleValues(await (await this.#api.get("metrics")).text());
    const used = samples.get("smoe_kv_cache_usage_ratio") ?? 0;
    this.#put("Running", samples.get("smoe_requests_running") ?? 0);
    this.#put("Waiting", samples.get("smoe_requests_waiting") ?? 0);
    this.#put("KV cache", percent(used));
    this.#values["KV cache"].style.setProperty("--share", used);
    this.#pace(samples.get("smoe_step_tokens_sum") ?? 0);
  }

  async #phase() {
    try {
      return (await (await this.#api.get("health")).json()).phase ?? "ready";
    } catch (error) {
      return error.status === 503 ? "loading" : "dead";
    }
  }

  #showHealth(phase) {
    this.#health.dataset.phase = phase;
    this.#health.ariaLabel = this.#health.title = `Server: ${PHASES[phase] ?? phase}`;
  }

  #put(name, value) {
    this.#values[name].textContent = value;
  }

  /** Positions computed per second, prompts included, between two readings. */
  #pace(positions) {
    const ms = performance.now();
    if (this.#before && positions >= this.#before.positions) {
      this.#put("Tokens/s", perSecond((1000 * (positions - this.#before.positions)) / (ms - this.#before.ms)));
    }
    this.#before = { positions, ms };
  }
}

/** Name to value of the samples in Prometheus' text format; of a name with several, the last. */
function sampleValues(text) {
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return new Map(lines.map((line) => [line.split(/[{ ]/, 1)[0], Number(line.slice(line.lastIndexOf(" ")))]));
}
