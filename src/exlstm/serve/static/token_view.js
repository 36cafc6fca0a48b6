// Tokens of a text: colored by surprise, with a card of what else was likely.

/** Classes of surprise, in nats. */
const STEPS = [0.1, 0.7, 1.6, 3, 5];

/** @param {number} logprob */
export function surprise(logprob) {
  return STEPS.filter((step) => -logprob > step).length;
}

export class TokenView {
  /**
   * @param {HTMLElement} root @param {HTMLElement} card
   * @param {(node: number, place: number, id: number) => void} branch called with a token to go on with instead
   */
  constructor(root, card, branch) {
    this.root = root;
    this.card = card;
    this.branch = branch;
    /** @type {Map<HTMLElement, {node: number, place: number, token: import("/nodes.js").Token}>} */
    this.known = new Map();
    this.waiting = [];
    root.addEventListener("mouseover", (event) => this.over(event.target));
    root.addEventListener("click", (event) => this.over(event.target, true));
    root.addEventListener("keydown", (event) => this.key(event));
    card.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close(true);
    });
    document.addEventListener("click", (event) => {
      if (!card.contains(event.target) && !root.contains(event.target)) this.close();
    });
  }

  /** @param {import("/nodes.js").Node[]} path */
  draw(path) {
    this.close();
    this.known.clear();
    this.root.replaceChildren();
    for (const node of path) {
      this.before(node.prompt);
      node.tokens.forEach((token, place) => this.append(node.id, place, token));
    }
    this.flush();
  }

  /** @param {string} text */
  before(text) {
    const part = document.createElement("span");
    part.className = "before";
    part.textContent = text;
    this.waiting.push(part);
    this.flush();
  }

  /** @param {number} node @param {number} place @param {import("/nodes.js").Token} token */
  append(node, place, token) {
    const part = document.createElement("span");
    part.className = `token s${surprise(token.logprob)}`;
    part.textContent = token.text;
    this.known.set(part, { node, place, token });
    // a write per frame of the screen, however many tokens come
    if (!this.waiting.length) requestAnimationFrame(() => this.flush());
    this.waiting.push(part);
  }

  flush() {
    if (!this.waiting.length) return;
    const atEnd = this.root.scrollTop + this.root.clientHeight >= this.root.scrollHeight - 40;
    this.root.append(...this.waiting);
    this.waiting = [];
    if (atEnd) this.root.scrollTop = this.root.scrollHeight;
  }

  /** @param {HTMLElement} target @param {boolean} stay */
  over(target, stay = false) {
    const found = this.known.get(target);
    if (!found || (this.pinned && !stay)) return;
    this.pinned = stay;
    this.show(target, found);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const parts = [...this.known.keys()];
    if (!parts.length || !["ArrowLeft", "ArrowRight", "Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") {
      this.close();
      return;
    }
    if (event.key === "Enter") {
      this.pinned = true;
      this.card.querySelector("button")?.focus();
      return;
    }
    const here = parts.indexOf(this.current);
    const next = event.key === "ArrowRight" ? here + 1 : here < 0 ? parts.length - 1 : here - 1;
    const part = parts[Math.max(0, Math.min(parts.length - 1, next))];
    part.scrollIntoView({ block: "nearest" });
    this.show(part, this.known.get(part));
  }

  /** @param {HTMLElement} part @param {{node: number, place: number, token: import("/nodes.js").Token}} found */
  show(part, found) {
    this.current?.removeAttribute("aria-current");
    this.current = part;
    part.setAttribute("aria-current", "true");
    const table = document.createElement("table");
    for (const other of found.token.top) {
      const row = table.insertRow();
      const button = document.createElement("button");
      button.textContent = JSON.stringify(other.text);
      button.title = `token ${other.id}: go on with it from here`;
      button.addEventListener("click", () => {
        this.close();
        this.branch(found.node, found.place, other.id);
      });
      row.insertCell().append(button);
      row.insertCell().textContent = `${(100 * Math.exp(other.logprob)).toFixed(1)} %`;
    }
    const about = document.createElement("p");
    about.className = "muted";
    const share = (100 * Math.exp(found.token.logprob)).toFixed(1);
    about.textContent = `${JSON.stringify(found.token.text)}: ${share} %, ${(-found.token.logprob).toFixed(2)} nats`;
    this.card.replaceChildren(about, table);
    this.card.hidden = false;
    const box = part.getBoundingClientRect();
    const width = this.card.offsetWidth;
    this.card.style.setProperty("left", `${Math.max(4, Math.min(box.left, innerWidth - width - 8)) + scrollX}px`);
    this.card.style.setProperty("top", `${box.bottom + scrollY + 4}px`);
  }

  close(focus = false) {
    this.card.hidden = true;
    this.pinned = false;
    this.current?.removeAttribute("aria-current");
    if (focus) this.root.focus();
  }
}
