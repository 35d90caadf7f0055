import { element } from "./dom.js";

/** How many experts each token takes: a slider drawn as pips. `value` is undefined while it stands at the model's own. */
export class Dial {
  #root;
  #own = null;
  #input = null;
  #pips = [];
  #note = null;

  constructor(root) {
    this.#root = root;
  }

  /** Shows the dial for a model with `numExperts`, of which `own` are the model's choice. */
  show(numExperts, own) {
    this.#own = own;
    this.#pips = Array.from({ length: numExperts }, () => element("i"));
    this.#input = element("input", { type: "range", id: "experts-per-token", min: 1, max: numExperts, step: 1, value: own });
    this.#note = element("output", { htmlFor: "experts-per-token" });
    const reset = element("button", { type: "button", className: "reset", title: "Back to the model's own", ariaLabel: "Reset experts per token" }, "↺");
    reset.addEventListener("click", () => this.#set(own));
    this.#input.addEventListener("input", () => this.#draw());
    this.#root.className = "dial";
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
