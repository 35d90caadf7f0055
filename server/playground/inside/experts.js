import { byId, element, on } from "../dom.js";
import { percent } from "../words.js";
import { expertPanel } from "./expert_panel.js";

const FULL_HEAT = 4; // the hottest colour: this many times the even share
const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

/** Live heat map of the experts' shares: a row per layer, a column per expert. A click or Enter pins an expert's panel. */
export class ExpertMap {
  onHover; // called with [layer, expert] or null
  onSwitch; // called when an expert was switched off or on
  #api;
  #table = byId("heat");
  #readout = byId("readout");
  #window = byId("window");
  #cells = []; // [layer][expert]
  #layers = [];
  #pinned = null; // [layer, expert]
  #off = new Set(); // "layer expert"

  constructor(api) {
    this.#api = api;
    on(this.#table, "pointerover focusin", ({ target }) => this.#hover(target));
    on(this.#table, "pointerleave focusout", () => this.#hover(null));
    on(this.#table, "click", (event) => this.#pin(this.#placeOf(event.target)));
    on(this.#table, "keydown", (event) => this.#onKey(event));
    on(this.#window, "change", () => this.refresh());
  }

  /** [layers][experts], false for the experts that are switched off; undefined if none is. */
  get mask() {
    if (!this.#off.size) return undefined;
    return this.#cells.map((cells, layer) => cells.map((_, expert) => !this.#off.has(`${layer} ${expert}`)));
  }

  /** The experts that are off, as "layer expert"; undefined if none is. */
  get off() {
    return this.#off.size ? [...this.#off] : undefined;
  }

  set off(names = []) {
    this.#off = new Set(names);
    if (this.#layers.length) this.#draw();
  }

  async refresh() {
    const query = this.#window.value && `?window=${this.#window.value}`;
    ({ layers: this.#layers } = await this.#api.read(`experts${query}`));
    byId("experts").hidden = this.#layers.length === 0;
    if (this.#layers.length) this.#draw();
  }

  /** Marks a token's way through the layers: its expert ids, [layer][k]; null removes it. */
  showPath(routing) {
    this.#cells.forEach((cells, layer) =>
      cells.forEach((cell, expert) => cell.classList.toggle("path", routing?.[layer]?.includes(expert) ?? false)));
  }

  #draw() {
    const numExperts = this.#layers[0].share.length;
    if (this.#cells.length !== this.#layers.length) this.#build(numExperts);
    this.#layers.forEach(({ share, tokens }, layer) =>
      share.forEach((part, expert) => {
        const cell = this.#cells[layer][expert];
        cell.style.setProperty("--heat", Math.min(1, ((part ?? 0) * numExperts) / FULL_HEAT));
        cell.dataset.tokens = tokens[expert];
        cell.classList.toggle("off", this.#off.has(`${layer} ${expert}`));
        cell.firstChild.textContent = `layer ${layer}, expert ${expert}: ${percent(part ?? 0)}`;
      }),
    );
    byId("legend-top").textContent = `${percent(Math.min(1, FULL_HEAT / numExperts))} or more`;
    if (!this.#pinned) this.#readout.replaceChildren(...this.#describeAll());
    else if (!this.#readout.contains(document.activeElement)) this.#showPanel();
  }

  #build(numExperts) {
    const experts = Array.from({ length: numExperts }, (_, expert) => element("th", { scope: "col" }, `${expert}`));
    const head = element("tr", element("td"), ...experts);
    this.#cells = this.#layers.map(() =>
      experts.map(() => element("td", { tabIndex: -1 }, element("span.unseen"))));
    this.#cells[0][0].tabIndex = 0; // one stop for the whole map; arrow keys move inside it
    const rows = this.#cells.map((cells, layer) => element("tr", element("th", { scope: "row" }, `${layer}`), ...cells));
    const caption = element("caption.unseen", "Share of the tokens of each expert, by layer; Enter opens an expert");
    this.#table.replaceChildren(caption, element("thead", head), element("tbody", ...rows));
    this.#table.style.setProperty("--layers", rows.length);
  }

  #placeOf(target) {
    const cell = target?.closest("tbody td");
    const layer = this.#cells.findIndex((cells) => cells.includes(cell));
    return layer < 0 ? null : [layer, this.#cells[layer].indexOf(cell)];
  }

  #onKey(event) {
    const place = this.#placeOf(event.target);
    if (!place) return;
    if (event.key === "Enter" || event.key === " ") this.#pin(place);
    else if (event.key === "Escape" && this.#pinned) this.#pin(null);
    else if (STEPS[event.key]) this.#move(place, STEPS[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #move([layer, expert], [down, right]) {
    const next = this.#cells[layer + down]?.[expert + right];
    if (!next) return;
    this.#cells[layer][expert].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  #hover(target) {
    this.onHover(this.#placeOf(target));
  }

  /** Opens the panel of a place; the place of the open panel, or null, closes it. */
  #pin(place) {
    const isOpen = place && this.#pinned && place.every((number, i) => number === this.#pinned[i]);
    if (this.#pinned) this.#cellOf(this.#pinned).classList.remove("pinned");
    this.#pinned = isOpen ? null : place;
    if (this.#pinned) this.#showPanel();
    else this.#readout.replaceChildren(...this.#describeAll());
  }

  #showPanel() {
    const [layer, expert] = this.#pinned;
    this.#cellOf(this.#pinned).classList.add("pinned");
    this.#readout.replaceChildren(...expertPanel(this.#layers[layer], expert, {
      isOff: this.#off.has(`${layer} ${expert}`), onSwitch: () => this.#switch(layer, expert), onClose: () => this.#pin(null),
    }));
  }

  #switch(layer, expert) {
    const name = `${layer} ${expert}`;
    if (!this.#off.delete(name)) this.#off.add(name);
    this.#cellOf(this.#pinned).classList.toggle("off", this.#off.has(name));
    this.#showPanel();
    this.onSwitch();
  }

  #cellOf = ([layer, expert]) => this.#cells[layer][expert];

  #describeAll() {
    const total = this.#layers[0].tokens.reduce((sum, count) => sum + count, 0);
    if (total === 0) return ["No tokens in this period. Click an expert to look into it."];
    const imbalances = this.#layers.map(({ imbalance }) => imbalance ?? 1);
    const worst = imbalances.indexOf(Math.max(...imbalances));
    return [`Least balanced: in layer ${worst} one expert has ${imbalances[worst].toFixed(1)} times the even share. Click an expert to look into it.`];
  }
}
