import { element, on } from "../dom.js";
import { hueOf } from "../words.js";
import { display } from "./display.js";

let pointer = []; // where the pointer was last seen: text that moves below a resting one opens no card
on(window, "pointermove", ({ clientX, clientY }) => (pointer = [clientX, clientY]));

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/**
 * Makes a view of generated text, token by token. Hover, tap or arrow keys open a token's card; a click on its token, or Enter,
 * calls `inspect` of `display` with the token, the ids before it, the fields of its request, the view and the text before it.
 */
export function tokenView() {
  const tokens = [];
  const spans = [];
  const routing = []; // expert ids [layer][k]; row i belongs to token i and arrives with a later chunk
  let at = -1;
  const box = element("div.tokens", { tabIndex: 0, role: "group", ariaLabel: "Generated text; arrow keys move through its tokens" });

  function spanOf(token) {
    const span = element("span.t", token.text);
    if (token.logprob !== null) span.style.setProperty("--surprise", Math.min(1, -token.logprob / 5));
    return span;
  }

  function colour(index) {
    const chosen = tokens[index].routing?.[display.layer];
    if (!chosen) return;
    spans[index].classList.add("routed");
    spans[index].style.setProperty("--hue", hueOf(chosen[0], display.numExperts));
  }

  /** A tap opens the card first, a second one the gates; the pointer of a mouse has opened the card before. */
  function point(target, isClick) {
    const index = spans.indexOf(target);
    if (index < 0) return;
    if (index !== at) show(index, false);
    else if (isClick) inspect(index);
  }

  function inspect(index) {
    const { promptIds, fields } = view.meter;
    const ids = tokens.slice(0, index + 1).map((token) => token.id);
    if (!promptIds || ids.includes(undefined)) return;
    close();
    display.inspect(tokens[index], [...promptIds, ...ids.slice(0, -1)], fields, view, textOf(tokens.slice(0, index)));
  }

  function step(event) {
    if (event.key === "p" && at >= 0) display.card.pin();
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && at >= 0) inspect(at);
    const by = STEPS[event.key];
    if (!by || !tokens.length) return;
    event.preventDefault();
    show(Math.min(Math.max(0, at + by), tokens.length - 1), true);
  }

  function show(index, isSpoken) {
    spans[at]?.classList.remove("at");
    at = index;
    spans[index].classList.add("at");
    if (isSpoken) spans[index].scrollIntoView({ block: "nearest" });
    display.map.showPath(tokens[index].routing ?? null);
    display.card.show(tokens[index], spans[index], display.numExperts, isSpoken);
  }

  function close() {
    spans[at]?.classList.remove("at");
    at = -1;
    display.map.showPath(null);
    display.card.hide();
  }

  on(box, "pointermove", ({ target, clientX, clientY }) => {
    if (clientX !== pointer[0] || clientY !== pointer[1]) point(target, false);
  });
  on(box, "click", ({ target }) => point(target, true));
  on(box, "pointerleave", ({ pointerType }) => pointerType !== "touch" && close()); // a finger always leaves
  on(box, "blur", close);
  on(box, "contextmenu", (event) => {
    if (at < 0 || !getSelection().isCollapsed) return; // a selection has the browser's menu
    event.preventDefault();
    display.card.pin();
  });
  on(box, "keydown", step);

  const view = {
    element: box,
    routing,
    meter: null, // of the request that gives the text

    get text() {
      return textOf(tokens);
    },

    get hasTokens() {
      return tokens.length > 0;
    },

    /** Appends tokens, and the expert ids [token][layer][k] that arrived with them; `meter` belongs to their request. */
    add(added, rows, meter) {
      view.meter = meter;
      const newSpans = added.map(spanOf);
      tokens.push(...added);
      spans.push(...newSpans);
      box.append(...newSpans);
      for (const row of rows) {
        const index = routing.push(row) - 1;
        if (tokens[index]) {
          tokens[index].routing = row;
          colour(index);
          if (index === at) show(index, false); // the card was opened before the experts came
        }
      }
    },

    spelledAt: (index) => tokens[index]?.spelled,
    mark: (index, className) => spans[index].classList.add(className),
    repaint: () => tokens.forEach((_, index) => colour(index)),

    /** Dims the tokens for whose routing `isShown` is false; undefined dims none. */
    dim(isShown) {
      tokens.forEach(({ routing: row }, index) => spans[index].classList.toggle("dimmed", Boolean(isShown && row && !isShown(row))));
    },
  };
  return view;
}

const textOf = (tokens) => tokens.map(({ text }) => text).join("");
