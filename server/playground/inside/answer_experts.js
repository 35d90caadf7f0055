import { sumOf } from "../words.js";

/** Counts the experts of tokens {spelled, routing}, as GET /experts does. */
export const countExperts = (tokens, numLayers, numExperts) => Array.from({ length: numLayers }, (_, layer) =>
  entryOf(layer, tokens.map(({ spelled, routing }) => [spelled, routing[layer]]), numExperts));

function entryOf(layer, rows, numExperts) {
  const perExpert = (make) => Array.from({ length: numExperts }, make);
  const pairs = perExpert(() => perExpert(() => 0));
  const tops = perExpert(() => new Map());
  for (const [text, chosen] of rows) {
    for (const expert of chosen) {
      tops[expert].set(text, (tops[expert].get(text) ?? 0) + 1);
      for (const other of chosen) pairs[expert][other] += 1;
    }
  }
  const tokens = pairs.map((row, expert) => row[expert]);
  pairs.forEach((row, expert) => (row[expert] = 0));
  const total = sumOf(tokens);
  const share = tokens.map((count) => count / (total || 1));
  return {
    layer, tokens, share, pairs,
    entropy: -sumOf(share.map((part) => (part ? part * Math.log2(part) : 0))),
    imbalance: Math.max(...share) * numExperts,
    top_tokens: tops.map((top) => [...top].map(([text, count]) => ({ text, count })).sort((a, b) => b.count - a.count)),
  };
}
