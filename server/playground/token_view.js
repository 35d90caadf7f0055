import { element } from "./dom.js";

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/**
 * Generated text, token by token. Hover, tap or the arrow keys open a token's card. `look` is what all views of the page
 * share: {card, numExperts, layer}; the layer is the one that gives tokens their colour.
 */
export class TokenView {
  #look;
  #tokens = [];
  #spans = [];
  #routing = []; // row i belongs to token i and comes with a later one, when that token has been through the layers
  #at = -1;
  element = element("div", { className: "tokens", tabIndex: 0, role: "group", ariaLabel: "Generated text; arrow keys go through its tokens" });

  constructor(look) {
    this.#look = look;
    this.element.addEventListener("pointerover", (event) => this.#open(event.target));
    this.element.addEventListener("click", (event) => this.#open(event.target));
    this.element.addEventListener("pointerleave", () => this.#close());
    this.element.addEventListener("blur", () => this.#close());
    this.element.addEventListener("keydown", (event) => this.#step(event));
  }

  get text() {
    return this.#tokens.map((token) => token.text).join("");
  }

  get hasTokens() {
    return this.#tokens.length > 0;
  }

  add(tokens, routing) {
    const spans = tokens.map((token) => this.#span(token));
    this.#tokens.push(...tokens);
    this.#spans.push(...spans);
    this.element.append(...spans);
    for (const row of routing) {
      const index = this.#routing.push(row) - 1;
      if (this.#tokens[index]) {
        this.#tokens[index].routing = row;
        this.#colour(index);
      }
    }
  }

  /** Colours the tokens again: the layer has changed. */
  repaint() {
    this.#tokens.forEach((_, index) => this.#colour(index));
  }

  #span(token) {
    const span = element("span", { className: "t" }, token.text);
    if (token.logprob !== null) span.style.setProperty("--surprise", Math.min(1, -token.logprob / 5));
    return span;
  }

  #colour(index) {
    const chosen = this.#tokens[index].routing?.[this.#look.layer];
    if (!chosen) return;
    this.#spans[index].classList.add("routed");
    this.#spans[index].style.setProperty("--hue", Math.round((360 * chosen[0]) / this.#look.numExperts) + 30);
  }

  #open(target) {
    const index = this.#spans.indexOf(target);
    if (index >= 0) this.#show(index, false);
  }

  #step(event) {
    const step = STEPS[event.key];
    if (!step || !this.#tokens.length) return;
    event.preventDefault();
    this.#show(Math.min(Math.max(0, this.#at + step), this.#tokens.length - 1), true);
  }

  #show(index, isSpoken) {
    this.#spans[this.#at]?.classList.remove("at");
    this.#at = index;
    this.#spans[index].classList.add("at");
    if (isSpoken) this.#spans[index].scrollIntoView({ block: "nearest" });
    this.#look.card.show(this.#tokens[index], this.#spans[index], this.#look.numExperts, { isSpoken });
  }

  #close() {
    this.#spans[this.#at]?.classList.remove("at");
    this.#at = -1;
    this.#look.card.hide();
  }
}
