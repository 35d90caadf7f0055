import { Api } from "./api.js";
import { byId } from "./dom.js";
import { ExpertsSlider } from "./experts_slider.js";
import { ExpertMap } from "./experts.js";
import { ServerLoad } from "./load.js";
import { Playground } from "./playground.js";
import { pollWhileVisible } from "./poll.js";
import { Sampling } from "./sampling.js";
import { themeButton } from "./theme.js";
import { viewButtons } from "./views.js";

const POLL_MS = 2000;
const STORED_KEY = "smoe-api-key";

themeButton(byId("theme"));
viewButtons();
const getKey = () => sessionStorage.getItem(STORED_KEY) ?? "";
const api = new Api(getKey);
const expertsSlider = new ExpertsSlider(byId("experts-slider"));
const experts = new ExpertMap(api);
const load = new ServerLoad(api);
const playground = new Playground({ api, getKey, expertsSlider, sampling: new Sampling(byId("controls"), byId("more-controls")) });

/** Reads the model once it is loaded, then refreshes the panels. */
const refreshNow = pollWhileVisible(POLL_MS, async () => {
  try {
    if (!playground.isReady) await playground.loadModel(() => experts.refresh());
    else if (playground.hasExperts) await experts.refresh();
    await load.refresh();
  } catch (error) {
    if (error.status === 401) requestKey();
    else if (error.status === undefined) throw error; // a fault of this page, not of the server
  }
});

function requestKey() {
  byId("key-button").classList.add("needed");
  if (!getKey() && !byId("key-panel").matches(":popover-open")) byId("key-panel").showPopover();
}

byId("key-panel").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORED_KEY, byId("key").value.trim());
  byId("key-button").classList.remove("needed");
  byId("key-panel").hidePopover();
  refreshNow();
});
