// The strip below the text: what a block keeps of its memory, and what it takes in, token by token.

import { get, post } from "/api.js";

const CELL = 6;

export class MemoryView {
  /** @param {() => Promise<{tokens: number[], state: string | null}>} text the ids to show, and the state before them */
  constructor(text) {
    this.text = text;
    this.canvas = document.getElementById("strip");
    this.block = document.getElementById("block");
    this.head = document.getElementById("head");
    this.found = null;
    this.block.addEventListener("change", () => this.fillHeads());
    this.head.addEventListener("change", () => this.draw());
    document.getElementById("look").addEventListener("click", () => this.look());
  }

  async start() {
    const { blocks } = await get("/v1/inspect");
    document.getElementById("memory").hidden = !blocks.length;
    this.block.replaceChildren(...blocks.map((each) => {
      const option = new Option(`${each.block} (${each.kind})`, String(each.block));
      option.dataset.heads = String(each.heads);
      return option;
    }));
    this.fillHeads();
  }

  fillHeads() {
    const heads = Number(this.block.selectedOptions[0]?.dataset.heads ?? 0);
    this.head.replaceChildren(...Array.from({ length: heads }, (_, head) => new Option(String(head), String(head))));
  }

  async look() {
    const { tokens, state } = await this.text();
    if (!tokens.length) return;
    this.found = await post("/v1/inspect", { tokens: tokens.slice(-4096), state, block: Number(this.block.value) });
    this.draw();
  }

  draw() {
    if (!this.found) return;
    const head = Math.min(Number(this.head.value), this.found.heads - 1);
    const kept = this.found.forget.map((row) => row[head]);
    const taken = this.found.input.map((row) => row[head]);
    const colors = getComputedStyle(document.documentElement);
    this.canvas.width = Math.max(1, kept.length * CELL);
    const pen = this.canvas.getContext("2d");
    pen.clearRect(0, 0, this.canvas.width, 64);
    for (const [values, color, bottom] of [[kept, "--kept", 31], [taken, "--taken", 63]]) {
      pen.fillStyle = colors.getPropertyValue(color);
      values.forEach((value, place) => pen.fillRect(place * CELL, bottom - 28 * value, CELL - 1, 28 * value));
    }
    const mean = (values) => (values.reduce((sum, value) => sum + value, 0) / values.length).toFixed(2);
    const low = kept.indexOf(Math.min(...kept));
    this.canvas.setAttribute("aria-label",
      `Of ${kept.length} tokens: kept ${mean(kept)} on average, least at token ${low + 1}; taken in ${mean(taken)}.`);
  }
}
