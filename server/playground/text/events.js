/** Yields {data, ms} of each server-sent event of a body: its text and when its packet arrived. Comments are skipped. */
export async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
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
