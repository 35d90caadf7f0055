import { element, on } from "../dom.js";
import { hueOf } from "../words.js";

let pointer = []; // where the pointer was last seen: text that moves below a resting one opens no card
on(window, "pointermove", ({ clientX, clientY }) => (pointer = [clientX, clientY]));

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/**
 * Generated text, token by token. Hover, tap or arrow keys open a token's card; a click on its token, or Enter, calls `inspect`
 * of `display` with the token, the ids before it, the fields of its request, the view and the text before it.
 */
export class TokenView {
  #display;
  #tokens = [];
  #spans = [];
  routing = []; // expert ids [layer][k]; row i belongs to token i and arrives with a later chunk
  #at = -1;
  meter = null; // of the request that gives the text
  element = element("div.tokens", { tabIndex: 0, role: "group", ariaLabel: "Generated text; arrow keys move through its tokens" });

  constructor(display) {
    this.#display = display;
    on(this.element, "pointermove", ({ target, clientX, clientY }) => {
      if (clientX !== pointer[0] || clientY !== pointer[1]) this.#point(target, false);
    });
    on(this.element, "click", ({ target }) => this.#point(target, true));
    on(this.element, "pointerleave", ({ pointerType }) => pointerType !== "touch" && this.#close()); // a finger always leaves
    on(this.element, "blur", () => this.#close());
    on(this.element, "contextmenu", (event) => {
      if (this.#at < 0 || !getSelection().isCollapsed) return; // a selection has the browser's menu
      event.preventDefault();
      this.#display.card.pin();
    });
    on(this.element, "keydown", (event) => this.#step(event));
  }

  get text() {
    return this.#tokens.map((token) => token.text).join("");
  }

  get hasTokens() {
    return this.#tokens.length > 0;
  }

  /** Appends tokens, and the expert ids [token][layer][k] that arrived with them; `meter` belongs to their request. */
  add(tokens, routing, meter) {
    this.meter = meter;
    const spans = tokens.map((token) => this.#span(token));
    this.#tokens.push(...tokens);
    this.#spans.push(...spans);
    this.element.append(...spans);
    for (const row of routing) {
      const index = this.routing.push(row) - 1;
      if (this.#tokens[index]) {
        this.#tokens[index].routing = row;
        this.#colour(index);
        if (index === this.#at) this.#show(index, false); // the card was opened before the experts came
      }
    }
  }

  spelledAt(index) {
    return this.#tokens[index]?.spelled;
  }

  mark(index, className) {
    this.#spans[index].classList.add(className);
  }

  repaint() {
    this.#tokens.forEach((_, index) => this.#colour(index));
  }

  /** Dims the tokens for whose routing `isShown` is false; undefined dims none. */
  dim(isShown) {
    this.#tokens.forEach(({ routing }, index) => this.#spans[index].classList.toggle("dimmed", Boolean(isShown && routing && !isShown(routing))));
  }

  #span(token) {
    const span = element("span.t", token.text);
    if (token.logprob !== null) span.style.setProperty("--surprise", Math.min(1, -token.logprob / 5));
    return span;
  }

  #colour(index) {
    const chosen = this.#tokens[index].routing?.[this.#display.layer];
    if (!chosen) return;
    this.#spans[index].classList.add("routed");
    this.#spans[index].style.setProperty("--hue", hueOf(chosen[0], this.#display.numExperts));
  }

  /** A tap opens the card first, a second one the gates; the pointer of a mouse has opened the card before. */
  #point(target, isClick) {
    const index = this.#spans.indexOf(target);
    if (index < 0) return;
    if (index !== this.#at) this.#show(index, false);
    else if (isClick) this.#inspect(index);
  }

  #inspect(index) {
    const { promptIds, fields } = this.meter;
    const ids = this.#tokens.slice(0, index + 1).map((token) => token.id);
    if (!promptIds || ids.includes(undefined)) return;
    this.#close();
    const text = this.#tokens.slice(0, index).map((token) => token.text).join("");
    this.#display.inspect(this.#tokens[index], [...promptIds, ...ids.slice(0, -1)], fields, this, text);
  }

  #step(event) {
    if (event.key === "p" && this.#at >= 0) this.#display.card.pin();
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
