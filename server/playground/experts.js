import { byId, element } from "./dom.js";
import { percent, spelled } from "./words.js";

const HOT = 4; // times the even share: as hot as the scale goes

/** The live map of which experts take how much of the work: layers downwards, experts across. */
export class ExpertMap {
  #api;
  #table = byId("heat");
  #readout = byId("readout");
  #window = byId("window");
  #cells = []; // [layer][expert]
  #layers = [];
  #pointed = null; // [layer, expert] under the pointer

  constructor(api) {
    this.#api = api;
    this.#table.addEventListener("pointerover", (event) => this.#point(event.target));
    this.#table.addEventListener("pointerleave", () => this.#point(null));
    this.#window.addEventListener("change", () => this.refresh());
  }

  /** Asks the server and draws what it says. Throws ApiError. */
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
        cell.style.setProperty("--heat", Math.min(1, ((part ?? 0) * numExperts) / HOT));
        cell.dataset.tokens = tokens[expert];
        cell.firstChild.textContent = percent(part ?? 0);
      }),
    );
    byId("legend-top").textContent = `${percent(Math.min(1, HOT / numExperts))} or more`;
    this.#tell();
  }

  #build(numExperts) {
    const experts = Array.from({ length: numExperts }, (_, expert) => element("th", { scope: "col" }, `${expert}`));
    const head = element("tr", {}, element("td"), ...experts);
    this.#cells = this.#layers.map(() => experts.map(() => element("td", {}, element("span", { className: "unseen" }))));
    const rows = this.#cells.map((cells, layer) => element("tr", {}, element("th", { scope: "row" }, `${layer}`), ...cells));
    const caption = element("caption", { className: "unseen" }, "Share of the tokens that each expert takes, by layer");
    this.#table.replaceChildren(caption, element("thead", {}, head), element("tbody", {}, ...rows));
    this.#table.style.setProperty("--layers", rows.length);
  }

  #point(target) {
    const cell = target?.closest("td");
    const layer = this.#cells.findIndex((cells) => cells.includes(cell));
    this.#pointed = layer < 0 ? null : [layer, this.#cells[layer].indexOf(cell)];
    this.#tell();
  }

  #tell() {
    this.#readout.replaceChildren(...(this.#pointed ? this.#cellWords(...this.#pointed) : this.#overall()));
  }

  #cellWords(layer, expert) {
    const { share, tokens, top_tokens: top } = this.#layers[layer];
    const names = (top?.[expert] ?? []).slice(0, 6).map(({ text }) => element("code", {}, spelled(text)));
    return [
      element("b", {}, `Layer ${layer}, expert ${expert}: ${percent(share[expert] ?? 0)}`),
      ` of the work, ${tokens[expert].toLocaleString("en")} tokens. `,
      ...(names.length ? ["Most of all: ", ...names.flatMap((name) => [name, " "])] : []),
    ];
  }

  #overall() {
    const total = this.#layers[0].tokens.reduce((sum, count) => sum + count, 0);
    if (total === 0) return ["No tokens in this time."];
    const imbalances = this.#layers.map(({ imbalance }) => imbalance ?? 1);
    const worst = imbalances.indexOf(Math.max(...imbalances));
    return [`Busiest: in layer ${worst} one expert takes ${imbalances[worst].toFixed(1)} times its even share.`];
  }
}
