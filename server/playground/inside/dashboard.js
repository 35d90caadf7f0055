import * as api from "../api.js";
import { byId, drawn, element } from "../dom.js";
import { formatRate, milliseconds, percent } from "../words.js";

const WIDTH = 120;
const HEIGHT = 22;

/** Charts: title, how a value is written, and lines {name: column of GET /load/recent}. */
const CHARTS = [
  ["Tokens per second", formatRate, { answers: "generated_tokens_per_s", prompts: "prompt_tokens_per_s", drafts: "accepted_tokens_per_s" }],
  ["Requests", Math.round, { running: "running", waiting: "waiting" }],
  ["KV cache in use", percent, { "of all blocks": "kv_usage" }],
  ["Time to first token", milliseconds, { median: "ttft_p50_ms", "99 of 100 below": "ttft_p99_ms" }],
  ["Time of a step", milliseconds, { mean: "step_ms" }],
];

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

/** Makes a chart of several lines over time: {element, draw(columns)}, a column per name; null is a gap. */
function lineChart(title, format, names) {
  const lines = names.map(() => drawn("path", {}));
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...lines);
  const values = names.map(() => element("b", "–"));
  const highest = element("span");
  const keys = names.map((name, i) => element("li", values[i], ` ${name}`));
  const axis = element("p", element("span", "5 min ago"), highest, element("span", "now"));
  return {
    element: element("section.chart", element("h3", title), element("ul", keys), svg, axis),
    draw: (columns) => {
      const top = Math.max(...columns.flat(), 0);
      highest.textContent = top ? `highest ${format(top)}` : "";
      columns.forEach((column, i) => {
        lines[i].setAttribute("d", pathOf(column, top || 1));
        const newest = column.findLast((value) => value !== null);
        values[i].textContent = newest === undefined ? "–" : format(newest);
      });
    },
  };
}

/** Returns a line that is broken at gaps; a value between two gaps is a dot. */
function pathOf(values, highest) {
  const part = (value, i) => {
    if (value === null) return "";
    const point = `${(WIDTH * i) / (values.length - 1)},${HEIGHT - 1 - ((HEIGHT - 2) * value) / highest}`;
    return Number.isFinite(values[i - 1]) ? `L${point}` : `M${point}h0`;
  };
  return values.map(part).join("");
}

box.append(...charts.map(([chart]) => chart.element));
