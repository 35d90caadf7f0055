import * as api from "../api.js";
import { byId, element, on } from "../dom.js";
import { display } from "../text/display.js";
import { percent } from "../words.js";
import { countExperts } from "./answer_experts.js";
import { expertPanel } from "./expert_panel.js";

const FULL_HEAT = 4; // the hottest colour: this many times the even share
const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

// The heat map: a row per layer, a column per expert. A click or Enter pins a panel.
let onHover; // gets [layer, expert] or null
let onSwitch;
const table = byId("heat");
const readout = byId("readout");
const period = byId("window");
let cells = []; // [layer][expert]
let layers = [];
let pinned = null; // [layer, expert]
let disabled = new Set(); // "layer expert"

export function listen(hovered, switched) {
  onHover = hovered;
  onSwitch = switched;
}

/** Returns [layers][experts], false where one is off; undefined if none is. */
export function mask() {
  if (!disabled.size) return undefined;
  return cells.map((row, layer) => row.map((_, expert) => !disabled.has(`${layer} ${expert}`)));
}

/** Returns the experts that are off, as "layer expert"; undefined if none is. */
export const off = () => (disabled.size ? [...disabled] : undefined);

export function setOff(names = []) {
  disabled = new Set(names);
  if (layers.length) draw();
}

export async function refresh() {
  const { value } = period;
  const report = value === "answer" ? ofAnswer() : (await api.read(`experts${value}`)).layers;
  if (value !== period.value) return;
  layers = report;
  byId("experts").hidden = layers.length === 0;
  if (layers.length) draw();
}

function ofAnswer() {
  const { numExperts, numLayers, views } = display;
  return countExperts(views().flatMap(({ meter, routed }) => (meter?.numTokens ? routed : [])), numLayers, numExperts);
}

export function showPath({ routing, weights } = {}) {
  cells.forEach((row, layer) => row.forEach((cell, expert) => {
    const rank = routing?.[layer]?.indexOf(expert) ?? -1;
    cell.classList.toggle("path", rank >= 0);
    cell.dataset.weight = weights && rank >= 0 ? Math.round(100 * weights[layer][rank]) : ""; // percent
  }));
}

function draw() {
  const numExperts = layers[0].share.length;
  if (cells.length !== layers.length) build(numExperts);
  layers.forEach(({ share, tokens }, layer) =>
    share.forEach((part, expert) => {
      const cell = cells[layer][expert];
      cell.style.setProperty("--heat", Math.min(1, (part * numExperts) / FULL_HEAT));
      cell.dataset.tokens = tokens[expert];
      cell.classList.toggle("off", disabled.has(`${layer} ${expert}`));
      cell.firstChild.textContent = `layer ${layer}, expert ${expert}: ${percent(part)}`;
    }),
  );
  byId("legend-top").textContent = `${percent(Math.min(1, FULL_HEAT / numExperts))} or more`;
  if (!pinned) readout.textContent = describeAll();
  else if (!readout.contains(document.activeElement)) showPanel();
}

function build(numExperts) {
  const experts = Array.from({ length: numExperts }, (_, expert) => element("th", { scope: "col" }, `${expert}`));
  const head = element("tr", element("td"), experts);
  cells = layers.map(() => experts.map(() => element("td", { tabIndex: -1 }, element("span.unseen"))));
  cells[0][0].tabIndex = 0; // the map's only stop
  const rows = cells.map((row, layer) => element("tr", element("th", { scope: "row" }, `${layer}`), row));
  const caption = element("caption.unseen", "Share of the tokens of each expert, by layer; Enter opens an expert");
  table.replaceChildren(caption, element("thead", head), element("tbody", rows));
  table.style.setProperty("--layers", rows.length);
}

function placeOf(target) {
  const cell = target?.closest("tbody td");
  const layer = cells.findIndex((row) => row.includes(cell));
  return layer < 0 ? null : [layer, cells[layer].indexOf(cell)];
}

function onKey(event) {
  const place = placeOf(event.target);
  if (!place) return;
  if (event.key === "Enter" || event.key === " ") pin(place);
  else if (event.key === "Escape" && pinned) pin(null);
  else if (STEPS[event.key]) move(place, STEPS[event.key]);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function move([layer, expert], [down, right]) {
  const next = cells[layer + down]?.[expert + right];
  if (!next) return;
  cells[layer][expert].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function pin(place) {
  if (pinned) cellOf(pinned).classList.remove("pinned");
  pinned = String(place) === String(pinned) ? null : place;
  if (pinned) showPanel();
  else readout.textContent = describeAll();
}

function showPanel() {
  const [layer, expert] = pinned;
  cellOf(pinned).classList.add("pinned");
  readout.replaceChildren(...expertPanel(layers[layer], expert, {
    isOff: disabled.has(`${layer} ${expert}`), onSwitch: () => toggle(layer, expert), onClose: () => pin(null),
  }));
}

function toggle(layer, expert) {
  const name = `${layer} ${expert}`;
  if (!disabled.delete(name)) disabled.add(name);
  cellOf(pinned).classList.toggle("off", disabled.has(name));
  showPanel();
  onSwitch();
}

const cellOf = ([layer, expert]) => cells[layer][expert];

function describeAll() {
  const { layer, imbalance } = layers.reduce((worst, entry) => (entry.imbalance > worst.imbalance ? entry : worst));
  const found = imbalance ? `Least balanced: in layer ${layer} one expert has ${imbalance.toFixed(1)} times the even share` : "No tokens in this period";
  return `${found}. Click an expert to look into it.`;
}

on(table, "pointerover focusin", ({ target }) => onHover(placeOf(target)));
on(table, "pointerleave focusout", () => onHover(null));
on(table, "click", (event) => pin(placeOf(event.target)));
on(table, "keydown", onKey);
on(period, "change", refresh);
on("map-size", "click", ({ target }) => (target.ariaPressed = `${target.ariaPressed === "false"}`));
