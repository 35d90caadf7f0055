import * as api from "./api.js";
import * as chat from "./text/chat.js";
import * as compare from "./compare/panel.js";
import * as completion from "./text/completion.js";
import { display } from "./text/display.js";
import { button, byId, copy, element, on, radios, toast } from "./dom.js";
import * as sampling from "./controls/sampling.js";
import * as legend from "./text/expert_legend.js";
import * as texts from "./history/history.js";
import { generate } from "./text/generation.js";
import * as experts from "./inside/experts.js";
import * as gates from "./inside/token_gates.js";
import { savePicture } from "./picture.js";
import { asCurl, asPython } from "./text/snippets.js";
import { recordNodes, recordOf } from "./text/summary.js";

const [failure, paper, summary] = ["failure", "paper", "summary"].map(byId);
const END_PX = 48;
const PASSING = [0, 408, 429, 503];
const UNTIL_READY = ["loading", "engine_dead"]; // codes of a server that recovers

// The open panel, its request, and the buttons around it.
export let isReady = false;
export let hasExperts = false;
let modelId = "";
const panels = { completion, chat, compare };
let panel = completion;
let running = null; // AbortController
let send = () => run();
let isWaiting = false; // the last request is sent when the server is ready
let isResuming = false; // it is one that a reload has cut
let isFollowing = true; // the end of the text
let paperTop = 0;

const needExperts = ["mode-compare", "tint-expert", "weights-switch"];
byId("mode").append(...radios("mode", { completion: "Complete", chat: "Chat", compare: "Compare", server: "Server" }));
byId("views").append(...radios("view", { write: "Text", sampling: "Sampling", inside: "Experts" }));
byId("tint").append(...radios("tint", { none: "nothing", surprise: "surprise", expert: "expert" }));
for (const id of needExperts) byId(id).hidden = true;

const isRunning = () => Boolean(running);
const mode = () => Object.keys(panels).find((name) => panels[name] === panel);

/** Reads the model's name and experts from the server. Throws ApiError. */
export async function loadModel() {
  const { data: [model] } = await api.read("v1/models");
  byId("model").textContent = modelId = model.id;
  isReady = model.max_model_len !== null;
  if (!isReady) return;
  display.maxLen = model.max_model_len;
  sampling.limit(model);
  if (model.capabilities?.completion_chat === false) {
    byId("run").disabled = true;
    failure.textContent = "This model writes no text: it turns texts into vectors, at /v1/embeddings.";
    failure.hidden = false;
  }
  if (!model.num_experts) return;
  await experts.refresh();
  hasExperts = true;
  Object.assign(display, { numExperts: model.num_experts, numLayers: model.num_layers, ownK: model.experts_per_token });
  compare.start();
  for (const id of needExperts) byId(id).hidden = false;
  byId("layer").max = display.numLayers - 1;
}

async function run(job = {}) {
  isWaiting = isResuming = false;
  if (running || byId("run").disabled || !sampling.check()) return;
  const requests = requestsOf(job);
  if (!requests) return panel.focus();
  running = new AbortController();
  hideFailure();
  const views = [panel.begin(job)].flat();
  isFollowing = true;
  follow();
  showButtons();
  summary.textContent = "waiting";
  let meters = [];
  try {
    const { signal } = running;
    meters = await Promise.all(requests.map((request, i) => generate(api, request, signal, (...chunk) => onChunk(views[i], ...chunk))));
  } catch (error) {
    running.abort(); // the other columns
    showError(error);
  } finally {
    running = null;
    panel.end(meters[0]);
    showButtons();
    paint();
    follow();
  }
}

function inspect(token, view, text) {
  const onBranch = panel.branchJob && ((other) => start(panel.branchJob(view, text + other)));
  gates.open({ ...token, onBranch });
}

function requestsOf(job) {
  const settings = { ...sampling.values(), routing: hasExperts };
  const mask = experts.mask();
  if (mask) settings.expert_mask = mask;
  return panel.requests(modelId, settings, job);
}

function onChunk(view, tokens, routing, meter) {
  view.add(tokens, routing, meter);
  display.changed(mode());
  follow();
  if (meter.firstTokenMs !== null) showRecord({ ...recordOf(meter, ""), seed: "" });
}

