/** The data of each server-sent event in a body, as it comes. Comments (the server's keep-alive) are passed over. */
export async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (pending + value).split("\n\n");
      pending = events.pop();
      for (const event of events) if (event.startsWith("data: ")) yield event.slice("data: ".length);
    }
  } finally {
    reader.cancel().catch(() => {}); // a stream that was aborted has nothing left to cancel
  }
}
