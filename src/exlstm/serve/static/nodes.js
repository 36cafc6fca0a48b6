// The tree of a text: each node is a state of the model, and the text that leads to it from its parent.

const KEY = "exlstm-tree";

/**
 * @typedef {{id: number, text: string, logprob: number, top: {id: number, text: string, logprob: number}[]}} Token
 * @typedef {{id: number, parent: number | null, state: string | null, count: number, bytes: number, prompt: string,
 *   role: string, tokens: Token[], seed: number, finish: string, created: number}} Node
 */

/** The tree and where one is in it. It outlives a reload. */
export class Tree {
  constructor() {
    /** @type {Map<number, Node>} */
    this.nodes = new Map();
    this.head = null;
    this.next = 1;
    this.restore(localStorage.getItem(KEY));
  }

  /** @param {string | null} text */
  restore(text) {
    try {
      const { nodes, head } = JSON.parse(text ?? "null") ?? { nodes: [], head: null };
      this.nodes = new Map(nodes.map((node) => [node.id, node]));
      this.head = this.nodes.has(head) ? head : null;
      this.next = 1 + Math.max(0, ...this.nodes.keys());
    } catch {
      this.clear();
    }
  }

  text() {
    return JSON.stringify({ nodes: [...this.nodes.values()], head: this.head });
  }

  save() {
    try {
      localStorage.setItem(KEY, this.text());
    } catch { /* full: the tree lives until the page is closed */ }
  }

  clear() {
    this.nodes = new Map();
    this.head = null;
    this.next = 1;
  }

  /** @param {Omit<Node, "id" | "created">} fields @returns {Node} */
  add(fields) {
    const node = { ...fields, id: this.next++, created: Date.now() };
    this.nodes.set(node.id, node);
    this.head = node.id;
    this.save();
    return node;
  }

  /** @param {number | null} id @returns {Node | null} */
  get(id) {
    return id === null ? null : (this.nodes.get(id) ?? null);
  }

  current() {
    return this.get(this.head);
  }

  /** The nodes from the beginning to the head. @returns {Node[]} */
  path() {
    const found = [];
    for (let node = this.current(); node; node = this.get(node.parent)) found.unshift(node);
    return found;
  }

  /** @param {number | null} id */
  children(id) {
    return [...this.nodes.values()].filter((node) => node.parent === id);
  }

  /** Takes a node out; those that went on from it stay, below its parent. @param {number} id */
  remove(id) {
    const node = this.get(id);
    if (!node) return;
    for (const child of this.children(id)) child.parent = node.parent;
    this.nodes.delete(id);
    if (this.head === id) this.head = node.parent;
    this.save();
  }

  totals() {
    const nodes = [...this.nodes.values()];
    const bytes = nodes.reduce((sum, node) => sum + node.bytes, 0);
    return { states: nodes.length, bytes, tokens: nodes.reduce((sum, node) => sum + node.count, 0) };
  }
}

/** The text of a node without its prompt. @param {Node} node */
export const answer = (node) => node.tokens.map((token) => token.text).join("");

/** A short name of a node. @param {Node} node */
export function title(node) {
  const text = (node.prompt + answer(node)).trim().replace(/\s+/g, " ");
  return text.slice(-40) || "(no text)";
}

/** Bytes for people. @param {number} bytes */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  while (bytes >= 1024 && step < units.length - 1) {
    bytes /= 1024;
    step += 1;
  }
  return `${bytes.toFixed(bytes < 10 && step ? 1 : 0)} ${units[step]}`;
}
