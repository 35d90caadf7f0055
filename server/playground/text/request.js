const NUM_ALTERNATIVES = 5;

/** Returns a completion as {path, fields, seed}. */
export function completionRequest(model, prompt, sampling) {
  const { tools, tool_choice: _, ...rest } = sampling;
  return request("v1/completions", { model, prompt }, rest, { logprobs: NUM_ALTERNATIVES });
}

/** Like `completionRequest`, for a chat. A tool's result is answered with a text. */
export function chatRequest(model, messages, { tools, tool_choice: choice, ...rest }) {
  const mustCall = choice && { tool_choice: messages.at(-1).role === "tool" ? "none" : choice };
  const calls = tools && { tools, ...mustCall };
  return request("v1/chat/completions", { model, messages }, { ...rest, ...calls }, { logprobs: true, top_logprobs: NUM_ALTERNATIVES });
}

/** `details` asks for probabilities, `routing` for experts and ids. */
function request(path, subject, { details, routing, seed, ...rest }, logprobs) {
  const asked = details && { ...logprobs, ...(routing && { expert_routing: true, return_token_ids: true }) };
  const fields = { ...subject, ...rest, ...asked, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  return { path, fields, seed };
}

/** Returns the fields as JSON. `seed` is text, because 64 bits are more than a JavaScript number holds. */
export function withSeed(fields, seed) {
  const json = JSON.stringify(fields);
  return seed === undefined ? json : `${json.slice(0, -1)},"seed":${seed}}`;
}