function follow() {
  if (isFollowing) paper.scrollTop = paper.scrollHeight;
  paperTop = paper.scrollTop;
}

/** Scrolling up leaves the end of the text; reaching the end follows it again. */
function onScroll() {
  const isAtEnd = paper.scrollHeight - paper.scrollTop - paper.clientHeight < END_PX;
  if (paper.scrollTop < paperTop) isFollowing = isAtEnd;
  else if (isAtEnd) isFollowing = true;
  byId("down").hidden = isAtEnd;
  paperTop = paper.scrollTop;
}

function showRecord(record) {
  summary.replaceChildren(...(record?.note ? recordNodes(record, sampling.setSeed) : []));
}

function showError(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.ApiError)) throw error;
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  isWaiting = UNTIL_READY.includes(error.code);
  const soon = isWaiting ? " It is sent again as soon as the server is ready." : wait;
  failure.replaceChildren(element("b", error.title), element("p", wordsOf(error) + soon));
  if (PASSING.includes(error.status)) failure.append(button("Try again", () => send(), { className: "" }));
  failure.hidden = false;
  failure.scrollIntoView({ block: "nearest" });
  if (error.status === 401) byId("key-panel").showPopover();
}

function wordsOf({ code, param, message }) {
  if (code !== "context_length_exceeded") return message.replace("; try again after the time in Retry-After", "");
  const what = param === "max_tokens" ? "The text and Max tokens together are" : "The text is";
  return `${what} too long for the model's context of ${display.maxLen.toLocaleString("en")} tokens.`;
}

export function sendWaiting() {
  if (isWaiting) send();
}

function hideFailure() {
  failure.hidden = true;
  isWaiting = isResuming = false;
}

function showButtons() {
  const isBusy = isRunning();
  if (!isBusy) showRecord(panel.record());
  byId("run").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  byId("run-name").textContent = panel.name;
  byId("run-key").textContent = panel === chat ? "⏎" : "Ctrl ⏎";
  byId("again").textContent = panel.repeatLabel;
  byId("again").hidden = isBusy || !panel.canRepeat();
  for (const radio of byId("mode").elements) radio.disabled = isBusy && ![mode(), "server"].includes(radio.value);
}

function show(name) {
  isFollowing = true;
  setTimeout(() => (running || panel.canRepeat() ? follow() : paper.scrollTo(0, 0))); // when it is shown
  const isOpen = mode() === name;
  hideFailure();
  byId(`mode-${name}`).control.checked = true;
  document.body.dataset.tab = "text";
  if (isOpen) return showButtons();
  panel = panels[name];
  texts.note();
  for (const other in panels) byId(other).hidden = name !== other;
  byId("message").hidden = name !== "chat";
  showButtons();
  paint();
  return panel.focus();
}

async function copyAs(name, make) {
  if (!sampling.check()) return;
  const text = make();
  if (text) await copy(text);
  toast(text ? `Copied as ${name}` : "Enter a text first");
}

function snippet(write) {
  const [request] = requestsOf() || [];
  return request && write(request);
}

function settings() {
  const { details: _, ...fields } = sampling.values();
  return { ...fields, off: experts.off() };
}

function setSettings({ off, ...fields }) {
  sampling.setValues(fields);
  experts.setOff(off);
}

/** Returns what a reload opens again, beside the texts of the history. */
function state() {
  const typed = ["prompt", "message", "system"].map((id) => byId(id).value);
  return { typed, compared: compare.link(), isWriting: isRunning() || isResuming, settings: sampling.check() ? settings() : {} };
}

/** Opens it. A text goes on as soon as the server is ready. */
function setState({ mode: name, typed, compared, isWriting, settings: fields }) {
  if (typed) {
    [byId("prompt").value, byId("message").value] = typed;
    chat.setSystem(typed[2]);
    compare.open(compared);
    setSettings(fields);
  }
  if (name) show(name);
  completion.edited();
  isWaiting = isResuming = Boolean(isWriting);
  const job = panel.resumeJob();
  send = () => run(job);
}

/** Returns an address with the open text and its settings in the fragment. */
function link() {
  const text = panel.link();
  const fields = { mode: mode(), text, seed: panel.record()?.seed, ...settings() };
  return text && new URL(`#${encodeURIComponent(JSON.stringify(fields))}`, document.baseURI).href;
}

