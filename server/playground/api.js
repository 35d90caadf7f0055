/** Client of the server's API. Paths are relative, so that the page works behind a proxy's prefix. */

const TITLES = {
  0: "No connection", 401: "API key required", 408: "Timeout", 413: "Request too large", 429: "The server is busy", 503: "Not ready",
};
const STORED_KEY = "smoe-api-key"; // in the tab's storage
// By it proxies keep this page on one replica. crypto.randomUUID exists only on secure origins.
const SESSION_ID = [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(16).padStart(8, "0")).join("");

/** A failed request. `status` is 0 without a response; `param` is the invalid field. */
export class ApiError extends Error {
  constructor(message, fields) {
    super(message);
    Object.assign(this, { status: 0, body: {}, ...fields });
  }

  get title() {
    return TITLES[this.status] ?? (this.status < 500 ? "Invalid request" : "The server failed");
  }
}

export const key = () => sessionStorage.getItem(STORED_KEY) ?? "";
export const setKey = (text) => sessionStorage.setItem(STORED_KEY, text);

/** Resolves to the JSON at `path`. Throws ApiError. */
export const read = async (path) => jsonOf(await request(path, {}));

/** Resolves to the JSON of the reply to a POST. Throws as `post` does. */
export const ask = async (path, fields, signal) => jsonOf(await post(path, JSON.stringify(fields), signal));

/** Handles a failure that the page can do without. */
export function ignore(error) {
  if (!(error instanceof ApiError)) throw error;
}

/** Resolves to a response; `body` is JSON text. Throws ApiError, or AbortError after `signal`. */
export const post = (path, body, signal) => request(path, { method: "POST", body, signal, headers: { "content-type": "application/json" } });

/** Handles what a broken connection throws, before the reply or within it. */
export function lost(error, words = "The server cannot be reached. Is it still running?") {
  throw error.name === "AbortError" ? error : new ApiError(words);
}

const jsonOf = (response) => response.json().catch(lost);

async function request(path, init) {
  const headers = { "x-session-id": SESSION_ID, ...init.headers, ...(key() && { authorization: `Bearer ${key()}` }) };
  const response = await fetch(path, { ...init, headers, cache: "no-store" }).catch(lost);
  if (!response.ok) throw await errorFrom(response);
  return response;
}

async function errorFrom(response) {
  const { status, headers } = response;
  const body = await response.json().catch(() => ({}));
  const { message = `The server answered with status ${status}.`, param, code } = body.error ?? {};
  return new ApiError(message, { status, param, code, retryAfter: headers.get("retry-after"), body });
}
