const NUM_ALTERNATIVES = 5;
const SHARED = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };

/** Returns a completion as {path, fields, seed, body}; `body` is the JSON text of the fields and the seed. */
export function completionRequest(model, prompt, sampling) {
  const { details, routing, tools, tool_choice: _, ...rest } = sampling;
  return request("v1/completions", {
    model, prompt, ...rest, ...(details && { logprobs: NUM_ALTERNATIVES }), ...routingField(details, routing), ...SHARED,
  });
}

/** Like `completionRequest`, for a chat. `messages` are {role, content}. A tool's result is answered with a text if calls are forced. */
export function chatRequest(model, messages, sampling) {
  const { details, routing, ...rest } = sampling;
  if (rest.continue_final_message) delete rest.tools; // the API continues texts only
  if (!rest.tools) delete rest.tool_choice;
  else if (rest.tool_choice && messages.at(-1).role === "tool") rest.tool_choice = "none";
  return request("v1/chat/completions", {
    model, messages, ...rest, ...(details && { logprobs: true, top_logprobs: NUM_ALTERNATIVES }),
    ...routingField(details, routing), ...SHARED,
  });
}

/** Fields for the experts of each token, and for its id: what is behind it is asked later, in a request of its own. */
const routingField = (details, routing) => (details && routing ? { expert_routing: true, return_token_ids: true } : {});

const request = (path, { seed, ...fields }) => ({ path, fields, seed, body: withSeed(fields, seed) });

/** Returns the fields as JSON. `seed` is text, because 64 bits are more than a JavaScript number holds. */
export function withSeed(fields, seed) {
  const json = JSON.stringify(fields);
  return seed === undefined ? json : `${json.slice(0, -1)},"seed":${seed}}`;
}
