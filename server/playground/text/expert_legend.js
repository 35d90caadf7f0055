import { button, byId } from "../dom.js";
import { hueOf, percent } from "../words.js";

/** Legend of the experts' colours: buttons with each expert's share of the tokens, which dim those of all others. */
export class ExpertLegend {
  #box = byId("expert-legend");
  #expert = null; // whose tokens stay
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** Draws the experts that `views` show as colours: the strongest one of each token in a layer. */
  draw(views, { layer, numExperts }) {
    const counts = new Map();
    const strongest = views.flatMap((view) => view.routing.map((row) => row[layer][0]));
    for (const expert of strongest) counts.set(expert, (counts.get(expert) ?? 0) + 1);
    const swatches = [...counts].sort(([a], [b]) => a - b).map(([expert, count]) =>
      button(`${expert} · ${percent(count / strongest.length)}`, () => this.#toggle(expert),
        { title: "Show only this expert's tokens", className: "swatch", "--hue": hueOf(expert, numExperts), ariaPressed: String(expert === this.#expert) }));
    this.#box.replaceChildren(...swatches);
  }

  /** Returns whether a token stays, by its experts in each layer; undefined if all do. */
  isShown(layer) {
    return this.#expert === null ? undefined : (routing) => routing[layer][0] === this.#expert;
  }

  #toggle(expert) {
    this.#expert = expert === this.#expert ? null : expert;
    this.#onChange();
    [...this.#box.children].find(({ textContent }) => parseInt(textContent, 10) === expert)?.focus();
  }
}