/** Opens such an address, and forgets it: a reload opens what has become of the text. */
async function openLink() {
  const { hash, pathname, search } = location;
  if (!hash) return;
  history.replaceState(null, "", pathname + search);
  if (running) return toast("Stop the text before you open a link");
  try {
    const { mode: name, text, ...fields } = JSON.parse(decodeURIComponent(hash.slice(1)));
    if (!Object.hasOwn(panels, name)) throw new TypeError("Unknown mode.");
    if (name === "compare") compare.open(text);
    else await texts.putNew(name, text);
    show(name);
    setSettings(fields);
  } catch (error) {
    if (![TypeError, SyntaxError, URIError].includes(error.constructor)) throw error;
    toast("This link is damaged");
  }
}

function shareComparison() {
  const figures = [modelId, ...[...summary.childNodes].map(({ textContent }) => textContent)];
  share("columns", [byId("compare-prompt").value, figures.join(" · ")]);
}

const share = (id, captions) => savePicture(byId(id), captions, () => toast("This is too large for a picture"));

function repeat() {
  if (!running && panel.canRepeat() && sampling.check()) start(panel.repeatJob());
}

function start(job = {}) {
  if (running) return;
  send = () => run(job);
  run(job);
}

function repaint() {
  paper.dataset.tint = document.querySelector("[name=tint]:checked").value;
  byId("layer-row").hidden = paper.dataset.tint !== "expert";
  byId("layer-value").value = display.layer = byId("layer").valueAsNumber;
  for (const { views } of Object.values(panels)) for (const view of views()) view.repaint();
  paint();
}

/** Draws the legend, and once more with the prompt's tokens. */
function paint() {
  paintLegend();
  if (panel === completion && paper.dataset.tint !== "none" && !running) completion.readPrompt().then(paintLegend);
}

function paintLegend() {
  const isHidden = paper.dataset.tint !== "expert";
  byId("expert-legend").hidden = isHidden;
  if (!isHidden) legend.draw(panel.views(), display);
  dim();
}

/** Dims tokens as their views do; without `isShown` those that the legend hides. */
function dim(isShown) {
  const ofLegend = byId("expert-legend").hidden ? undefined : legend.isShown(display.layer);
  for (const view of panel.views()) view.dim(isShown ?? ofLegend);
}

/** Returns whether a key sends: Ctrl+Enter, and in the message field Enter without Shift. */
function isSend({ key, ctrlKey, metaKey, shiftKey, isComposing, target }) {
  if (key !== "Enter" || isComposing) return false;
  return ctrlKey || metaKey || (target.id === "message" && !shiftKey);
}

Object.assign(display, { inspect, run: start, repaint, views: () => panel.views() });
const stop = () => running?.abort();

on("composer", "submit", (event) => {
  event.preventDefault();
  start();
});
on("write", "input", hideFailure);
on(paper, "scroll", onScroll);
on("down", "click", () => paper.scrollTo(0, paper.scrollHeight));
on("stop", "click", stop);
on("again", "click", repeat);
on("mode", "change", ({ target }) => target.value !== "server" && show(target.value));
for (const [text, make, name = text] of [["curl", () => snippet(asCurl)], ["Python", () => snippet(asPython)], ["link", link, "a link"]]) {
  byId("copies").append(button(text, () => copyAs(name, make), { id: `copy-${text.toLowerCase()}` }));
}
on("picture", "click", shareComparison);
on("experts-picture", "click", () => share("experts", [modelId]));
on(window, "hashchange", openLink);
on("tint", "change", repaint);
on("layer", "input", repaint);
on(document, "keydown", (event) => {
  if (document.body.dataset.tab === "server") return;
  if (isSend(event)) {
    event.preventDefault();
    start();
  }
  if (event.key === "Escape" && !event.target.closest("[popover]")) stop();
});
experts.listen((place) => dim(place && ((routing) => routing[place[0]].includes(place[1]))), () => (panel === chat ? repeat() : start()));
showButtons();
texts.restore({ completion, chat }, { mode, show, showButtons, isRunning, state, setState }).then(openLink);
