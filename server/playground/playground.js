import { ApiError } from "./api.js";
import { ChatPanel } from "./text/chat.js";
import { copy } from "./clipboard.js";
import { ComparePanel } from "./compare/panel.js";
import { CompletionPanel } from "./text/completion.js";
import { button, byId, element, on } from "./dom.js";
import { ExpertLegend } from "./text/expert_legend.js";
import { History } from "./history/history.js";
import { generate } from "./text/generation.js";
import { Ring } from "./inside/ring.js";
import { TokenGates } from "./inside/token_gates.js";
import { savePicture } from "./picture.js";
import { asCurl, asPython } from "./text/snippets.js";
import { endingOf, summaryNodes } from "./text/summary.js";
import { TokenCard } from "./text/token_card.js";

const [failure, paper, summary] = ["failure", "paper", "summary"].map(byId);
const TOAST_MS = 1600;
const END_PX = 48; // so close to the end counts as its end
const PASSING = new Set([0, 408, 429, 503]); // statuses that another try may not meet
const UNTIL_READY = new Set(["loading", "engine_dead"]); // codes of a server that becomes ready by itself

/** The text part of the page: the open panel, its request, and the buttons around it. */
export class Playground {
  isReady = false; // the model is loaded and known
  hasExperts = false;
  #api;
  #getKey;
  #sampling;
  #model = "";
  #display = { card: new TokenCard(byId("card"), byId("spoken")), numExperts: 0, numLayers: 0, layer: 0 };
  #ring = new Ring(byId("ring"));
  #gates;
  #legend = new ExpertLegend(() => this.#repaint());
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

