const NUM_ALTERNATIVES = 5;
const SHARED = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };

/** Returns a completion as {path, fields, seed, body}; `body` is the JSON text of the fields and the seed. */
export function completionRequest(model, prompt, sampling) {
  const { details, routing, ...rest } = sampling;
  return request("v1/completions", {
    model, prompt, ...rest, ...(details && { logprobs: NUM_ALTERNATIVES }), ...routingField(details, routing), ...SHARED,
  });
}

/** Like `completionRequest`, for a chat. `messages` are {role, content}. */
export function chatRequest(model, messages, sampling) {
  const { details, routing, ...rest } = sampling;
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
