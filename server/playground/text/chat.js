import { button, byId, on } from "../dom.js";
import { Conversation, messagesTo, resultMessage } from "./conversation.js";
import { display } from "./display.js";
import { chatRequest } from "./request.js";
import { newTurn } from "./turn.js";

const EXAMPLES = [
  "What can you do?", "Count from 3 to 7.",
  "Answer in JSON: Mary is 20 years old.",
];
const OF_WHOLE_ANSWERS = ["tools", "tool_choice", "response_format", "structured_outputs"]; // useless for the rest of one

// The panel of a conversation. A job is {} for the message in the field, {answer: user message}, {edit: user message, text},
// {send: answer, results}, {resume: answer} or {branch: answer, text}.
export const name = "Send";
export const repeatLabel = "Answer again";
let conversation = new Conversation();
const turns = []; // of the open path
let added = []; // by the running request: {node, before}, a message and the branch that was open
let lastJob = {};
let running = null;
let cut = null; // message whose answer a reload has cut before its first token
const box = byId("turns");
const field = byId("message");
const system = byId("system");
const examples = byId("chat-examples");

export const views = () => turns.flatMap((turn) => turn.views);
export const record = () => conversation.last;
export const canRepeat = () => turns.length > 0;
export const focus = () => field.focus();
export const link = () => entry();
const actions = { step, edit, remove, focus, run: (job) => display.run(job) };

export function repeatJob() {
  const { last } = conversation;
  return { answer: last.role === "assistant" ? last.parent : last };
}

/** Returns the job that goes on after a reload: calls cannot be continued. */
export function resumeJob() {
  const { last } = conversation;
  if (cut) return { answer: cut };
  return last.role === "assistant" && !last.calls.length ? { resume: last } : repeatJob();
}

/** Returns the job that goes on from `text`, in place of what is in `view` up to there. */
export function branchJob(view, text) {
  const turn = turns.find((one) => one.views.includes(view));
  return { branch: turn.node, text: (turn.textBefore(view) + text).trimStart() };
}

export function requests(model, sampling, job = {}) {
  const { path, root } = conversation;
  if (![...path, root, undefined].includes(job.resume ?? job.answer)) return false; // another branch was opened meanwhile
  const content = system.value.trim();
  const messages = [...(content ? [{ role: "system", content }] : []), ...messagesOf(job)];
  if (job.resume || job.branch) {
    const rest = Object.fromEntries(Object.entries(sampling).filter(([field]) => !OF_WHOLE_ANSWERS.includes(field)));
    return [chatRequest(model, messages, { ...rest, continue_final_message: true, add_generation_prompt: false })];
  }
  return ["user", "tool"].includes(messages.at(-1)?.role) && [chatRequest(model, messages, sampling)];
}

export function begin(job = {}) {
  examples.hidden = true;
  box.classList.add("busy");
  added = [];
  lastJob = job;
  if (job.branch) add(job.branch.parent, "assistant", job.text);
  else if (!job.resume) add(job.answer ?? (job.send ? addResults(job) : addQuestion(job)), "assistant");
  draw();
  running = turns.find((turn) => turn.node === (job.resume ?? conversation.last));
  running.begin();
  display.changed("chat");
  return running;
}

/** Ends the running answer. One without tokens leaves everything as it was. */
export function end(meter) {
  box.classList.remove("busy");
  const { node } = running;
  if (!running.end(meter?.finishReason === "length" || !meter)) undo();
  else if (!lastJob.resume) lastJob.answer ??= node.parent; // another try answers the same message
  running = null;
  added = [];
  display.changed("chat");
}

export function entry() {
  const { path } = conversation;
  if (!path.length) return null;
  running?.store();
  return { name: path[0].text, system: system.value, tree: conversation.toTree() };
}

/** Opens a stored conversation, or an empty one. Throws TypeError. */
export function open(stored) {
  conversation = stored ? Conversation.fromTree(stored.tree) : new Conversation();
  const { last } = conversation;
  cut = last.role === "assistant" && !last.text && !last.calls.length ? last.parent : null;
  if (cut) conversation.remove(last);
  setSystem(stored?.system);
  examples.hidden = stored !== null;
  draw();
}

export function setSystem(text = "") {
  system.value = text;
  system.closest("details").open = Boolean(text);
}

function messagesOf({ answer, edit, text, send, results, resume, branch }) {
  if (branch) return [...messagesTo(branch.parent), { role: "assistant", content: text }];
  if (answer || resume) return messagesTo(answer ?? resume);
  if (send) return [...messagesTo(send), ...send.calls.map(({ id }, i) => resultMessage(id, results[i]))];
  const message = edit ? text : field.value.trim();
  const before = messagesTo(edit ? edit.parent : conversation.last);
  return message ? [...before, { role: "user", content: message }] : before;
}

function addQuestion({ edit, text }) {
  const message = field.value.trim();
  if (!edit || message === text) field.value = "";
  if (edit) return add(edit.parent, "user", text);
  const { last } = conversation;
  return message ? add(last, "user", message) : last;
}

function addResults({ send, results }) {
  return send.calls.reduce((parent, { id }, i) => add(parent, "tool", results[i], id), send);
}

function add(parent, role, text, callId) {
  const before = parent.chosen;
  const node = conversation.add(parent, role, text, callId);
  added.push({ node, before });
  return node;
}

function undo() {
  for (const { node, before } of added.reverse()) {
    conversation.remove(node, before);
    if (node.role === "user") field.value ||= node.text;
  }
  draw();
}

/** A changed answer is a branch at once; a changed message gets an answer. */
function edit(node, text) {
  if (node.role === "user") return display.run({ edit: node, text });
  conversation.add(node.parent, "assistant", text).calls = node.calls;
  return changed();
}

function step(node, by) {
  conversation.step(node, by);
  changed();
  turns.find((turn) => turn.node.parent === node.parent).element.querySelector(".branches button:enabled")?.focus();
}

function remove(node) {
  conversation.remove(node);
  changed();
  field.focus();
}

function changed() {
  draw();
  examples.hidden = turns.length > 0;
  display.changed("chat");
}

/** Shows the open path. Messages that stay are not touched. */
function draw() {
  const { path } = conversation;
  const numSame = turns.findIndex(({ node }, i) => node !== path[i]);
  const kept = numSame < 0 ? turns.length : numSame;
  for (const turn of turns.splice(kept)) turn.element.remove();
  for (const node of path.slice(kept)) {
    node.turn ??= newTurn(node, actions);
    turns.push(node.turn);
    box.append(node.turn.element);
  }
  for (const turn of turns.slice(Math.max(0, kept - 1))) turn.update();
}

for (const message of EXAMPLES) {
  const send = () => {
    field.value = message;
    display.run({});
  };
  examples.append(button(message, send, { className: "example" }));
}
on(field, "keydown", ({ key }) => {
  if (key === "ArrowUp" && !field.value && !running) turns.findLast(({ node }) => node.role === "user")?.edit();
});
on(system, "change", () => display.changed("chat"));
