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
const [running, waiting] = ["Running", "Waiting"].map((name) => add(name));
const histories = HISTORIES.map(([name, column, format]) => {
  const line = sparkline();
  return { value: add(name, line.element), line, column, format };
});

function add(name, ...more) {
  const value = element("dd", "–");
  byId("load").append(element("div", element("dt", name), value, ...more));
  return value;
}

/** Reads health and load and shows them. Throws ApiError if they need a key. */
export async function refresh() {
  showHealth(await readHealth());
  const isReached = phase !== "unreachable";
  const [now, recent] = isReached ? await Promise.all(["load", "load/recent?interval=2"].map(api.read)) : [{}, {}];
  running.textContent = now.running ?? "–";
  waiting.textContent = now.waiting ?? "–";
  for (const { value, line, column, format } of histories) {
    const points = recent[column] ?? [];
    const newest = points.at(-1) ?? null;
    value.textContent = newest === null ? "–" : format(newest);
    line.draw(points);
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
