import { button, element } from "../dom.js";

/** Slider for the experts per token, drawn as pips. `value` is undefined while it is at the model's own number. */
export class ExpertsSlider {
  #root;
  #own = null;
  #input = null;
  #pips = [];
  #note = null;

  constructor(root) {
    this.#root = root;
  }

  /** Shows the slider for a model with `numExperts` experts, of which each token takes `own` by default. */
  show(numExperts, own) {
    this.#own = own;
    this.#pips = Array.from({ length: numExperts }, () => element("i"));
    this.#input = element("input", { type: "range", id: "experts-per-token", min: 1, max: numExperts, step: 1, value: own });
    this.#note = element("output", { htmlFor: "experts-per-token" });
    const reset = button("↺", () => this.#set(own), { className: "reset", name: "Reset experts per token" });
    this.#input.addEventListener("input", () => this.#draw());
    this.#root.className = "experts-slider";
    this.#root.replaceChildren(
      element("div", { className: "name" }, element("label", { htmlFor: "experts-per-token" }, "Experts per token"), reset, this.#note),
      element("div", { className: "pips" }, this.#input, ...this.#pips),
    );
    this.#draw();
  }

  get value() {
    if (!this.#input || this.#isOwn) return undefined;
    return this.#input.valueAsNumber;
  }

  get #isOwn() {
    return this.#input.valueAsNumber === this.#own;
  }

  #set(value) {
    this.#input.value = value;
    this.#draw();
    this.#input.focus();
  }

  #draw() {
    const chosen = this.#input.valueAsNumber;
    this.#pips.forEach((pip, i) => pip.classList.toggle("on", i < chosen));
    this.#note.value = `${chosen} of ${this.#pips.length}`;
    this.#root.classList.toggle("changed", !this.#isOwn);
  }
}
