const NUM_ALTERNATIVES = 5;
const SHARED = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };

/** A completion as {path, fields, body}: where to send it, what it says, and that as JSON text. */
export function completionRequest(model, prompt, sampling) {
  const { details, routing, ...rest } = sampling;
  return request("v1/completions", {
    model, prompt, ...rest, ...(details && { logprobs: NUM_ALTERNATIVES }), ...routingOf(details, routing), ...SHARED,
  });
}

/** A chat, likewise. `messages` are {role, content}. */
export function chatRequest(model, messages, sampling) {
  const { details, routing, ...rest } = sampling;
  return request("v1/chat/completions", {
    model, messages, ...rest, ...(details && { logprobs: true, top_logprobs: NUM_ALTERNATIVES }),
    ...routingOf(details, routing), ...SHARED,
  });
}

const routingOf = (details, routing) => (details && routing ? { expert_routing: true } : {});

/** `seed` comes as text, since its 64 bits are more than a number holds here, and goes into the JSON as it is. */
function request(path, { seed, ...fields }) {
  const json = JSON.stringify(fields);
  return { path, fields, seed, body: seed === undefined ? json : `${json.slice(0, -1)},"seed":${seed}}` };
}
