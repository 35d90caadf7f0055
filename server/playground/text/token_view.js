import { element } from "../dom.js";

let pointer = []; // where the pointer was last seen: text that moves below a resting one opens no card
window.addEventListener("pointermove", ({ clientX, clientY }) => (pointer = [clientX, clientY]));

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/**
 * Generated text, token by token. Hover, tap or the arrow keys open a token's card. `display` is shared by all views of
 * the page: {card, numExperts, layer, inspect}, where the experts of `layer` colour the tokens. A click on the token of
 * the open card, or Enter, calls `inspect` with the token, the ids before it, the fields of its request, the view, the text before.
 */
export class TokenView {
  #display;
  #tokens = [];
  #spans = [];
  #routing = []; // row i belongs to token i; it arrives with a later chunk
  #at = -1;
  #meter = null; // of the request that gives the text
  element = element("div", { className: "tokens", tabIndex: 0, role: "group", ariaLabel: "Generated text; arrow keys move through its tokens" });

  constructor(display) {
    this.#display = display;
    this.element.addEventListener("pointermove", ({ target, clientX, clientY }) => {
      if (clientX !== pointer[0] || clientY !== pointer[1]) this.#open(target);
    });
    this.element.addEventListener("click", (event) => this.#click(event.target));
    this.element.addEventListener("pointerleave", ({ pointerType }) => pointerType !== "touch" && this.#close()); // a finger always leaves
    this.element.addEventListener("blur", () => this.#close());
    this.element.addEventListener("keydown", (event) => this.#step(event));
  }

  get text() {
    return this.#tokens.map((token) => token.text).join("");
  }

  get hasTokens() {
    return this.#tokens.length > 0;
  }

  /** Appends tokens, and the expert ids [token][layer][k] that arrived with them; `meter` belongs to their request. */
  add(tokens, routing, meter) {
    this.#meter = meter;
    const spans = tokens.map((token) => this.#span(token));
    this.#tokens.push(...tokens);
    this.#spans.push(...spans);
    this.element.append(...spans);
    for (const row of routing) {
      const index = this.#routing.push(row) - 1;
      if (this.#tokens[index]) {
        this.#tokens[index].routing = row;
        this.#colour(index);
        if (index === this.#at) this.#show(index, false); // the card was opened before the experts came
      }
    }
  }

  /** The token at `index` by itself; undefined before it has arrived. */
  spelledAt(index) {
    return this.#tokens[index]?.spelled;
  }

  /** Adds a class to a token. */
  mark(index, className) {
    this.#spans[index].classList.add(className);
  }

  /** Colours the tokens again after the layer has changed. */
  repaint() {
    this.#tokens.forEach((_, index) => this.#colour(index));
  }

  /** Dims the tokens that did not take an expert, {layer, expert}; null dims none. */
  dim(place) {
    this.#tokens.forEach(({ routing }, index) => {
      const isDimmed = place !== null && routing !== undefined && !routing[place.layer].includes(place.expert);
      this.#spans[index].classList.toggle("dimmed", isDimmed);
    });
  }

  #span(token) {
    const span = element("span", { className: "t" }, token.text);
    if (token.logprob !== null) span.style.setProperty("--surprise", Math.min(1, -token.logprob / 5));
    return span;
  }

  #colour(index) {
    const chosen = this.#tokens[index].routing?.[this.#display.layer];
    if (!chosen) return;
    this.#spans[index].classList.add("routed");
    this.#spans[index].style.setProperty("--hue", Math.round((360 * chosen[0]) / this.#display.numExperts) + 30);
  }

  #open(target) {
    const index = this.#spans.indexOf(target);
    if (index >= 0 && index !== this.#at) this.#show(index, false);
  }

  /** A tap opens the card first, a second one the gates; the pointer of a mouse has opened the card before. */
  #click(target) {
    const index = this.#spans.indexOf(target);
    if (index >= 0 && index === this.#at) this.#inspect(index);
    else this.#open(target);
  }

  #inspect(index) {
    const { promptIds, fields } = this.#meter;
    const ids = this.#tokens.slice(0, index + 1).map((token) => token.id);
    if (!promptIds || ids.includes(undefined)) return;
    this.#close();
    const text = this.#tokens.slice(0, index).map((token) => token.text).join("");
    this.#display.inspect(this.#tokens[index], [...promptIds, ...ids.slice(0, -1)], fields, this, text);
  }

  #step(event) {
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && this.#at >= 0) this.#inspect(this.#at);
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
    this.#display.map?.showPath(this.#tokens[index].routing ?? null);
    this.#display.card.show(this.#tokens[index], this.#spans[index], this.#display.numExperts, { isSpoken });
  }

  #close() {
    this.#spans[this.#at]?.classList.remove("at");
    this.#at = -1;
    this.#display.map?.showPath(null);
    this.#display.card.hide();
  }
}
