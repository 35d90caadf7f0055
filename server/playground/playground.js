import { ApiError } from "./api.js";
import { ChatPanel } from "./text/chat.js";
import { copy } from "./clipboard.js";
import { ComparePanel } from "./compare/panel.js";
import { CompletionPanel } from "./text/completion.js";
import { button, byId, element, onClick } from "./dom.js";
import { History } from "./history/history.js";
import { generate } from "./text/generation.js";
import { Ring } from "./inside/ring.js";
import { TokenGates } from "./inside/token_gates.js";
import { asCurl, asPython } from "./text/snippets.js";
import { summaryNodes } from "./text/summary.js";
import { TokenCard } from "./text/token_card.js";

const TOAST_MS = 1600;
const END_PX = 48; // so close to the end counts as its end
const PASSING = new Set([0, 408, 429, 503]); // statuses that another try may not meet
const UNTIL_READY = new Set(["loading", "engine_dead"]); // codes of a server that becomes ready by itself

/** The text part of the page: the open panel, its running request, and the buttons around it. */
export class Playground {
  isReady = false; // the model is loaded and known
  hasExperts = false;
  #api;
  #getKey;
  #expertsSlider;
  #sampling;
  #model = "";
  #display = { card: new TokenCard(byId("card"), byId("spoken")), numExperts: 0, numLayers: 0, layer: 0 };
  #ring = new Ring(byId("ring"));
  #gates;
  #history;
  #panels;
  #panel;
  #maxLen = 0; // tokens of prompt and answer together
  #running = null; // AbortController of the running request
  #send = () => this.run(); // sends the last request again
  #isWaiting = false; // the last request is sent when the server is ready
  #isFollowing = true; // the end of the text stays in view
  #paperTop = 0;
  #toastTimer;

  constructor({ api, getKey, experts, expertsSlider, sampling }) {
    this.#api = api;
    this.#display.map = experts;
    this.#display.inspect = (...token) => this.#inspect(...token);
    this.#gates = new TokenGates(api, byId("gates"));
    this.#getKey = getKey;
    this.#expertsSlider = expertsSlider;
    this.#sampling = sampling;
    const run = (job) => this.#start(job);
    this.#panels = {
      completion: new CompletionPanel(this.#display, run), chat: new ChatPanel(this.#display, run), compare: new ComparePanel(this.#display),
    };
    this.#panel = this.#panels.completion;
    const { completion, chat } = this.#panels;
    this.#history = new History({ completion, chat }, this);
    this.#listen();
    this.showButtons();
    this.#history.restore();
  }

  get isRunning() {
    return this.#running !== null;
  }

