import { ApiError } from "./api.js";
import { eventData } from "./events.js";
import { tokensOf } from "./tokens.js";

/**
 * Runs a streamed request to its end. `onChunk(tokens, routing, meter)` sees what each chunk adds: its tokens and the
 * rows [layer][k] of experts that came with it. Resolves to the meter; throws ApiError, or AbortError for a stop.
 */
export async function generate(api, { path, body }, signal, onChunk) {
  const meter = new Meter();
  const response = await api.post(path, body, signal);
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return meter;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, param: chunk.error.param });
    meter.note(chunk, data);
    const [choice] = chunk.choices;
    if (choice) onChunk(tokensOf(choice), choice.expert_routing ?? [], meter);
  }
  throw new ApiError("The connection was cut before the text was complete.");
}

/** Times and counts of one generation, on the client's clock. */
class Meter {
  #startedMs = performance.now();
  #firstMs = null;
  #lastMs = null;
  numTokens = 0;
  finishReason = null;
  seed = null; // as text: it may have more digits than a JavaScript number

  note(chunk, data) {
    this.seed ??= data.match(/"seed":\s*(-?\d+)/)?.[1] ?? null;
    this.finishReason = chunk.choices[0]?.finish_reason ?? this.finishReason;
    const numTokens = chunk.usage?.completion_tokens ?? 0;
    if (numTokens <= this.numTokens) return;
    this.numTokens = numTokens;
    this.#lastMs = performance.now();
    this.#firstMs ??= this.#lastMs;
  }

  /** From sending the request to the first token; null before there is one. */
  get firstTokenMs() {
    return this.#firstMs === null ? null : this.#firstMs - this.#startedMs;
  }

  /** Tokens per second after the first; null while that says nothing. */
  get tokensPerSecond() {
    const seconds = (this.#lastMs - this.#firstMs) / 1000;
    return this.numTokens > 1 && seconds > 0 ? (this.numTokens - 1) / seconds : null;
  }
}
