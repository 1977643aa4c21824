// The page: writes what was asked for, then the same by plain decoding.

import { difference, showArms, showLegend, Text } from "./show.js";
import { begin, keepKey, offered, Refusal } from "./stream.js";

const find = (name) => document.getElementById(name);
const PLAIN = "plain";
const ANOTHER = "another …"; // policy, as a rule that is typed
let model = null; // what the server calls its target
let leave = null; // stops what is being written

function say(state, error = "") {
  if (find("state").textContent !== state) find("state").textContent = state; // which is read out
  find("error").textContent = error;
  find("error").hidden = !error;
}

function sentence(words) {
  return words.replace(/^./u, (letter) => letter.toUpperCase()).replace(/[^.!?]$/u, "$&.");
}

function wait(seconds, signal) {
  return new Promise((done, fail) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(signal.reason);
    });
  });
}

/** Does it again while the server says that it has no model yet. */
async function patiently(act, signal) {
  for (;;) {
    try {
      return await act();
    } catch (problem) {
      if (problem.status !== 503) throw problem;
      say(`${sentence(problem.message)} Trying again in ${problem.retryAfter} s.`);
      await wait(problem.retryAfter, signal);
    }
  }
}

function tell(problem) {
  if (problem.name === "AbortError") return say("Stopped.");
  if (problem.status === 401) {
    find("key-field").hidden = false;
    find("key").focus();
  }
  if (problem instanceof Refusal) return say("", sentence(problem.message));
  console.error(problem);
  say("", "The server does not answer.");
}

async function fillChoices(signal) {
  const { id, draftgym } = await patiently(() => offered(signal), signal);
  find("model").textContent = model = id;
  find("key-field").hidden = true;
  document.title = `draftgym: ${id}`;
  const { policies = [], default_policy: usual } = draftgym ?? {};
  const options = policies.map((name) => new Option(name, name, name === usual, name === usual));
  if (options.length) find("policy").replaceChildren(...options, new Option(ANOTHER));
  showRule();
  say("");
}

/** Writes one text; what is left behind where it is stopped stays to be read. */
async function follow(text, request, signal, progress) {
  let totals = {};
  text.element.setAttribute("aria-busy", "true");
  try {
    for await (const chunk of await patiently(() => begin(request, signal), signal)) {
      if (text.take(chunk)) progress();
      if (chunk.usage) totals = chunk.draftgym ?? {};
    }
  } finally {
    text.element.removeAttribute("aria-busy");
  }
  return totals;
}

function showRule() {
  find("rule-field").hidden = find("policy").value !== ANOTHER;
}

/** What the form asks for. */
function asked() {
  const request = {
    model,
    messages: [{ role: "user", content: find("prompt").value }],
    temperature: find("temperature").valueAsNumber,
    max_tokens: find("tokens").valueAsNumber,
    seed: Math.floor(Math.random() * 2 ** 31), // the same one for plain decoding
  };
  const chosen = find("policy").value;
  const policy = chosen === ANOTHER ? find("rule").value.trim() : chosen;
  const under = (name) => ({ ...request, draftgym: { ...(name && { policy: name }), details: true } });
  return { policy, mine: under(policy), plain: under(PLAIN) };
}

const figure = (number, digits = 1) => (number === null ? "–" : number.toFixed(digits));

function showFigures(text) {
  showLegend(text.drafters);
  showArms(text.arms);
  find("rate").textContent = figure(text.rate);
  find("acceptance").textContent = figure(text.acceptance, 2);
}

function showComparison(mine, plain) {
  const both = mine.rate !== null && plain.rate !== null;
  find("speedup").textContent = both ? `${figure(mine.rate / plain.rate, 2)}×` : "–";
  find("speeds").textContent = both ? `plain: ${figure(plain.rate)} tokens/s` : "";
  const at = difference(mine.text, plain.text);
  find("same").textContent = at === null ? "the same" : "another";
  find("difference").textContent =
    at === null ? "as plain decoding's" : `parts from plain decoding's at character ${at + 1}`;
  find("plain").open = at !== null;
}

function clear() {
  for (const name of ["speedup", "rate", "acceptance", "same"]) find(name).textContent = "–";
  for (const name of ["speeds", "difference"]) find(name).textContent = "";
  for (const name of ["bar", "arms", "legend", "plain-text"]) find(name).replaceChildren();
  find("result").hidden = false;
}

async function write(signal) {
  if (!model) await fillChoices(signal);
  const { policy, mine: request, plain } = asked();
  clear();
  say("Reading the prompt …");
  const mine = new Text(find("text"));
  const totals = await follow(mine, request, signal, () => {
    showFigures(mine);
    say("Writing …");
  });
  if (totals.arms) showArms(totals.arms);
  const end = `${mine.tokens} tokens${mine.reason === "length" ? ", as many as were allowed" : ""}.`;
  if (policy === PLAIN) return say(`${end} This is plain decoding.`);
  say(`${end} Plain decoding writes the same …`);
  const other = new Text(find("plain-text"));
  await follow(other, plain, signal, () => {});
  showComparison(mine, other);
  say(end);
}

/** Which buttons do something; none is disabled for the browser, which would take its focus away. */
function showBusy() {
  find("write").setAttribute("aria-disabled", leave !== null);
  find("stop").setAttribute("aria-disabled", leave === null);
}

find("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (leave) return;
  leave = new AbortController();
  showBusy();
  if (find("key").value) keepKey(find("key").value);
  try {
    await write(leave.signal);
  } catch (problem) {
    tell(problem);
  } finally {
    leave = null;
    showBusy();
  }
});
find("policy").addEventListener("change", showRule);
find("stop").addEventListener("click", () => leave?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") leave?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
fillChoices().catch(tell);
