// The tree on the page: a widget that arrow keys move in.

import { size, title } from "/nodes.js";

/** Keys and values of a Llama-3-8B in 16 bits: 32 layers, 8 heads of 128, two of each. */
const CACHE_BYTES = 131_072;

export class TreeView {
  /** @param {HTMLElement} root @param {import("/nodes.js").Tree} tree @param {() => void} changed */
  constructor(root, tree, changed) {
    this.root = root;
    this.tree = tree;
    this.changed = changed;
    this.selected = tree.head;
    root.addEventListener("click", (event) => {
      const item = event.target.closest("[role=treeitem]");
      if (item) this.select(Number(item.dataset.id), true);
    });
    root.addEventListener("dblclick", () => this.rewind());
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("focus", () => this.focus());
  }

  /** @param {number | null} id @param {boolean} focus */
  select(id, focus = false) {
    this.selected = id;
    this.draw();
    if (focus) this.focus();
    this.changed();
  }

  focus() {
    this.root.querySelector(`[data-id="${this.selected}"]`)?.focus();
  }

  rewind() {
    if (this.selected === null) return;
    this.tree.head = this.selected;
    this.tree.save();
    this.select(this.selected);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const items = [...this.root.querySelectorAll("[role=treeitem]")];
    const place = items.findIndex((item) => Number(item.dataset.id) === this.selected);
    const node = this.tree.get(this.selected);
    const moves = {
      ArrowDown: () => items[Math.min(items.length - 1, place + 1)],
      ArrowUp: () => items[Math.max(0, place - 1)],
      Home: () => items[0],
      End: () => items.at(-1),
      ArrowLeft: () => items.find((item) => Number(item.dataset.id) === node?.parent),
      ArrowRight: () => items.find((item) => this.tree.get(Number(item.dataset.id))?.parent === this.selected),
    };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.rewind();
      this.focus();
    } else if (moves[event.key] && items.length) {
      event.preventDefault();
      const target = moves[event.key]();
      if (target) this.select(Number(target.dataset.id), true);
    }
  }

  draw() {
    if (!this.tree.get(this.selected)) this.selected = this.tree.head;
    this.root.replaceChildren(...this.tree.children(null).map((node) => this.item(node, 1)));
    this.root.tabIndex = this.tree.nodes.size ? -1 : 0;
    const { states, bytes, tokens } = this.tree.totals();
    document.getElementById("bytes").textContent = states
      ? `${states} states, ${size(bytes)}. As many tokens in a Llama-3-8B's cache: ${size(tokens * CACHE_BYTES)}.`
      : "No states yet: every answer leaves one, of constant size.";
  }

  /** @param {import("/nodes.js").Node} node @param {number} level */
  item(node, level) {
    const item = document.createElement("li");
    item.setAttribute("role", "treeitem");
    item.setAttribute("aria-level", String(level));
    item.setAttribute("aria-selected", String(node.id === this.selected));
    item.dataset.id = String(node.id);
    item.tabIndex = node.id === this.selected ? 0 : -1;
    if (node.id === this.tree.head) item.classList.add("head");
    const line = document.createElement("div");
    line.className = "node";
    const name = document.createElement("span");
    name.textContent = (node.id === this.tree.head ? "▸ " : "") + title(node);
    const about = document.createElement("span");
    about.className = "muted";
    about.textContent = `${node.count}`;
    line.title = `${node.count} tokens, ${size(node.bytes)}, seed ${node.seed}\n${node.state ?? "not kept"}`;
    line.append(name, about);
    item.append(line);
    item.setAttribute("aria-label", `${title(node)}, ${node.count} tokens`);
    const children = this.tree.children(node.id);
    if (children.length) {
      item.setAttribute("aria-expanded", "true");
      const group = document.createElement("ul");
      group.setAttribute("role", "group");
      group.append(...children.map((child) => this.item(child, level + 1)));
      item.append(group);
    }
    return item;
  }
}
