// Shows a text token by token, and who drafted it.

const find = (name) => document.getElementById(name);
const SPARE_COLOURS = 4;
const seen = []; // drafters, in the order in which they were met

/** Gives an element its drafter's colour; those that page.css does not name take spare ones. */
function colour(element, drafter) {
  if (!seen.includes(drafter)) seen.push(drafter);
  element.classList.add(`spare-${seen.indexOf(drafter) % SPARE_COLOURS}`);
  element.dataset.drafter = drafter;
}

function add(parent, kind, text = "") {
  const child = document.createElement(kind);
  child.textContent = text;
  parent.append(child);
  return child;
}

/** A text that grows, and what is counted of it. */
export class Text {
  constructor(element) {
    this.element = element;
    this.drafters = new Set();
    this.arms = {}; // rounds by arm, behind the first tokens
    this.tokens = this.rounds = 0;
    this.text = "";
    this.began = this.ended = null; // when the first and the latest tokens arrived
    this.reason = null; // why it ended
    element.replaceChildren();
  }

  /** Takes a chunk of the stream in; true where it brought tokens. */
  take(chunk) {
    const choice = chunk.choices[0];
    this.reason = choice?.finish_reason ?? this.reason;
    const content = choice?.delta.content;
    const round = chunk.draftgym ?? {};
    const pieces = round.pieces ?? (content ? [{ text: content, drafted: false }] : []);
    if (!pieces.length) return false;
    const arm = round.arm ?? "plain";
    this.#show(arm, pieces);
    if (choice.finish_reason) return true; // text that was held back until it was clear that all is told
    this.ended = performance.now();
    if (this.began === null) {
      this.began = this.ended;
      this.first = pieces.length;
    } else {
      this.arms[arm] = (this.arms[arm] ?? 0) + 1;
      this.rounds += 1;
    }
    this.tokens += pieces.length;
    return true;
  }

  #show(arm, pieces) {
    const drafter = arm.split(/[:~@+]/)[0];
    const round = add(this.element, "span");
    round.className = "round";
    const drafted = pieces.filter((piece) => piece.drafted).length;
    round.title = drafted ? `${arm}: ${drafted} of ${pieces.length} tokens drafted` : arm;
    for (const piece of pieces) {
      this.text += piece.text;
      const token = add(round, "span", piece.text);
      token.className = piece.drafted ? "drafted" : "own";
      if (piece.drafted) {
        colour(token, drafter);
        this.drafters.add(drafter);
      }
    }
  }

  /** Tokens a second behind those that came first; null where nothing can be said yet. */
  get rate() {
    const seconds = (this.ended - this.began) / 1000;
    return seconds > 0 ? (this.tokens - this.first) / seconds : null;
  }

  /** Tokens of a round, behind those that came first. */
  get acceptance() {
    return this.rounds ? (this.tokens - this.first) / this.rounds : null;
  }
}

/** The legend: the target, and every drafter that wrote a token. */
export function showLegend(drafters) {
  const legend = find("legend");
  if (legend.childElementCount === drafters.size + 1) return;
  legend.replaceChildren();
  add(add(legend, "li"), "span", "the target").className = "own";
  for (const drafter of drafters) {
    const token = add(add(legend, "li"), "span", drafter);
    token.className = "drafted";
    colour(token, drafter);
  }
}

/** The shares of the rounds by arm, as a bar and as a list. */
export function showArms(arms) {
  const rounds = Object.values(arms).reduce((sum, count) => sum + count, 0);
  find("bar").replaceChildren();
  find("arms").replaceChildren();
  for (const [arm, count] of Object.entries(arms).sort((one, other) => other[1] - one[1])) {
    const piece = add(find("bar"), "span");
    piece.style.flexGrow = count;
    const line = add(find("arms"), "li");
    const swatch = add(line, "i");
    add(line, "b", arm);
    add(line, "span", `${Math.round((100 * count) / rounds)} %`);
    add(line, "small", `${count} of ${rounds} rounds`);
    for (const one of [piece, swatch]) colour(one, arm.split(/[:~@+]/)[0]);
  }
}

/** Where two texts part, counted in characters; null where they are the same. */
export function difference(one, other) {
  if (one === other) return null;
  let at = 0;
  while (at < one.length && one[at] === other[at]) at += 1;
  return at;
}
