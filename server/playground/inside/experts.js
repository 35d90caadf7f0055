import { byId, element } from "../dom.js";
import { percent, visible } from "../words.js";

const FULL_HEAT = 4; // the hottest colour: this many times the even share

/** Live heat map of the experts' shares: a row per layer, a column per expert. */
export class ExpertMap {
  #api;
  #table = byId("heat");
  #readout = byId("readout");
  #window = byId("window");
  #cells = []; // [layer][expert]
  #layers = [];
  #hovered = null; // [layer, expert] under the pointer

  constructor(api) {
    this.#api = api;
    this.#table.addEventListener("pointerover", (event) => this.#hover(event.target));
    this.#table.addEventListener("pointerleave", () => this.#hover(null));
    this.#window.addEventListener("change", () => this.refresh());
  }

  /** Reads the counts from the server and draws them. Throws ApiError. */
  async refresh() {
    const query = this.#window.value && `?window=${this.#window.value}`;
    const response = await this.#api.get(`experts${query}`);
    ({ layers: this.#layers } = await response.json());
    byId("experts").hidden = this.#layers.length === 0;
    if (this.#layers.length) this.#draw();
  }

  #draw() {
    const numExperts = this.#layers[0].share.length;
    if (this.#cells.length !== this.#layers.length) this.#build(numExperts);
    this.#layers.forEach(({ share, tokens }, layer) =>
      share.forEach((part, expert) => {
        const cell = this.#cells[layer][expert];
        cell.style.setProperty("--heat", Math.min(1, ((part ?? 0) * numExperts) / FULL_HEAT));
        cell.dataset.tokens = tokens[expert];
        cell.firstChild.textContent = percent(part ?? 0);
      }),
    );
    byId("legend-top").textContent = `${percent(Math.min(1, FULL_HEAT / numExperts))} or more`;
    this.#showReadout();
  }

  #build(numExperts) {
    const experts = Array.from({ length: numExperts }, (_, expert) => element("th", { scope: "col" }, `${expert}`));
    const head = element("tr", {}, element("td"), ...experts);
    this.#cells = this.#layers.map(() => experts.map(() => element("td", {}, element("span", { className: "unseen" }))));
    const rows = this.#cells.map((cells, layer) => element("tr", {}, element("th", { scope: "row" }, `${layer}`), ...cells));
    const caption = element("caption", { className: "unseen" }, "Share of the tokens of each expert, by layer");
    this.#table.replaceChildren(caption, element("thead", {}, head), element("tbody", {}, ...rows));
    this.#table.style.setProperty("--layers", rows.length);
  }

  #hover(target) {
    const cell = target?.closest("td");
    const layer = this.#cells.findIndex((cells) => cells.includes(cell));
    this.#hovered = layer < 0 ? null : [layer, this.#cells[layer].indexOf(cell)];
    this.#showReadout();
  }

  #showReadout() {
    this.#readout.replaceChildren(...(this.#hovered ? this.#describeCell(...this.#hovered) : this.#describeAll()));
  }

  #describeCell(layer, expert) {
    const { share, tokens, top_tokens: top } = this.#layers[layer];
    const names = (top?.[expert] ?? []).slice(0, 6).map(({ text }) => element("code", {}, visible(text)));
    return [
      element("b", {}, `Layer ${layer}, expert ${expert}: ${percent(share[expert] ?? 0)}`),
      ` of the layer, ${tokens[expert].toLocaleString("en")} tokens. `,
      ...(names.length ? ["Most frequent: ", ...names.flatMap((name) => [name, " "])] : []),
    ];
  }

  #describeAll() {
    const total = this.#layers[0].tokens.reduce((sum, count) => sum + count, 0);
    if (total === 0) return ["No tokens in this period."];
    const imbalances = this.#layers.map(({ imbalance }) => imbalance ?? 1);
    const worst = imbalances.indexOf(Math.max(...imbalances));
    return [`Least balanced: in layer ${worst} one expert has ${imbalances[worst].toFixed(1)} times the even share.`];
  }
}
