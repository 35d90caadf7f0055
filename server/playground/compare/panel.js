import { byId, on } from "../dom.js";
import { display } from "../text/display.js";
import { completionRequest } from "../text/request.js";
import { recordOf } from "../text/summary.js";
import { newColumn } from "./column.js";

const MAX_COLUMNS = 4;
const MIN_COLUMNS = 2;
const FIRST_KS = [1, 2, 4];

// One prompt and one seed, side by side with different numbers of experts.
export const name = "Compare";
export const repeatLabel = "";
const field = byId("compare-prompt");
const box = byId("columns");
const addButton = byId("add-column");
const columns = [];
let numShared = 0; // first tokens that all texts have in common
let isDifferent = false; // behind them
let linked;

export const views = () => columns.map((column) => column.view).filter(Boolean);
export const canRepeat = () => false;
export const link = () => ({ prompt: field.value, columns: columns.length ? columns.map(({ settings }) => settings) : linked });
export const resumeJob = () => ({});

export function start() {
  const first = (linked ?? FIRST_KS.filter((k) => k <= display.numExperts).map((k) => [k])).slice(0, MAX_COLUMNS);
  for (const column of columns.splice(0)) column.element.remove();
  for (const settings of first) addColumn(settings);
  while (columns.length < MIN_COLUMNS) addColumn([1]);
}

export function open(shared) {
  field.value = shared.prompt;
  linked = shared.columns;
  if (display.numExperts) start();
}

/** Returns a request per column, or null without a prompt. All have one seed. */
export function requests(model, sampling) {
  if (!field.value) return null;
  const { experts_per_token: _, seed = `${Math.floor(Math.random() * Number.MAX_SAFE_INTEGER)}`, ...shared } = sampling;
  const fields = columns.map((column) => column.fields);
  if (fields.includes(null)) return null;
  return fields.map((own) => completionRequest(model, field.value, { ...shared, ...own, seed, details: true }));
}

export function begin() {
  for (const column of columns) column.begin();
  [numShared, isDifferent] = [0, false];
  addButton.disabled = true;
  return columns.map((column) => ({
    add: (tokens, routing, meter) => {
      column.add(tokens, routing, meter);
      markShared();
    },
  }));
}

function markShared() {
  while (!isDifferent) {
    const spelled = views().map((view) => view.spelledAt(numShared));
    if (spelled.includes(undefined)) return;
    isDifferent = spelled.some((token) => token !== spelled[0]);
    for (const view of views()) view.mark(numShared, isDifferent ? "diverged" : "shared");
    if (!isDifferent) numShared += 1;
  }
}

/** Returns the figures of the first column, and what was found in all. */
export function record() {
  const meters = views().map(({ meter }) => meter);
  if (meters[0]) return recordOf(meters[0], meters.every((meter) => meter?.finishReason) ? finding() : "stopped");
}

function finding() {
  if (!isDifferent) return "all tokens are the same";
  return numShared ? `the first ${numShared} tokens are the same` : "they differ from the first token on";
}

export function focus() {
  if (!field.value) field.value = byId("prompt").value || "It was not in her power to";
  field.focus();
}

function addColumn(settings) {
  const column = newColumn(settings, remove);
  columns.push(column);
  box.append(column.element);
  end();
}

function remove(column) {
  columns.splice(columns.indexOf(column), 1);
  column.element.remove();
  end();
}

export function end() {
  addButton.disabled = columns.length === MAX_COLUMNS;
  box.style.setProperty("--columns", columns.length);
  for (const { element } of columns) element.querySelector(".remove").hidden = columns.length === MIN_COLUMNS;
}

on(addButton, "click", () => addColumn([Math.min(2 ** columns.length, display.numExperts)]));
