// Asks the server: what it offers, and for texts that come in pieces.

const KEY = "draftgym-api-key";

/** What the server answers instead of a text: its words, and its status. */
export class Refusal extends Error {
  constructor(message, status = 0, retryAfter = 2) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Keeps an API key until the tab is closed. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const message = told.error?.message ?? `The server answered ${answer.status}.`;
  throw new Refusal(message, answer.status, Number(answer.headers.get("Retry-After")) || 2);
}

/** The first model of the server, with its policies. */
export async function offered(signal) {
  return (await (await ask("v1/models", { signal })).json()).data[0];
}

/** Asks for a text; once the server has taken the request, its chunks as they come. */
export async function begin(request, signal) {
  const answer = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  return chunks(answer.body.pipeThrough(new TextDecoderStream()).getReader());
}

async function* chunks(reader) {
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Refusal("The connection ended before the text did.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue; // a comment keeps the connection alive
        if (line.startsWith("data: [DONE]")) return;
        const chunk = JSON.parse(line.slice("data: ".length));
        if (chunk.error) throw new Refusal(chunk.error.message);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