  constructor({ api, getKey, experts, sampling }) {
    this.#api = api;
    this.#display.map = experts;
    experts.onHover = (place) => this.#dim(place && ((routing) => routing[place[0]].includes(place[1])));
    experts.onSwitch = () => (this.#panel === this.#panels.chat ? this.#repeat() : this.#start());
    this.#display.inspect = (...token) => this.#inspect(...token);
    this.#gates = new TokenGates(api, byId("gates"));
    this.#getKey = getKey;
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
    this.#history.restore().then(() => this.#openLink());
  }

  get isRunning() {
    return this.#running !== null;
  }

  get mode() {
    return Object.keys(this.#panels).find((name) => this.#panels[name] === this.#panel);
  }

  /** Reads the model's name and experts from the server. Throws ApiError. */
  async loadModel() {
    const { data: [model] } = await this.#api.read("v1/models");
    byId("model").textContent = this.#model = model.id;
    this.isReady = model.max_model_len !== null;
    if (!this.isReady) return;
    this.#maxLen = model.max_model_len;
    this.#sampling.limit(model);
    if (model.capabilities?.completion_chat === false) {
      byId("run").disabled = true;
      failure.textContent = "This model writes no text: it turns texts into vectors, at /v1/embeddings.";
      failure.hidden = false;
    }
    if (!model.num_experts) return;
    await this.#display.map.refresh();
    this.#showExpertControls(model);
  }

  /** Sends a job of the open panel, {} the plain one, and shows the generated text. */
  async run(job = {}) {
    this.#isWaiting = false;
    if (this.#running || byId("run").disabled || !this.#sampling.check()) return;
    const requests = this.#requests(job);
    if (!requests) return this.#panel.focus();
    this.#running = new AbortController();
    this.#hideFailure();
    const views = [this.#panel.begin(job)].flat();
    this.#isFollowing = true;
    this.#follow();
    this.showButtons();
    let meters = [];
    try {
      const { signal } = this.#running;
      meters = await Promise.all(requests.map((request, i) => generate(this.#api, request, signal, (...chunk) => this.#onChunk(views[i], ...chunk))));
      this.#showSummary(meters[0], this.#panel.finding ?? endingOf(meters[0]));
    } catch (error) {
      this.#running.abort(); // the other columns
      this.#showError(error);
    } finally {
      this.#running = null;
      this.#panel.end(meters[0]);
      this.showButtons();
      this.#paintLegend();
    }
  }

  #showExpertControls({ num_experts: numExperts, experts_per_token: own, num_layers: numLayers }) {
    this.hasExperts = true;
    Object.assign(this.#display, { numExperts, numLayers, ownK: own });
    this.#panels.compare.start();
    byId("mode-compare").hidden = false;
    byId("tint-expert").hidden = false;
    byId("layer").max = numLayers - 1;
  }

  /** Opens the gates of a token; `before` are the ids of all tokens before it, `text` is what its view shows before it. */
  #inspect({ spelled, id, others }, before, { experts_per_token: k, expert_mask: mask }, view, text) {
    const { numExperts, numLayers, ownK } = this.#display;
    const onBranch = this.#panel.branchJob && ((other) => this.#start(this.#panel.branchJob(view, text + other)));
    this.#gates.open({ spelled, id, others, onBranch, before, k, mask, model: this.#model, ownK, numExperts, numLayers });
  }

  /** Returns the requests of the open panel, one per view; null without a text. */
  #requests(job) {
    const sampling = { ...this.#sampling.values, routing: this.hasExperts };
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

  #follow() {
    if (this.#isFollowing) paper.scrollTop = paper.scrollHeight;
    this.#paperTop = paper.scrollTop;
  }

  /** Scrolling up leaves the end of the text; reaching the end follows it again. */
  #onScroll() {
    const isAtEnd = paper.scrollHeight - paper.scrollTop - paper.clientHeight < END_PX;
    if (paper.scrollTop < this.#paperTop) this.#isFollowing = isAtEnd;
    else if (isAtEnd) this.#isFollowing = true;
    byId("down").hidden = isAtEnd;
    this.#paperTop = paper.scrollTop;
  }

  #showSummary(meter, ending) {
    summary.replaceChildren(...summaryNodes(meter, this.#maxLen, ending, (seed) => (this.#sampling.seed = seed)));
  }

  #showError(error) {
    if (error.name === "AbortError") return summary.append(" · stopped");
    if (!(error instanceof ApiError)) throw error;
    summary.replaceChildren();
    return this.#showFailure(error);
  }

  #showFailure(error) {
    const where = error.param ? ` (${error.param})` : "";
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    this.#isWaiting = UNTIL_READY.has(error.code);
    const soon = this.#isWaiting ? " It is sent again as soon as the server is ready." : wait;
    failure.replaceChildren(element("b", error.title), element("p", error.message + where + soon));
    if (PASSING.has(error.status)) failure.append(button("Try again", () => this.#send(), { className: "" }));
    failure.hidden = false;
    failure.scrollIntoView({ block: "nearest" });
    if (error.status === 401) byId("key-panel").showPopover();
  }

  sendWaiting() {
    if (this.#isWaiting) this.#send();
  }

  #hideFailure() {
    failure.hidden = true;
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

  show(name) {
    const isOpen = this.mode === name;
    document.querySelector(`[name=mode][value=${name}]`).checked = true;
    document.body.dataset.tab = "text";
    if (isOpen) return this.showButtons();
    this.#panel = this.#panels[name];
    this.#history.note();
    for (const other of ["completion", "compare"]) byId(other).hidden = name !== other;
    byId("chat").hidden = byId("message").hidden = name !== "chat";
    summary.replaceChildren();
    this.#hideFailure();
    this.showButtons();
    this.#paintLegend();
    return this.#panel.focus();
  }

  async #copy(name, make) {
    if (!this.#sampling.check()) return;
    const text = make();
    if (text) await copy(text);
    this.#showToast(text ? `Copied as ${name}` : "Enter a text first");
  }

  #snippet(write) {
    const [request] = this.#requests() ?? [];
    return request && write(request, document.baseURI, Boolean(this.#getKey()));
  }

  /** Returns the page's address with the open text and its settings in the fragment, which browsers send to no server. */
  #link() {
    const { details: _, ...sampling } = this.#sampling.values;
    const text = this.#panel.link;
    const seed = summary.querySelector(".seed")?.value; // of the text that is shown
    const fields = { mode: this.mode, text, seed, ...sampling, off: this.#display.map.off };
    return text && new URL(`#${encodeURIComponent(JSON.stringify(fields))}`, document.baseURI).href;
  }

  /** Opens what such an address contains. Its fragment goes, so that a reload opens what has become of the text. */
  async #openLink() {
    const { hash, pathname, search } = location;
    if (!hash) return;
    history.replaceState(null, "", pathname + search);
    if (this.#running) return this.#showToast("Stop the text before you open a link");
    try {
      const { mode, text, off, ...fields } = JSON.parse(decodeURIComponent(hash.slice(1)));
      if (!Object.hasOwn(this.#panels, mode)) throw new TypeError("Unknown mode.");
      if (mode === "compare") this.#panels.compare.open(text);
      else await this.#history.putNew(mode, text);
      this.show(mode);
      this.#sampling.values = fields;
      this.#display.map.off = off;
    } catch (error) {
      if (![TypeError, SyntaxError, URIError].includes(error.constructor)) throw error;
      this.#showToast("This link is damaged");
    }
    return undefined;
  }

  #savePicture(part) {
    const figures = [...summary.childNodes].map(({ textContent }) => textContent);
    savePicture(part, [this.#model, ...figures].join(" · "));
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
    paper.dataset.tint = document.querySelector("[name=tint]:checked").value;
    byId("layer-row").hidden = paper.dataset.tint !== "expert";
    byId("layer-value").value = this.#display.layer = byId("layer").valueAsNumber;
    for (const panel of Object.values(this.#panels)) for (const view of panel.views) view.repaint();
    this.#paintLegend();
  }

  #paintLegend() {
    const isHidden = paper.dataset.tint !== "expert";
    byId("expert-legend").hidden = isHidden;
    if (!isHidden) this.#legend.draw(this.#panel.views, this.#display);
    this.#dim();
  }

  /** Dims the tokens for whose routing `isShown` is false; without it those that the legend hides. */
  #dim(isShown) {
    const ofLegend = byId("expert-legend").hidden ? undefined : this.#legend.isShown(this.#display.layer);
    for (const view of this.#panel.views) view.dim(isShown ?? ofLegend);
  }

  #listen() {
    on("composer", "submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    on("write", "input", () => this.#hideFailure());
    on("paper", "scroll", () => this.#onScroll());
    on("down", "click", () => paper.scrollTo(0, paper.scrollHeight));
    const stop = () => this.#running?.abort();
    on("stop", "click", stop);
    on("again", "click", () => this.#repeat());
    on("mode", "change", ({ target }) => target.value !== "server" && this.show(target.value));
    on("copy-curl", "click", () => this.#copy("curl", () => this.#snippet(asCurl)));
    on("copy-link", "click", () => this.#copy("a link", () => this.#link()));
    on(window, "hashchange", () => this.#openLink());
    for (const [id, part] of [["picture", "compare"], ["experts-picture", "experts"]]) on(id, "click", () => this.#savePicture(byId(part)));
    on("copy-python", "click", () => this.#copy("Python", () => this.#snippet(asPython)));
    on("tint", "change", () => this.#repaint());
    on("layer", "input", () => this.#repaint());
    on(document, "keydown", (event) => {
      if (document.body.dataset.tab === "server") return;
      if (isSend(event)) {
        event.preventDefault();
        this.#start();
      }
      if (event.key === "Escape" && !event.target.closest("[popover]")) stop();
    });
  }
}

/** Returns whether a key sends the request: Ctrl+Enter, and in the message field Enter without Shift. */
function isSend({ key, ctrlKey, metaKey, shiftKey, isComposing, target }) {
  if (key !== "Enter" || isComposing) return false;
  return ctrlKey || metaKey || (target.id === "message" && !shiftKey);
}
