import * as api from "../api.js";
import { branchArrows, button, byId, element, on } from "../dom.js";
import { checkVersions } from "./conversation.js";
import { display } from "./display.js";
import { completionRequest } from "./request.js";
import { recordOf } from "./summary.js";
import { tokenView } from "./token_view.js";
import { parsePrompt } from "./tokens.js";

const EXAMPLES = [
  ["Austen", "It was not in her power to"],
  ["Python", "def read_lines(path):\n    "],
];

// The panel of a completion: the prompt, directly followed by the generated text.
export const name = "Complete";
export const repeatLabel = "Continue";
const field = byId("prompt");
const copy = byId("prompt-copy"); // invisible: the generated text starts where it ends
const output = byId("continuation");
const promptTokens = byId("prompt-tokens");
const examples = byId("completion-examples");
let versions = []; // {prompt, text, note, seed} or {prompt, view}
let shown = null;
let previous = null; // the one that the running request replaces
let cut = ""; // prompt whose text a reload has cut before its first token

export const views = () => [shown?.promptView, shown?.view].filter(Boolean);
export const record = () => shown && recordIn(shown);
export const canRepeat = () => Boolean(shown && textOf(shown));
export const repeatJob = () => ({ prompt: field.value + textOf(shown) });
export const resumeJob = () => ({ prompt: cut || (shown?.prompt === field.value ? field.value + textOf(shown) : "") });
export const branchJob = (view, text) => ({ prompt: (versions.find((version) => version.view === view)?.prompt ?? "") + text });
export const focus = () => field.focus();

export const requests = (model, sampling, { prompt = field.value } = {}) => prompt && [completionRequest(model, prompt, sampling)];

export function begin({ prompt } = {}) {
  examples.hidden = true;
  if (prompt !== undefined && prompt !== field.value) write(prompt);
  previous = shown;
  versions.push({ prompt: field.value, view: tokenView() });
  show(versions.at(-1));
  display.changed("completion");
  return shown.view;
}

export function end() {
  if (shown && !textOf(shown)) {
    versions.splice(versions.indexOf(shown), 1);
    show(previous);
  }
  previous = null;
  display.changed("completion");
}

export function entry() {
  if (!versions.length) return null;
  return { name: versions.at(-1).prompt, versions: versions.map(storedOf), at: versions.indexOf(shown) };
}

/** Opens stored texts, or none. Throws TypeError. */
export function open(stored) {
  const texts = stored ? stored.versions : [];
  checkVersions(texts);
  versions = texts.filter(({ text }) => text);
  examples.hidden = stored !== null;
  const { prompt = "", text } = texts[stored?.at] ?? {};
  cut = text ? "" : prompt;
  write(prompt);
  if (versions.length) openVersion(Number(stored.at));
}

export function link() {
  const prompt = field.value;
  const version = shown?.prompt === prompt ? storedOf(shown) : { prompt, text: "" };
  return prompt ? { versions: [version], at: 0 } : null;
}

/** Reads the tokens of the prompt, once, and shows them below the field. */
export async function readPrompt() {
  const version = shown;
  const { fields } = version?.view?.meter ?? {};
  if (!fields?.logprobs || version.promptView) return;
  const view = (version.promptView = tokenView("Prompt"));
  const scoring = { ...fields, stream: false, stream_options: undefined, echo: true, max_tokens: 0 };
  const reply = await api.ask("v1/completions", scoring).catch(api.ignore);
  if (!reply) return void delete version.promptView;
  const [choice] = reply.choices;
  view.add(parsePrompt(choice), choice.expert_routing ?? [], { fields, promptIds: [] });
  edited();
}

function openVersion(place) {
  const version = versions[place] ?? versions.at(-1);
  write(version.prompt);
  show(version);
  display.repaint();
}

/** Keeps the text, dimmed: it follows another prompt than the one that is written now. */
export function edited() {
  copy.textContent = field.value;
  const isStale = shown !== null && shown.prompt !== field.value;
  output.classList.toggle("stale", isStale);
  const view = shown?.promptView;
  view?.close();
  promptTokens.replaceChildren(...(view?.hasTokens && !isStale ? [view.element] : []));
}

function write(prompt) {
  field.value = prompt;
  show(null);
}

function show(version) {
  for (const view of views()) view.close();
  shown = version;
  output.replaceChildren(...(version ? [version.view?.element ?? element("span.tokens", version.text)] : []));
  edited();
  const place = version ? versions.indexOf(version) : versions.length;
  branchArrows(byId("versions"), place, versions.length, "text", (by) => {
    openVersion(place + by);
    display.changed("completion");
  });
}

const textOf = ({ view, text }) => (view ? view.text : text);
const recordIn = ({ view, note, seed }) => (view?.hasTokens ? recordOf(view.meter) : { note, seed });
const storedOf = (version) => ({ prompt: version.prompt, text: textOf(version), ...recordIn(version) });

for (const [title, prompt] of EXAMPLES) {
  examples.append(button(title, () => display.run({ prompt }), { className: "example" }));
}
on(field, "input", edited);
on(field, "pointermove pointerleave", (event) => { // the field lies on the tokens
  const below = event.type === "pointermove" && document.elementsFromPoint(event.x, event.y).find((node) => node.matches("#prompt-tokens .t"));
  if (below) below.dispatchEvent(new PointerEvent("pointermove", event));
  else promptTokens.firstChild?.dispatchEvent(new PointerEvent("pointerleave"));
});
