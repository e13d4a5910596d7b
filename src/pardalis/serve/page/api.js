// The server's API: requests, events as they come, and errors as one sentence.

import { key } from "./settings.js";

/** An error that a person reads; `kind` is key, busy, context, lost or other. */
export class ApiError extends Error {
  constructor(message, kind = "other") {
    super(message);
    this.kind = kind;
  }
}

const UNREACHABLE =
  "The server cannot be reached; check that pardalis serve still runs, then try again.";

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(UNREACHABLE, "lost");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    message = `The server answered with status ${response.status}.`;
  }
  if (response.status === 401) {
    return new ApiError("This server needs its API key; enter it in the settings.", "key");
  }
  if (response.status === 429 || response.status === 503) {
    return new ApiError(`${message} Try again in a moment.`, "busy");
  }
  if (/context/.test(message)) return new ApiError(message, "context");
  return new ApiError(message);
}

export async function models() {
  return (await (await request("/v1/models")).json()).data;
}

/**
 * Yield the events of a streamed response as objects.
 *
 * A connection that breaks ends with an ApiError of the kind lost, an abort with an AbortError.
 */
export async function* stream(path, body, signal) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new ApiError("The connection to the server was lost.", "lost");
      }
      if (chunk.done) return;
      const blocks = (pending + chunk.value).split("\n\n");
      pending = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data: "));
        const text = data.map((line) => line.slice(6)).join("\n");
        if (text && text !== "[DONE]") yield JSON.parse(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
