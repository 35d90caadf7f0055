import * as api from "../api.js";
import { byId, element, on } from "../dom.js";
import { percent } from "../words.js";
import { expertPanel } from "./expert_panel.js";

const FULL_HEAT = 4; // the hottest colour: this many times the even share
const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

// The live heat map of the experts' shares: a row per layer, a column per expert. A click or Enter pins an expert's panel.
let onHover; // called with [layer, expert] or null
let onSwitch; // called when an expert was switched off or on
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

/** Returns [layers][experts], false for the experts that are switched off; undefined if none is. */
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
  const query = period.value && `?window=${period.value}`;
  ({ layers } = await api.read(`experts${query}`));
  byId("experts").hidden = layers.length === 0;
  if (layers.length) draw();
}

/** Marks a token's way through the layers: its expert ids, [layer][k]; null removes it. */
export function showPath(routing) {
  cells.forEach((row, layer) =>
    row.forEach((cell, expert) => cell.classList.toggle("path", routing?.[layer]?.includes(expert) ?? false)));
}

function draw() {
  const numExperts = layers[0].share.length;
  if (cells.length !== layers.length) build(numExperts);
  layers.forEach(({ share, tokens }, layer) =>
    share.forEach((part, expert) => {
      const cell = cells[layer][expert];
      cell.style.setProperty("--heat", Math.min(1, ((part ?? 0) * numExperts) / FULL_HEAT));
      cell.dataset.tokens = tokens[expert];
      cell.classList.toggle("off", disabled.has(`${layer} ${expert}`));
      cell.firstChild.textContent = `layer ${layer}, expert ${expert}: ${percent(part ?? 0)}`;
    }),
  );
  byId("legend-top").textContent = `${percent(Math.min(1, FULL_HEAT / numExperts))} or more`;
  if (!pinned) readout.textContent = describeAll();
  else if (!readout.contains(document.activeElement)) showPanel();
}

function build(numExperts) {
  const experts = Array.from({ length: numExperts }, (_, expert) => element("th", { scope: "col" }, `${expert}`));
  const head = element("tr", element("td"), ...experts);
  cells = layers.map(() =>
    experts.map(() => element("td", { tabIndex: -1 }, element("span.unseen"))));
  cells[0][0].tabIndex = 0; // one stop for the whole map; arrow keys move inside it
  const rows = cells.map((row, layer) => element("tr", element("th", { scope: "row" }, `${layer}`), ...row));
  const caption = element("caption.unseen", "Share of the tokens of each expert, by layer; Enter opens an expert");
  table.replaceChildren(caption, element("thead", head), element("tbody", ...rows));
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

/** Opens the panel of a place; the place of the open panel, or null, closes it. */
function pin(place) {
  const isOpen = place && pinned && place.every((number, i) => number === pinned[i]);
  if (pinned) cellOf(pinned).classList.remove("pinned");
  pinned = isOpen ? null : place;
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
  const total = layers[0].tokens.reduce((sum, count) => sum + count, 0);
  const more = "Click an expert to look into it.";
  if (total === 0) return `No tokens in this period. ${more}`;
  const imbalances = layers.map(({ imbalance }) => imbalance ?? 1);
  const worst = imbalances.indexOf(Math.max(...imbalances));
  return `Least balanced: in layer ${worst} one expert has ${imbalances[worst].toFixed(1)} times the even share. ${more}`;
}

on(table, "pointerover focusin", ({ target }) => onHover(placeOf(target)));
on(table, "pointerleave focusout", () => onHover(null));
on(table, "click", (event) => pin(placeOf(event.target)));
on(table, "keydown", onKey);
on(period, "change", refresh);
