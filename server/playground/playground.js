import { ApiError } from "./api.js";
import { ChatDesk } from "./chat.js";
import { copy } from "./clipboard.js";
import { CompletionDesk } from "./completion.js";
import { byId, element } from "./dom.js";
import { generate } from "./generation.js";
import { Ring } from "./ring.js";
import { asCurl, asPython } from "./snippets.js";
import { summaryOf } from "./summary.js";
import { TokenCard } from "./token_card.js";

const TOAST_MS = 1600;

/** The text side of the page: which desk is open, the request that runs on it, and the buttons around it. */
export class Playground {
  isReady = false; // the server has said what it serves
  hasExperts = false;
  #api;
  #keyOf;
  #dial;
  #sampling;
  #model = "";
  #look = { card: new TokenCard(byId("card"), byId("spoken")), numExperts: 0, layer: 0 };
  #ring = new Ring(byId("ring"));
  #desks;
  #desk;
  #running = null; // the AbortController of the request that runs
  #toastTimer;

  constructor({ api, keyOf, dial, sampling }) {
    this.#api = api;
    this.#keyOf = keyOf;
    this.#dial = dial;
    this.#sampling = sampling;
    const run = () => this.run();
    this.#desks = { completion: new CompletionDesk(this.#look, run), chat: new ChatDesk(this.#look, run) };
    this.#desk = this.#desks.completion;
    this.#listen();
    this.#showButtons();
  }

  /** Learns the model's name and its experts; `askExperts` is called where there are any. Throws ApiError. */
  async meet(askExperts) {
    const { data } = await (await this.#api.get("v1/models")).json();
    this.#model = data[0].id;
    byId("model").textContent = this.#model;
    this.isReady = data[0].max_model_len !== null;
    if (!this.isReady || !data[0].num_experts) return;
    await askExperts();
    this.#meetExperts(data[0]);
  }

  /** Sends what the open desk holds, and shows what comes. */
  async run() {
    if (this.#running || !this.#sampling.check()) return;
    const request = this.#request();
    if (!request) return this.#desk.focus();
    this.#running = new AbortController();
    byId("failure").hidden = true;
    const view = this.#desk.begin();
    this.#showButtons();
    try {
      const meter = await generate(this.#api, request, this.#running.signal, (...chunk) => this.#onChunk(view, ...chunk));
      this.#summarise(meter, meter.finishReason === "length" ? "length limit" : "complete");
    } catch (error) {
      this.#onEnd(error);
    } finally {
      this.#running = null;
      this.#desk.end();
      this.#showButtons();
    }
  }

  #meetExperts({ num_experts: numExperts, experts_per_token: own, num_layers: numLayers }) {
    this.hasExperts = true;
    this.#look.numExperts = numExperts;
    this.#dial.show(numExperts, own);
    byId("tint-expert").hidden = false;
    byId("layer").max = numLayers - 1;
  }

  #request() {
    const sampling = { ...this.#sampling.values, routing: this.hasExperts };
    if (this.#dial.value !== undefined) sampling.experts_per_token = this.#dial.value;
    return this.#desk.request(this.#model, sampling);
  }

  #onChunk(view, tokens, routing, meter) {
    const paper = byId("paper");
    const isAtEnd = paper.scrollHeight - paper.scrollTop - paper.clientHeight < 48;
    view.add(tokens, routing);
    if (isAtEnd) paper.scrollTop = paper.scrollHeight;
    const row = routing.at(-1);
    if (row) this.#ring.light(row.at(-1));
    this.#summarise(meter, null);
  }

  #summarise(meter, ending) {
    byId("summary").replaceChildren(...summaryOf(meter, ending, (seed) => (this.#sampling.seed = seed)));
  }

  #onEnd(error) {
    if (error.name === "AbortError") {
      byId("summary").append(" · stopped");
    } else if (error instanceof ApiError) {
      byId("summary").replaceChildren();
      this.#showFailure(error);
    } else {
      throw error;
    }
  }

  #showFailure(error) {
    const where = error.param ? ` (${error.param})` : "";
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    byId("failure").replaceChildren(element("b", {}, error.title), element("p", {}, error.message + where + wait));
    byId("failure").hidden = false;
    byId("failure").scrollIntoView({ block: "nearest" });
    if (error.status === 401) byId("key-panel").showPopover();
  }

  #showButtons() {
    const isRunning = this.#running !== null;
    byId("run").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    byId("run-name").textContent = this.#desk.name;
    byId("again").textContent = this.#desk.againName;
    byId("again").hidden = isRunning || !this.#desk.canGoOn;
    byId("ring").classList.toggle("running", isRunning);
    for (const radio of byId("mode").elements) radio.disabled = isRunning;
  }

  #open(name) {
    this.#desk = this.#desks[name];
    byId("completion").hidden = name !== "completion";
    byId("chat").hidden = byId("message-row").hidden = name !== "chat";
    byId("summary").replaceChildren();
    byId("failure").hidden = true;
    this.#showButtons();
    this.#desk.focus();
  }

  async #copy(write, name) {
    if (!this.#sampling.check()) return undefined;
    const request = this.#request();
    if (!request) return this.#toast("Write something first");
    await copy(write(request, document.baseURI, Boolean(this.#keyOf())));
    return this.#toast(`Copied as ${name}`);
  }

  #toast(text) {
    byId("toast").textContent = text;
    clearTimeout(this.#toastTimer); // of the text before
    this.#toastTimer = setTimeout(() => byId("toast").replaceChildren(), TOAST_MS);
  }

  #again() {
    this.#desk.prepareAgain();
    this.run();
  }

  #repaint() {
    const tint = document.querySelector("input[name=tint]:checked").value;
    byId("paper").dataset.tint = tint;
    byId("layer-row").hidden = tint !== "expert";
    this.#look.layer = byId("layer").valueAsNumber;
    byId("layer-value").value = this.#look.layer;
    for (const desk of Object.values(this.#desks)) for (const view of desk.views) view.repaint();
  }

  #listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    byId("stop").addEventListener("click", () => this.#running?.abort());
    byId("again").addEventListener("click", () => this.#again());
    byId("mode").addEventListener("change", (event) => this.#open(event.target.value));
    byId("copy-curl").addEventListener("click", () => this.#copy(asCurl, "curl"));
    byId("copy-python").addEventListener("click", () => this.#copy(asPython, "Python"));
    byId("tint").addEventListener("change", () => this.#repaint());
    byId("layer").addEventListener("input", () => this.#repaint());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
      if (event.key === "Escape") this.#running?.abort();
    });
  }
}
