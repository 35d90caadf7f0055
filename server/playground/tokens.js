/**
 * From a chunk's choice to tokens: {text, spelled, logprob, others}. `text` is the token's piece of the output, `spelled`
 * the token by itself, `others` the likeliest [{spelled, logprob}] at its place. Without logprobs a chunk is one piece.
 */
export function tokensOf(choice) {
  const text = choice.text ?? choice.delta?.content ?? "";
  const entries = entriesOf(choice.logprobs);
  if (entries.length) return spread(text, entries);
  return text ? [{ text, spelled: text, logprob: null, others: [] }] : [];
}

/** The two shapes of logprobs, the chat's list and the completions' parallel arrays, as one. */
function entriesOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map(({ token, logprob, top_logprobs: top }) => ({
      spelled: token,
      logprob,
      others: top.map((other) => ({ spelled: other.token, logprob: other.logprob })),
    }));
  }
  return logprobs.tokens.map((token, i) => ({
    spelled: token,
    logprob: logprobs.token_logprobs[i],
    others: Object.entries(logprobs.top_logprobs[i] ?? {})
      .map(([spelled, logprob]) => ({ spelled, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

/**
 * Cuts a chunk's text along its tokens. [" ", "3"] over "3" gives "" and "3": a text's first blank is dropped. What
 * matches no token, such as a character that was made of several, goes to the last.
 */
function spread(text, entries) {
  let rest = text;
  return entries.map((entry, i) => {
    const isLast = i === entries.length - 1;
    const piece = isLast ? rest : [entry.spelled, entry.spelled.trimStart()].find((p) => rest.startsWith(p)) ?? "";
    rest = rest.slice(piece.length);
    return { ...entry, text: piece };
  });
}
