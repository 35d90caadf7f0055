import * as api from "../api.js";
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

// The panel of the server's state: health, requests, and two minutes of KV cache, tokens per second and times.
export let phase = "loading"; // of the last reading; "unreachable" without an answer
const dot = byId("health");
const values = {};
const lines = {};

function add(name, ...more) {
  values[name] = element("dd", "–");
  byId("load").append(element("div", element("dt", name), values[name], ...more.map((line) => line.element)));
}

/** Reads health and load and shows them. Throws ApiError if they need a key. */
export async function refresh() {
  showHealth(await readHealth());
  if (phase === "unreachable") {
    for (const value of Object.values(values)) value.textContent = "–";
    for (const line of Object.values(lines)) line.draw([]);
    return;
  }
  const [now, recent] = await Promise.all(["load", "load/recent?interval=2"].map((path) => api.read(path)));
  values.Running.textContent = now.running;
  values.Waiting.textContent = now.waiting;
  for (const [name, column, format] of HISTORIES) {
    const newest = recent[column].at(-1);
    values[name].textContent = newest === null ? "–" : format(newest);
    lines[name].draw(recent[column]);
  }
}

async function readHealth() {
  try {
    return await api.read("health");
  } catch (error) {
    return error.status === 0 ? { phase: "unreachable" } : { phase: "dead", ...error.body };
  }
}

/** Shows the phase as a dot; unless it is "ready" also in words, with the progress of a load. */
function showHealth({ stage, loaded_bytes: loaded, total_bytes: total, ...health }) {
  phase = health.phase;
  const words = PHASES[phase] ?? phase;
  const progress = phase === "loading" && total ? ` ${stage}, ${percent(loaded / total)}` : "";
  dot.dataset.phase = phase;
  dot.ariaLabel = dot.title = `Server: ${words}`;
  byId("progress").textContent = phase === "ready" ? "" : words + progress;
}

for (const name of ["Running", "Waiting"]) add(name);
for (const [name] of HISTORIES) add(name, (lines[name] = sparkline()));
