import { ApiError } from "../api.js";
import { button, closeButton, element, on } from "../dom.js";
import { percent, visible } from "../words.js";
import { layerDetail, layerRows, paintLayers } from "./gate_views.js";

const UNWRITABLE = /^$|^<\/?s>$|\ufffd/; // tokens that no text contains

/**
 * Dialog about one token of a text: gate logits of each layer, the experts that they choose, and their weights, which
 * the server computes again for each number of experts per token.
 */
export class TokenGates {
  #api;
  #dialog;
  #token = null;
  #replies = new Map(); // layers by experts per token
  #k = 0;
  #layer = 0;
  #group = null; // of the layers
  #detail = element("div.gate-detail");
  #status = element("p.gate-status", { role: "status" });

  constructor(api, dialog) {
    this.#api = api;
    this.#dialog = dialog;
    on(dialog, "click", (event) => isOnBackdrop(event, dialog) && dialog.close());
    on(dialog, "keydown", (event) => event.stopPropagation()); // Escape closes it, and stops no text
  }

  /**
   * Opens the dialog. `token` is {spelled, id, others, onBranch, before, k, mask, model, ownK, numExperts, numLayers}: `before` are the
   * ids of all tokens before it, `k` and `mask` those of its text (undefined: the model's own), `ownK` the model's k.
   * `onBranch`, if there is one, goes on with one of the alternatives `others`.
   */
  open(token) {
    this.#token = token;
    this.#replies.clear();
    this.#layer = Math.min(this.#layer, token.numLayers - 1);
    this.#k = token.k ?? token.ownK;
    this.#group = layerRows(token.numLayers, token.numExperts, this.#layer, (layer) => {
      this.#layer = layer;
      this.#show();
    });
    this.#detail.replaceChildren();
    this.#dialog.replaceChildren(this.#head(), ...this.#branches(), this.#status, element("div.gate-body", this.#group, this.#detail));
    this.#dialog.showModal();
    return this.#read();
  }

  #head() {
    return element("div.gate-head",
      element("h2", { id: "gates-title" }, "Inside ", element("code", visible(this.#token.spelled))), this.#numbers(), closeButton(() => this.#dialog.close()));
  }

  #branches() {
    const { others, onBranch, spelled } = this.#token;
    const offered = onBranch ? others.filter((other) => other.spelled !== spelled && !UNWRITABLE.test(other.spelled)) : [];
    const buttons = offered.map((other) => button(`${visible(other.spelled)} ${percent(Math.exp(other.logprob))}`, () => {
      this.#dialog.close();
      onBranch(other.spelled);
    }, { className: "mono" }));
    return buttons.length ? [element("p.gate-branches", "Go on with", ...buttons)] : [];
  }

  /** Returns the choice of experts per token: 1, the model's own number, the text's, all that the mask allows. */
  #numbers() {
    const { numExperts, ownK, k, mask } = this.#token;
    const most = mask ? Math.min(...mask.map((layer) => layer.filter(Boolean).length)) : numExperts;
    const numbers = [...new Set([1, ownK, k ?? ownK, numExperts])].filter((number) => number <= most).sort((a, b) => a - b);
    const labels = numbers.map((number) => element("label",
      element("input", { type: "radio", name: "gate-k", value: number, checked: number === this.#k, autofocus: number === this.#k }), element("span", `${number}`)));
    const group = element("fieldset.segmented", { ariaLabel: "Experts per token" }, ...labels);
    on(group, "change", (event) => {
      this.#k = Number(event.target.value);
      this.#read();
    });
    return element("div.gate-numbers", element("span", { ariaHidden: "true" }, "Experts per token"), group);
  }

  /** Reads the layers for the chosen k, once, and shows them. */
  async #read() {
    const [token, k] = [this.#token, this.#k];
    const isCurrent = () => this.#token === token && this.#k === k;
    if (!this.#replies.has(k)) {
      this.#status.textContent = "The server computes the token …";
      try {
        const layers = await this.#request(token, k);
        if (this.#token === token) this.#replies.set(k, layers);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (isCurrent()) this.#status.textContent = `${error.title}: ${error.message}`;
        return;
      }
    }
    if (isCurrent()) this.#show();
  }

  /** Lets the server choose this token again and one more: a token's gates come when it is read. */
  async #request({ model, before, id, mask }, k) {
    const body = {
      model, prompt: before, max_tokens: 2, allowed_token_ids: [id], ignore_eos: true, temperature: 0,
      gate_logits: true, experts_per_token: k, ...(mask && { expert_mask: mask }),
    };
    const response = await this.#api.post("v1/completions", JSON.stringify(body));
    const [choice] = (await response.json()).choices;
    return choice.gate_logits[0].map((logits, layer) => ({
      logits, chosen: choice.expert_routing[0][layer], weights: choice.expert_weights[0][layer],
    }));
  }

  #show() {
    const layers = this.#replies.get(this.#k);
    if (!layers) return;
    this.#status.textContent = "The gate gives every expert a logit; the largest logits choose; their softmax weighs the experts' outputs.";
    paintLayers(this.#group, layers);
    this.#detail.replaceChildren(...layerDetail(layers[this.#layer], this.#layer, this.#k, this.#token.mask));
  }
}

/** Returns whether a click hit the backdrop, whose target is the dialog too. */
function isOnBackdrop({ target, clientX: x, clientY: y }, dialog) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  return target === dialog && (x < left || x > right || y < top || y > bottom);
}
