/** Returns the tokens of a choice: {text, spelled, logprob, others, id}; `text` is the part of the output. */
export function parseTokens(choice) {
  const text = choice.text ?? choice.delta?.content ?? "";
  const entries = parseLogprobs(choice.logprobs).map((entry, i) => ({ ...entry, id: choice.token_ids?.[i] }));
  if (entries.length) return splitText(text, entries);
  return text ? [{ text, spelled: text, logprob: null, others: [] }] : [];
}

function parseLogprobs(logprobs) {
  if (!logprobs) return [];
  const read = ({ token: spelled, logprob }) => ({ spelled, logprob });
  if (logprobs.content) return logprobs.content.map((entry) => ({ ...read(entry), others: entry.top_logprobs.map(read) }));
  return logprobs.tokens.map((token, i) => ({
    spelled: token,
    logprob: logprobs.token_logprobs[i],
    others: Object.entries(logprobs.top_logprobs[i] ?? {})
      .map(([spelled, logprob]) => ({ spelled, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

export function parsePrompt({ text, logprobs, prompt_token_ids: ids }) {
  const characters = [...text];
  const starts = logprobs.text_offset;
  return parseLogprobs(logprobs).map((entry, i) => ({ ...entry, id: ids?.[i], text: characters.slice(starts[i], starts[i + 1]).join("") }));
}

/**
 * Splits a chunk's text at its tokens. Tokens [" ", "3"] of the text "3" get "" and "3": a text's first blank is dropped. Text
 * that matches no token, such as a character of several tokens, belongs to the last one.
 */
function splitText(text, entries) {
  let rest = text;
  return entries.map((entry, i) => {
    const isLast = i === entries.length - 1;
    const piece = isLast ? rest : [entry.spelled, entry.spelled.trimStart()].find((p) => rest.startsWith(p)) ?? "";
    rest = rest.slice(piece.length);
    return { ...entry, text: piece };
  });
}
