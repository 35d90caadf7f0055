import * as api from "../api.js";

/**
 * Lets the server choose a token again and one more, since a token's gates come when it is read. `before` are the ids before
 * it. Resolves to {logits, chosen, weights} of each layer. Throws ApiError.
 */
export async function readGates({ model, before, id, mask }, k, signal) {
  const body = {
    model, prompt: before, max_tokens: 2, allowed_token_ids: [id], ignore_eos: true, temperature: 0,
    gate_logits: true, experts_per_token: k, ...(mask && { expert_mask: mask }),
  };
  const reply = await api.post("v1/completions", JSON.stringify(body), signal);
  const [choice] = (await reply.json()).choices;
  return choice.gate_logits[0].map((logits, i) => ({ logits, chosen: choice.expert_routing[0][i], weights: choice.expert_weights[0][i] }));
}
