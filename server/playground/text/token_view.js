import { ignore } from "../api.js";
import { byId, element, on, toast } from "../dom.js";
import { readGates } from "../inside/token_gates.js";
import { hueOf } from "../words.js";
import { display } from "./display.js";

let pointer = []; // where the pointer was last seen: text that moves below a resting one opens no card
on(window, "pointermove", ({ clientX, clientY }) => (pointer = [clientX, clientY]));

const REST_MS = 250; // on a token, before its weights are read
let weighing = {}; // the only request for weights: its token, controller and layers
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** Makes a view of text by tokens: hover, tap or arrow keys open a card; a click then, or Enter, the gates. */
export function tokenView(name = "Generated text") {
  const tokens = [];
  const spans = [];
  const routing = []; // expert ids [layer][k] of token i, which arrive with a later chunk
  let at = -1;
  let timer;
  const box = element("div.tokens", { tabIndex: 0, role: "group", ariaLabel: `${name}; arrow keys move through its tokens` });

  function append(token) {
    const span = element("span.t", token.text);
    if (token.logprob !== null) span.style.setProperty("--surprise", Math.min(1, -token.logprob / 5));
    tokens.push(token);
    spans.push(span);
    box.append(span);
  }

  function colour(index) {
    const chosen = tokens[index].routing?.[display.layer];
    if (!chosen) return;
    spans[index].classList.add("routed");
    spans[index].style.setProperty("--hue", hueOf(chosen[0], display.numExperts));
  }

  /** A tap opens the card first, a second one the gates; a mouse has opened the card before. */
  function point(target, isClick) {
    const index = spans.indexOf(target);
    if (index < 0) return;
    if (index !== at) show(index, false);
    else if (isClick) inspect(index);
  }

  /** Returns a token with what `readGates` needs; null for the first one, and if an id up to it is unknown. */
  function withIds(index) {
    const { promptIds, fields } = view.meter;
    const ids = [...(promptIds ?? [undefined]), ...tokens.slice(0, index + 1).map(({ id }) => id)];
    if (ids.length < 2 || ids.includes(undefined)) return null;
    const { model, experts_per_token: k = display.ownK, expert_mask: mask } = fields;
    return { ...tokens[index], before: ids.slice(0, -1), k, mask, model };
  }

  function inspect(index) {
    const token = withIds(index);
    if (!token) return;
    close();
    display.inspect(token, view, textOf(tokens.slice(0, index)));
  }

  async function weigh(index, isSpoken) {
    const token = withIds(index);
    if (!token || token.weights) return;
    if (weighing.token !== tokens[index]) {
      weighing.request?.abort();
      const request = new AbortController();
      weighing = { token: tokens[index], request, layers: readGates(token, token.k, request.signal).catch(stopWeighing) };
    }
    const layers = await weighing.layers;
    if (!layers) return;
    tokens[index].routing = layers.map(({ chosen }) => chosen);
    tokens[index].weights = layers.map(({ weights }) => weights);
    if (index === at && box.isConnected) show(index, isSpoken);
  }

  function step(event) {
    if (event.key === "p" && at >= 0) display.card.pin();
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && at >= 0) inspect(at);
    const by = STEPS[event.key];
    if (!by) return;
    event.preventDefault();
    for (let next = at + by; tokens[next]; next += by) if (tokens[next].text) return show(next, true);
  }

  function show(index, isSpoken) {
    spans[at]?.classList.remove("at");
    at = index;
    spans[index].classList.add("at");
    if (isSpoken) spans[index].scrollIntoView({ block: "nearest" });
    display.map.showPath(tokens[index]);
    display.card.show(tokens[index], spans[index], display.numExperts, isSpoken);
    clearTimeout(timer);
    if (byId("weights").checked) timer = setTimeout(weigh, REST_MS, index, isSpoken);
  }

  function close() {
    if (at < 0) return;
    spans[at].classList.remove("at");
    at = -1;
    clearTimeout(timer);
    display.map.showPath();
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
    close,
    meter: null, // of the request that gives the text

    get text() {
      return textOf(tokens);
    },

    get hasTokens() {
      return tokens.length > 0;
    },

    /** Tokens whose experts are known. */
    get routed() {
      return tokens.filter(({ routing: row }) => row);
    },

    /** Appends tokens and expert ids [token][layer][k]. */
    add(added, rows, meter) {
      view.meter = meter;
      added.forEach(append);
      for (const row of rows) {
        const index = routing.push(row) - 1;
        if (tokens[index]) {
          tokens[index].routing = row;
          colour(index);
          if (index === at) show(index, false);
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

function stopWeighing(error) {
  if (error.name === "AbortError") return;
  ignore(error);
  weighing = {};
  byId("weights").checked = false;
  toast(`No weights: ${error.message}`);
}
