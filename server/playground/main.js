import * as api from "./api.js";
import { byId, on } from "./dom.js";
import * as experts from "./inside/experts.js";
import * as dashboard from "./inside/dashboard.js";
import * as load from "./inside/load.js";
import * as playground from "./playground.js";
import { pollWhileVisible } from "./inside/poll.js";
import { themeButton } from "./controls/theme.js";

const POLL_MS = 2000;
const isServerOpen = () => document.body.dataset.tab === "server";

/** Refreshes the panels. A part that fails does not keep the others from being shown. */
const refreshNow = pollWhileVisible(POLL_MS, async () => {
  for (const part of [load.refresh, refreshModel, () => isServerOpen() && dashboard.refresh()]) {
    try {
      await part();
    } catch (error) {
      if (error.status === 401) requestKey();
      else if (error.status === undefined) throw error; // a fault of this page, not of the server
    }
  }
});

async function refreshModel() {
  if (load.phase === "unreachable") return;
  if (!playground.isReady) await playground.loadModel();
  else if (playground.hasExperts) await experts.refresh();
  if (load.phase === "ready") playground.sendWaiting();
}

function requestKey() {
  byId("key-button").classList.add("needed");
  if (!api.key() && !byId("key-panel").matches(":popover-open")) byId("key-panel").showPopover();
}

themeButton(byId("theme"));
on("mode", "change", ({ target }) => {
  if (target.value !== "server") return;
  document.body.dataset.tab = "server";
  refreshNow();
});
on("key-panel", "submit", async (event) => {
  event.preventDefault();
  api.setKey(byId("key").value.trim());
  const fault = await api.read("v1/models").then(() => null, (error) => error);
  byId("key-fault").hidden = fault === null;
  if (fault) {
    byId("key-fault").textContent = fault.status === 401 ? "The server does not accept this key." : fault.message;
    byId("key").select();
    return;
  }
  byId("key-button").classList.remove("needed");
  byId("key-panel").hidePopover();
  refreshNow();
});
