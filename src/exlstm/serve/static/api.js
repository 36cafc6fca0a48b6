// Requests to the server that this page came from.

/** @returns {Record<string, string>} headers with the key, if there is one */
function headers(type = "application/json") {
  const key = sessionStorage.getItem("key");
  return { "content-type": type, ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

/** An error with the server's own sentence. */
export class ServerError extends Error {}

/** @param {Response} response */
async function failure(response) {
  let message = `The server answers ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status has to do */ }
  return new ServerError(message);
}

/** @param {string} path @param {RequestInit} options */
async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer; start it again, then repeat.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** JSON from a path. @param {string} path */
export const get = async (path) => (await send(path, { headers: headers() })).json();

/** JSON answered to a body. @param {string} path @param {object} body */
export const post = async (path, body) =>
  (await send(path, { method: "POST", headers: headers(), body: JSON.stringify(body) })).json();

/** Deletes what is at a path. @param {string} path */
export const remove = (path) => send(path, { method: "DELETE", headers: headers() });

/** The bytes at a path. @param {string} path */
export const download = async (path) => (await send(path, { headers: headers() })).blob();

/** Uploads a state. @param {Blob} file */
export const upload = async (file) =>
  (await send("/v1/states/content", {
    method: "POST", headers: headers("application/octet-stream"), body: file,
  })).json();

/**
 * Frames of a stream, one after the other.
 * @param {string} path @param {object} body @param {AbortSignal} signal
 */
export async function* stream(path, body, signal) {
  const response = await send(path, {
    method: "POST", headers: headers(), body: JSON.stringify({ ...body, stream: true }), signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let ended = false;
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server was lost in the middle; start it again, then repeat.");
    }
    if (part.done) break;
    const frames = (held + part.value).split("\n\n");
    held = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data: ")) continue; // a comment
      const data = frame.slice(6);
      if (data === "[DONE]") {
        ended = true;
        continue;
      }
      const value = JSON.parse(data);
      if (value.error) throw new ServerError(value.error.message);
      yield value;
    }
  }
  if (!ended) throw new ServerError("The server was lost in the middle; start it again, then repeat.");
}
