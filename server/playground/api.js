/** The server's API as this page uses it. Paths are relative, so that it works behind a proxy's prefix. */

const TITLES = new Map([
  [0, "No answer"],
  [400, "The request does not work"],
  [401, "A key is needed"],
  [404, "Not found"],
  [408, "Too slow"],
  [413, "Too long"],
  [429, "The server is busy"],
  [503, "Not ready"],
]);

/** What went wrong, in words. `status` is 0 where there was no reply; `param` names the field at fault. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }

  get title() {
    return TITLES.get(this.status) ?? "The server failed";
  }
}

export class Api {
  #keyOf;

  /** `keyOf` gives the API key to send, "" for none. */
  constructor(keyOf) {
    this.#keyOf = keyOf;
  }

  /** A reply with a 2xx status. Throws ApiError. */
  get(path) {
    return this.#fetch(path, {});
  }

  /** As `get`; `body` is JSON text. An abort by `signal` throws the browser's AbortError. */
  post(path, body, signal) {
    return this.#fetch(path, { method: "POST", body, signal, headers: { "content-type": "application/json" } });
  }

  async #fetch(path, init) {
    const key = this.#keyOf();
    const headers = { ...init.headers, ...(key && { authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...init, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached. Is it still running?");
    }
    if (!response.ok) throw await failureOf(response);
    return response;
  }
}

async function failureOf(response) {
  const { status } = response;
  const retryAfter = response.headers.get("retry-after");
  const body = await response.json().catch(() => ({}));
  const { message = `The server answered with status ${status}.`, param } = body.error ?? {};
  return new ApiError(message, { status, param, retryAfter });
}
