import { ApiError, lost } from "../api.js";
import { display } from "./display.js";
import { withSeed } from "./request.js";
import { parseTokens } from "./tokens.js";

const CUT = "The connection was cut before the text was complete.";
const MIN_SPAN_MS = 50; // between the first and the last packet; a shorter one measures the network

/**
 * Sends a streamed request. `onChunk(tokens, routing, meter)` gets the tokens of each chunk and its expert ids, [token][layer][k].
 * Resolves to the meter at the end. Throws ApiError, or AbortError after a stop.
 */
export async function generate(api, { path, fields, seed }, signal, onChunk) {
  const meter = new Meter(fields);
  const response = await api.post(path, withSeed(await fitted(api, fields, signal), seed), signal);
  for await (const { data, ms } of eventData(response.body)) {
    if (data === "[DONE]") return meter;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, { status: 500 });
    meter.update(chunk, data, ms);
    const [choice] = chunk.choices;
    if (choice) onChunk(parseTokens(choice), choice.expert_routing ?? [], meter);
  }
  throw new ApiError(CUT);
}

/** Returns the fields with as many tokens as fit, if the whole context was asked for. A completion without a limit has 16. */
async function fitted(api, fields, signal) {
  const { max_tokens: asked, messages, model, prompt } = fields;
  if (asked !== display.maxLen) return fields;
  if (messages) return { ...fields, max_tokens: null };
  const { count } = await api.ask("tokenize", { model, prompt }, signal);
  return { ...fields, max_tokens: Math.max(1, asked - count) };
}

class Meter {
  #startedMs = performance.now();
  #firstMs = null;
  #lastMs = null;
  #numFirst = 0; // tokens of the first packet
  numTokens = 0;
  numPrompt = 0;
  finishReason = null;
  calls = []; // of tools, {id, name, arguments}, which is JSON
  seed = null; // as text
  promptIds = null;
  fields;

  constructor(fields) {
    this.fields = fields;
  }

  /** Adds a chunk; `data` is its text, `ms` when its packet arrived. */
  update(chunk, data, ms) {
    this.seed ??= data.match(/"seed":\s*(-?\d+)/)?.[1] ?? null;
    this.promptIds ??= chunk.prompt_token_ids ?? chunk.choices[0]?.prompt_token_ids ?? null;
    this.finishReason = chunk.choices[0]?.finish_reason ?? this.finishReason;
    this.numPrompt = chunk.usage?.prompt_tokens ?? this.numPrompt;
    for (const { index, id, function: called } of chunk.choices[0]?.delta?.tool_calls ?? []) {
      this.calls[index] ??= { id, name: called.name, arguments: "" };
      this.calls[index].arguments += called.arguments;
    }
    const numTokens = chunk.usage?.completion_tokens ?? 0;
    if (numTokens <= this.numTokens) return;
    this.numTokens = numTokens;
    this.#lastMs = ms;
    this.#firstMs ??= ms;
    if (ms === this.#firstMs) this.#numFirst = numTokens;
  }

  get firstTokenMs() {
    return this.#firstMs === null ? null : this.#firstMs - this.#startedMs;
  }

  /** Tokens per second after the first packet; null if the packets came too close together to tell. */
  get tokensPerSecond() {
    const ms = this.#lastMs - this.#firstMs;
    return ms >= MIN_SPAN_MS ? (1000 * (this.numTokens - this.#numFirst)) / ms : null;
  }
}

/** Yields {data, ms} of each server-sent event: its text and when its packet arrived. */
async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => lost(error, CUT));
      if (done) return;
      const ms = performance.now();
      const events = (pending + value).split("\n\n");
      pending = events.pop();
      for (const event of events) if (event.startsWith("data: ")) yield { data: event.slice("data: ".length), ms };
    }
  } finally {
    reader.cancel().catch(() => {}); // an aborted stream cannot be cancelled
  }
}
