import * as api from "../api.js";
import { button, byId, closeButton, element, on, radios } from "../dom.js";
import { display } from "../text/display.js";
import { percent, visible } from "../words.js";
import { layerDetail, layerRows, paintLayers } from "./gate_views.js";

const UNWRITABLE = /^$|^<\/?s>$|\ufffd/; // tokens that no text contains

// The dialog about one token, whose gates the server computes for each number of experts.
const dialog = byId("gates");
let token = null;
const replies = new Map(); // layers by experts per token
let k = 0;
let layer = 0;
let group = null;
const detail = element("div.gate-detail");
const status = element("p.gate-status", { role: "status" });

/** Reads a token again, behind the ids `before`: {logits, chosen, weights} of each layer. Throws ApiError. */
export async function readGates({ model, before, id, mask }, k, signal) {
  const body = {
    model, prompt: before, max_tokens: 2, allowed_token_ids: [id], ignore_eos: true, temperature: 0,
    gate_logits: true, experts_per_token: k, ...(mask && { expert_mask: mask }),
  };
  const { choices: [choice] } = await api.ask("v1/completions", body, signal);
  return choice.gate_logits[0].map((logits, i) => ({ logits, chosen: choice.expert_routing[0][i], weights: choice.expert_weights[0][i] }));
}

/** Opens the dialog on a token; `onBranch` goes on with one of `others`. */
export function open(opened) {
  token = opened;
  replies.clear();
  layer = Math.min(layer, display.numLayers - 1);
  ({ k } = token);
  group = layerRows(display.numLayers, display.numExperts, layer, (chosen) => {
    layer = chosen;
    show();
  });
  detail.replaceChildren();
  dialog.replaceChildren(head(), ...branches(), status, element("div.gate-body", group, detail));
  dialog.showModal();
  return read();
}

function head() {
  return element("div.gate-head",
    element("h2", { id: "gates-title" }, "Inside ", element("code", visible(token.spelled))), numbers(), closeButton(() => dialog.close()));
}

function branches() {
  const { others, onBranch, spelled } = token;
  const offered = onBranch ? others.filter((other) => other.spelled !== spelled && !UNWRITABLE.test(other.spelled)) : [];
  const buttons = offered.map((other) => button(`${visible(other.spelled)} ${percent(Math.exp(other.logprob))}`, () => {
    dialog.close();
    onBranch(other.spelled);
  }, { className: "mono" }));
  return buttons.length ? [element("p.gate-branches", "Go on with", buttons)] : [];
}

/** Returns the choice of experts per token: 1, the model's, the text's, all. */
function numbers() {
  const { numExperts, ownK } = display;
  const most = Math.min(numExperts, ...(token.mask ?? []).map((allowed) => allowed.filter(Boolean).length));
  const offered = [...new Set([1, ownK, token.k, numExperts])].filter((number) => number <= most).sort((a, b) => a - b);
  const choice = element("fieldset.segmented", { ariaLabel: "Experts per token" },
    ...radios("gate-k", Object.fromEntries(offered.map((number) => [number, `${number}`])), `${k}`));
  choice.querySelector(":checked").autofocus = true;
  on(choice, "change", (event) => {
    k = Number(event.target.value);
    read();
  });
  return element("div.gate-numbers", element("span", { ariaHidden: "true" }, "Experts per token"), choice);
}

async function read() {
  const [asked, askedK] = [token, k];
  const isCurrent = () => token === asked && k === askedK;
  status.textContent = "The server computes the token …";
  try {
    const layers = replies.get(k) ?? (await readGates(asked, askedK));
    if (token === asked) replies.set(askedK, layers);
    if (isCurrent()) show();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (isCurrent()) status.textContent = `${error.title}: ${error.message}`;
  }
}

function show() {
  const layers = replies.get(k);
  if (!layers) return;
  status.textContent = "";
  paintLayers(group, layers);
  detail.replaceChildren(...layerDetail(layers[layer], layer, k, token.mask));
}

on(dialog, "keydown", (event) => event.stopPropagation()); // Escape closes it, and stops no text
