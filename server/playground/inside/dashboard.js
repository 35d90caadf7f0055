import * as api from "../api.js";
import { byId } from "../dom.js";
import { formatRate, milliseconds, percent } from "../words.js";
import { lineChart } from "./charts.js";

/** Charts: title, how a value is written, and lines {name: column of GET /load/recent}. */
const CHARTS = [
  ["Tokens per second", formatRate, { answers: "generated_tokens_per_s", prompts: "prompt_tokens_per_s", drafts: "accepted_tokens_per_s" }],
  ["Requests", Math.round, { running: "running", waiting: "waiting" }],
  ["KV cache in use", percent, { "of all blocks": "kv_usage" }],
  ["Time to first token", milliseconds, { median: "ttft_p50_ms", "99 of 100 below": "ttft_p99_ms" }],
  ["Time of a step", milliseconds, { mean: "step_ms" }],
];

// The server's figures, beside a text or large in a tab of their own.
const box = byId("charts");
const charts = CHARTS.map(([title, format, lines]) => [lineChart(title, format, Object.keys(lines)), Object.values(lines)]);

const isOpen = () => document.body.dataset.tab === "server";

export const place = () => byId(isOpen() ? "dashboard" : "load-section").append(box);

/** Reads the figures and draws them. Throws ApiError, and says first why there are none. */
export async function refresh() {
  place();
  try {
    const paths = isOpen() ? ["load/recent?interval=5", "v1/models", "version"] : ["load/recent?interval=2"];
    const [recent, models, version] = await Promise.all(paths.map(api.read));
    for (const [chart, columns] of charts) chart.draw(columns.map((column) => recent[column]));
    if (models) say(describe(models.data[0]), `smoe ${version.version}`);
  } catch (error) {
    for (const [chart, columns] of charts) chart.draw(columns.map(() => []));
    say(error.status === 401 ? "The figures need the API key: press Key above." : `No figures: ${error.message}`);
    throw error;
  }
}

function say(...parts) {
  byId("dashboard-status").textContent = parts.join(" · ");
}

function describe({ id, max_model_len: length, num_layers: layers, num_experts: experts, experts_per_token: k }) {
  if (!length) return `${id}, which is loading`;
  const network = experts ? `${layers} layers, ${k} of ${experts} experts per token` : `${layers} layers`;
  return [id, network, `${length.toLocaleString("en")} tokens of context`].join(" · ");
}

box.append(...charts.map(([chart]) => chart.element));
