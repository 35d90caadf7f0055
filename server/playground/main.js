import * as api from "./api.js";
import "./controls/theme.js";
import "./text/attachment.js";
import { byId, on } from "./dom.js";
import * as dashboard from "./inside/dashboard.js";
import * as experts from "./inside/experts.js";
import * as health from "./inside/health.js";
import * as playground from "./playground.js";

const POLL_MS = 2000;
const [panel, field, fault] = ["key-panel", "key", "key-fault"].map(byId);
let timer = null;
let isRefreshing = false;

/** Refreshes the parts while the page is visible, whichever of them fails. */
async function refresh() {
  clearTimeout(timer);
  if (isRefreshing || document.hidden) return;
  isRefreshing = true;
  for (const part of [health.refresh, refreshModel, dashboard.refresh]) await part().catch(onFailure);
  isRefreshing = false;
  timer = setTimeout(refresh, POLL_MS);
}

function onFailure(error) {
  if (error.status === 401) requestKey();
  else if (error.status === undefined) reportError(error); // a fault of this page, not of the server
}

async function refreshModel() {
  if (health.phase === "unreachable") return;
  if (!playground.isReady) await playground.loadModel();
  else if (playground.hasExperts) await experts.refresh();
  if (health.phase === "ready") playground.sendWaiting();
}

function requestKey() {
  byId("key-button").classList.add("needed");
  if (!api.key() && !panel.matches(":popover-open")) panel.showPopover();
}

on("mode", "change", ({ target }) => {
  if (target.value === "server") document.body.dataset.tab = "server";
  dashboard.place();
  refresh();
});
on(panel, "submit", async (event) => {
  event.preventDefault();
  api.setKey(field.value.trim());
  const error = await api.read("v1/models").then(() => null, (refusal) => refusal);
  fault.hidden = error === null;
  if (error) {
    fault.textContent = error.status === 401 ? "The server does not accept this key." : error.message;
    field.select();
    return;
  }
  byId("key-button").classList.remove("needed");
  panel.hidePopover();
  refresh();
});
on(document, "visibilitychange", refresh);
refresh();
