import * as api from "../api.js";
import { byId } from "../dom.js";
import { percent } from "../words.js";

const PHASES = {
  stuck: "the engine makes no progress",
  restarting: "the engine is restarting",
  draining: "shutting down",
  dead: "the engine has stopped",
  unreachable: "cannot be reached",
};

// A dot beside the model's name, and words while the server is not ready.
export let phase = "loading"; // of the last reading; "unreachable" without an answer
const dot = byId("health");

export async function refresh() {
  const { stage, loaded_bytes: loaded, total_bytes: total, ...health } = await api.read("health").catch(phaseOf);
  phase = health.phase;
  const words = PHASES[phase] ?? phase;
  const progress = phase === "loading" && total ? ` ${stage}, ${percent(loaded / total)}` : "";
  dot.dataset.phase = phase;
  dot.ariaLabel = dot.title = `Server: ${words}`;
  byId("progress").textContent = phase === "ready" ? "" : words + progress;
}

const phaseOf = ({ status, body }) => (status === 0 ? { phase: "unreachable" } : { phase: "dead", ...body });
