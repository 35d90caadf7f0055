import { Api } from "./api.js";
import { byId } from "./dom.js";
import { Dial } from "./dial.js";
import { ExpertMap } from "./experts.js";
import { ServerLoad } from "./load.js";
import { Playground } from "./playground.js";
import { whileVisible } from "./poll.js";
import { Sampling } from "./sampling.js";
import { themeButton } from "./theme.js";
import { viewButtons } from "./views.js";

const POLL_MS = 2000;
const STORED_KEY = "smoe-api-key";

themeButton(byId("theme"));
viewButtons();
const keyOf = () => sessionStorage.getItem(STORED_KEY) ?? "";
const api = new Api(keyOf);
const dial = new Dial(byId("dial"));
const experts = new ExpertMap(api);
const load = new ServerLoad(api);
const playground = new Playground({ api, keyOf, dial, sampling: new Sampling(byId("controls"), byId("more-controls")) });

/** Reads what is served here; then the panels follow the server. */
const refreshNow = whileVisible(POLL_MS, async () => {
  try {
    if (!playground.isReady) await playground.meet(() => experts.refresh());
    else if (playground.hasExperts) await experts.refresh();
    await load.refresh();
  } catch (error) {
    if (error.status === 401) askForKey();
    else if (error.status === undefined) throw error; // not the server's: a fault in this page
  }
});

function askForKey() {
  byId("key-button").classList.add("wanted");
  if (!keyOf() && !byId("key-panel").matches(":popover-open")) byId("key-panel").showPopover();
}

byId("key-panel").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORED_KEY, byId("key").value.trim());
  byId("key-button").classList.remove("wanted");
  byId("key-panel").hidePopover();
  refreshNow();
});