  /** Name of the open panel. */
  get mode() {
    return Object.keys(this.#panels).find((name) => this.#panels[name] === this.#panel);
  }

  /** Reads the model's name and experts from the server; calls `showExperts` if it has any. Throws ApiError. */
  async loadModel(showExperts) {
    const { data } = await (await this.#api.get("v1/models")).json();
    this.#model = data[0].id;
    byId("model").textContent = this.#model;
    this.isReady = data[0].max_model_len !== null;
    if (!this.isReady) return;
    this.#maxLen = data[0].max_model_len;
    this.#sampling.limit(data[0]);
    if (data[0].capabilities?.completion_chat === false) this.#refuse();
    if (!data[0].num_experts) return;
    await showExperts();
    this.#showExpertControls(data[0]);
  }

  /** Sends the request of the open panel and shows the generated text. `job` is one of its panel, {} the plain one. */
  async run(job = {}) {
    this.#isWaiting = false;
    if (this.#running || byId("run").disabled || !this.#sampling.check()) return;
    const requests = this.#requests(job);
    if (!requests) return this.#panel.focus();
    this.#running = new AbortController();
    byId("failure").hidden = true;
    const views = [this.#panel.begin(job)].flat();
    this.#isFollowing = true;
    this.#follow();
    this.showButtons();
    let meters = [];
    try {
      meters = await Promise.all(requests.map((request, i) => this.#generate(request, views[i])));
      this.#showSummary(meters[0], this.#panel.finding ?? (meters[0].finishReason === "length" ? "length limit" : "complete"));
    } catch (error) {
      this.#running.abort(); // the other columns
      this.#showError(error);
    } finally {
      this.#running = null;
      this.#panel.end(meters[0]);
      this.showButtons();
    }
  }

  #showExpertControls({ num_experts: numExperts, experts_per_token: own, num_layers: numLayers }) {
    this.hasExperts = true;
    Object.assign(this.#display, { numExperts, numLayers, ownK: own });
    this.#panels.compare.start();
    byId("mode-compare").hidden = false;
    this.#expertsSlider.show(numExperts, own);
    byId("tint-expert").hidden = false;
    byId("layer").max = numLayers - 1;
  }

  /** Opens the gates of a token; `before` are the ids of all tokens before it, `text` is what its view shows before it. */
  #inspect({ spelled, id, others }, before, { experts_per_token: k, expert_mask: mask }, view, text) {
    const { numExperts, numLayers, ownK } = this.#display;
    const onBranch = this.#panel.branchJob && ((other) => this.#start(this.#panel.branchJob(view, text + other)));
    this.#gates.open({ spelled, id, others, onBranch, before, k, mask, model: this.#model, ownK, numExperts, numLayers });
  }

  #generate(request, view) {
    return generate(this.#api, request, this.#running.signal, (...chunk) => this.#onChunk(view, ...chunk));
  }

  /** Returns the requests of the open panel, one per view; null without a text. */
  #requests(job) {
    const sampling = { ...this.#sampling.values, routing: this.hasExperts };
    if (this.#expertsSlider.value !== undefined) sampling.experts_per_token = this.#expertsSlider.value;
    const mask = this.#display.map.mask;
    if (mask) sampling.expert_mask = mask;
    if (this.#panel.requests) return this.#panel.requests(this.#model, sampling);
    const request = this.#panel.request(this.#model, sampling, job);
    return request && [request];
  }

  #onChunk(view, tokens, routing, meter) {
    view.add(tokens, routing, meter);
    this.#panel.onChange?.();
    this.#follow();
    const row = routing.at(-1);
    if (row) this.#ring.light(row.at(-1));
    this.#showSummary(meter, null);
  }

  /** Keeps the end of the text in view, unless the reader has scrolled up. */
  #follow() {
    const paper = byId("paper");
    if (this.#isFollowing) paper.scrollTop = paper.scrollHeight;
    this.#paperTop = paper.scrollTop;
  }

  /** Scrolling up leaves the end of the text; reaching the end follows it again. */
  #onScroll() {
    const paper = byId("paper");
    const isAtEnd = paper.scrollHeight - paper.scrollTop - paper.clientHeight < END_PX;
    if (paper.scrollTop < this.#paperTop) this.#isFollowing = isAtEnd;
    else if (isAtEnd) this.#isFollowing = true;
    this.#paperTop = paper.scrollTop;
  }

  #showSummary(meter, ending) {
    byId("summary").replaceChildren(...summaryNodes(meter, this.#maxLen, ending, (seed) => (this.#sampling.seed = seed)));
  }

  #showError(error) {
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
    this.#isWaiting = UNTIL_READY.has(error.code);
    const soon = this.#isWaiting ? " It is sent again as soon as the server is ready." : wait;
    byId("failure").replaceChildren(element("b", {}, error.title), element("p", {}, error.message + where + soon));
    if (PASSING.has(error.status)) byId("failure").append(button("Try again", () => this.#send(), { className: "" }));
    byId("failure").hidden = false;
    byId("failure").scrollIntoView({ block: "nearest" });
    if (error.status === 401) byId("key-panel").showPopover();
  }

  #refuse() {
    byId("run").disabled = true;
    byId("failure").textContent = "This model writes no text: it turns texts into vectors, at /v1/embeddings.";
    byId("failure").hidden = false;
  }

  /** Sends the request that waits for the server, if there is one. */
  sendWaiting() {
    if (this.#isWaiting) this.#send();
  }

  #hideFailure() {
    byId("failure").hidden = true;
    this.#isWaiting = false;
  }

  showButtons() {
    const isRunning = this.#running !== null;
    byId("run").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    byId("run-name").textContent = this.#panel.name;
    byId("run-key").textContent = this.#panel === this.#panels.chat ? "⏎" : "Ctrl ⏎";
    byId("again").textContent = this.#panel.repeatLabel;
    byId("again").hidden = isRunning || !this.#panel.canRepeat;
    const free = new Set([this.mode, "server"]); // what can be opened while a text is written
    for (const radio of byId("mode").elements) radio.disabled = isRunning && !free.has(radio.value);
  }

  /** Opens a panel by its name. */
  show(name) {
    const isOpen = this.mode === name;
    document.querySelector(`input[name=mode][value=${name}]`).checked = true;
    document.body.dataset.tab = "text";
    this.showButtons();
    if (isOpen) return;
    this.#panel = this.#panels[name];
    this.#history.note();
    for (const other of ["completion", "compare"]) byId(other).hidden = name !== other;
    byId("chat").hidden = byId("message-row").hidden = name !== "chat";
    byId("summary").replaceChildren();
    this.#hideFailure();
    this.showButtons();
    this.#panel.focus();
  }

  async #copy(write, name) {
    if (!this.#sampling.check()) return undefined;
    const [request] = this.#requests() ?? [];
    if (!request) return this.#showToast("Enter a text first");
    await copy(write(request, document.baseURI, Boolean(this.#getKey())));
    return this.#showToast(`Copied as ${name}`);
  }

  #showToast(text) {
    byId("toast").textContent = text;
    clearTimeout(this.#toastTimer); // of the previous text
    this.#toastTimer = setTimeout(() => byId("toast").replaceChildren(), TOAST_MS);
  }

  #repeat() {
    if (!this.#running && this.#panel.canRepeat && this.#sampling.check()) this.#start(this.#panel.repeatJob());
  }

  #start(job = {}) {
    if (this.#running) return;
    this.#send = () => this.run(job);
    this.run(job);
  }

  #repaint() {
    const tint = document.querySelector("input[name=tint]:checked").value;
    byId("paper").dataset.tint = tint;
    byId("layer-row").hidden = tint !== "expert";
    this.#display.layer = byId("layer").valueAsNumber;
    byId("layer-value").value = this.#display.layer;
    for (const panel of Object.values(this.#panels)) for (const view of panel.views) view.repaint();
  }

  /** Dims the tokens that did not take an expert, {layer, expert}; null dims none. */
  #dim(place) {
    for (const view of this.#panel.views) view.dim(place);
  }

  #listen() {
    byId("heat").addEventListener("expert-hover", ({ detail }) => this.#dim(detail));
    byId("heat").addEventListener("expert-switch", () => (this.#panel === this.#panels.chat ? this.#repeat() : this.#start()));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    for (const id of ["prompt", "message", "compare-prompt"]) byId(id).addEventListener("input", () => this.#hideFailure());
    byId("paper").addEventListener("scroll", () => this.#onScroll());
    onClick("stop", () => this.#running?.abort());
    onClick("again", () => this.#repeat());
    byId("mode").addEventListener("change", ({ target }) => target.value !== "server" && this.show(target.value));
    onClick("copy-curl", () => this.#copy(asCurl, "curl"));
    onClick("copy-python", () => this.#copy(asPython, "Python"));
    byId("tint").addEventListener("change", () => this.#repaint());
    byId("layer").addEventListener("input", () => this.#repaint());
    document.addEventListener("keydown", (event) => {
      if (document.body.dataset.tab === "server") return;
      if (isSend(event)) {
        event.preventDefault();
        this.#start();
      }
      if (event.key === "Escape" && !event.target.closest("[popover]")) this.#running?.abort();
    });
  }
}

/** Returns whether a key sends the request: Ctrl+Enter, and in the message field Enter without Shift. */
function isSend({ key, ctrlKey, metaKey, shiftKey, isComposing, target }) {
  if (key !== "Enter" || isComposing) return false;
  return ctrlKey || metaKey || (target.id === "message" && !shiftKey);
}
