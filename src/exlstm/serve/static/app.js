// The playground: a notebook first, a chat where the model has a template, and the tree of states below both.

import { ServerError, download, get, post, remove, stream, upload } from "/api.js";
import { MemoryView } from "/memory_view.js";
import { Tree, answer } from "/nodes.js";
import { snippet } from "/snippets.js";
import { TokenView } from "/token_view.js";
import { TreeView } from "/tree_view.js";

const at = (id) => document.getElementById(id);
const tree = new Tree();
const tokens = new TokenView(at("tokens"), at("card"), branch);
const view = new TreeView(at("tree"), tree, showButtons);
const memory = new MemoryView(shownIds);
let chatting = false;
let running = null;
let asPython = false;

/** The settings of a request, as the fields say. */
function settings() {
  const number = (id) => Number(at(id).value);
  if (!at("lock").checked || at("seed").value === "") at("seed").value = String(Math.floor(Math.random() * 2 ** 32));
  const stop = at("stop_text").value;
  return {
    max_tokens: number("max_tokens"), temperature: number("temperature"), top_p: number("top_p"),
    min_p: number("min_p"), repetition_penalty: number("repetition_penalty"), seed: number("seed"),
    ...(stop ? { stop } : {}), ...(at("ignore_eos").checked ? { ignore_eos: true } : {}),
  };
}

/** @param {unknown} error */
function tell(error) {
  if (error?.name === "AbortError") return;
  at("error").textContent = error instanceof ServerError ? error.message : String(error);
  at("error").hidden = false;
}

/** Runs something that may fail, and shows why. @param {() => Promise<unknown>} work */
async function attempt(work) {
  at("error").hidden = true;
  try {
    return await work();
  } catch (error) {
    tell(error);
    return null;
  }
}

/** Text up to the caret, where that is inside of it; the rest stays. */
function taken() {
  const area = at("text");
  const place = document.activeElement === area && area.selectionStart > 0 ? area.selectionStart : area.value.length;
  const text = area.value.slice(0, place);
  area.value = area.value.slice(place);
  return text;
}

/**
 * Goes on from a node: reads a prompt, a text or ids, and samples. Shown are `prompt` and `before`, which the ids hold.
 * @param {import("/nodes.js").Node | null} from
 * @param {string} prompt
 * @param {{ids?: number[], before?: import("/nodes.js").Token[]}} more
 */
async function generate(from, prompt, { ids, before = [] } = {}) {
  const body = {
    prompt: ids ?? prompt, ...settings(), logprobs: 5, return_token_ids: true, keep_state: true,
    stream_options: { include_usage: true }, ...(from?.state ? { state: from.state } : {}),
  };
  if (from?.state && !ids && prompt === "") body.prompt = [];
  tree.head = from?.id ?? null;
  const node = { parent: from?.id ?? null, state: null, count: 0, bytes: 0, prompt, role: "text", tokens: [...before],
    seed: body.seed, finish: "" };
  tokens.draw(tree.path());
  tokens.before(prompt);
  before.forEach((token, place) => tokens.append(tree.next, place, token));
  await run("/v1/completions", body, node, (choice) => {
    for (const token of parts(choice)) {
      tokens.append(tree.next, node.tokens.length, token);
      node.tokens.push(token);
    }
  });
}

/** Tokens of a frame with their texts and alternatives. */
function* parts(choice) {
  const { logprobs, text } = choice;
  if (!logprobs) return;
  const offsets = [...logprobs.text_offset, logprobs.text_offset[0] + text.length];
  for (const [place, id] of logprobs.token_ids.entries()) {
    yield {
      id, logprob: logprobs.token_logprobs[place], top: logprobs.alternatives[place],
      text: text.slice(offsets[place] - offsets[0], offsets[place + 1] - offsets[0]),
    };
  }
}

/** Sends a request and takes what comes; at its end the node is in the tree. */
async function run(path, body, node, take) {
  running = new AbortController();
  showButtons();
  const began = performance.now();
  let first = null;
  let count = 0;
  const show = () => {
    const seconds = (performance.now() - first) / 1000;
    const rate = count > 1 ? ((count - 1) / Math.max(seconds, 1e-3)).toFixed(0) : "…";
    at("speed").textContent = `${count} tokens, ${rate} tokens/s, first after ${(first - began).toFixed(0)} ms`;
  };
  const ended = await attempt(async () => {
    for await (const frame of stream(path, body, running.signal)) {
      const choice = frame.choices[0];
      if (!choice) {
        count = frame.usage.completion_tokens;
        show();
        continue;
      }
      first ??= performance.now();
      count += choice.logprobs?.token_ids?.length ?? 1;
      take(choice);
      if (choice.state?.id) Object.assign(node, { state: choice.state.id, count: choice.state.tokens, bytes: choice.state.bytes });
      if (choice.finish_reason) node.finish = choice.finish_reason;
      show();
    }
    return true;
  });
  running = null;
  tokens.flush();
  // what was stopped or lost has no state, and nothing has changed
  if (ended && node.state) {
    tree.add(node);
    at("spoken").textContent = answer(node);
  } else if (ended) {
    tell(new ServerError("The server has no room for another state; delete some."));
  } else {
    at("spoken").textContent = "Stopped.";
  }
  redraw();
}

/** Another token at a place of an answer: the state before the answer, and the tokens up to there. */
async function branch(id, place, token) {
  const node = tree.get(id);
  if (!node || running) return;
  const from = tree.get(node.parent);
  await attempt(async () => {
    const prompt = await promptIds(node);
    const before = node.tokens.slice(0, place);
    const chosen = node.tokens[place].top.find((each) => each.id === token);
    const text = (await post("/detokenize", { tokens: [token] })).prompt;
    before.push({ id: token, text, logprob: chosen.logprob, top: node.tokens[place].top });
    await generate(from, node.prompt, { ids: [...prompt, ...before.map((each) => each.id)], before });
  });
}

/** The ids of a node's prompt. @param {import("/nodes.js").Node} node */
async function promptIds(node) {
  const begins = tree.get(node.parent)?.state == null;
  if (node.prompt === "" && !begins) return [];
  return (await post("/tokenize", { prompt: node.prompt, add_special_tokens: begins })).tokens;
}

/** The ids of the last answer with its prompt, and the state before them. */
async function shownIds() {
  const node = tree.current();
  if (!node) return { tokens: [], state: null };
  const ids = [...(await promptIds(node)), ...node.tokens.map((token) => token.id)];
  return { tokens: ids, state: tree.get(node.parent)?.state ?? null };
}

/** A turn of a talk. @param {string} line */
async function say(line) {
  const from = tree.current();
  const body = {
    messages: [{ role: "user", content: line }], ...settings(), keep_state: true,
    stream_options: { include_usage: true }, ...(from?.state ? { state: from.state } : {}),
  };
  const node = { parent: from?.id ?? null, state: null, count: 0, bytes: 0, prompt: line, role: "turn", tokens: [],
    seed: body.seed, finish: "" };
  const said = turn("user", line);
  const reply = turn("assistant", "");
  at("talk").append(said, reply);
  await run("/v1/chat/completions", body, node, (choice) => {
    const text = choice.delta?.content ?? "";
    if (text) node.tokens.push({ id: -1, text, logprob: 0, top: [] });
    reply.textContent += text;
    reply.scrollIntoView({ block: "nearest" });
  });
}

/** @param {string} role @param {string} text */
function turn(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.dataset.role = role;
  item.dir = "auto";
  item.textContent = text;
  return item;
}

function redraw() {
  view.selected = tree.head;
  view.draw();
  tokens.draw(chatting ? [] : tree.path());
  at("talk").replaceChildren(...tree.path().flatMap((node) => [turn("user", node.prompt), turn("assistant", answer(node))]));
  showButtons();
  showCode();
}

function showButtons() {
  const selected = tree.get(view.selected);
  at("generate").disabled = running !== null;
  at("stop").disabled = running === null;
  at("undo").disabled = at("again").disabled = running !== null || tree.head === null;
  at("rewind").disabled = running !== null || !selected || selected.id === tree.head;
  at("download").disabled = at("delete").disabled = running !== null || !selected;
}

function showCode() {
  const from = tree.current();
  const body = { prompt: at("text").value, ...settings(), ...(from?.state ? { state: from.state } : {}) };
  at("snippet").textContent = snippet(body, location.origin, asPython);
  at("as-curl").setAttribute("aria-pressed", String(!asPython));
  at("as-python").setAttribute("aria-pressed", String(asPython));
}

/** @param {boolean} wanted */
function setChat(wanted) {
  chatting = wanted;
  at("notebook").hidden = at("tokens").hidden = at("memory").hidden = wanted;
  at("chat").hidden = !wanted;
  at("view-notebook").setAttribute("aria-pressed", String(!wanted));
  at("view-chat").setAttribute("aria-pressed", String(wanted));
  at("generate").textContent = wanted ? "Send" : "Generate";
  redraw();
}

/** Saves a file. @param {Blob} content @param {string} name */
function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {Blob} file */
async function takeState(file) {
  await attempt(async () => {
    const info = await upload(file);
    tree.add({ parent: null, state: info.id, count: info.tokens, bytes: info.bytes, prompt: "(uploaded)", role: "text",
      tokens: [], seed: 0, finish: "" });
    redraw();
  });
}

async function start() {
  const { data } = await get("/v1/models");
  const about = data[0].exlstm;
  at("model").textContent = `${data[0].id}, ${about.fingerprint.slice(0, 12)}, context: ${about.context}`;
  at("max_tokens").max = String(about.limits.max_tokens);
  at("view-chat").hidden = !about.chat;
  await memory.start();
}

const actions = {
  generate: async () => {
    if (chatting) {
      const line = at("line").value;
      if (line.trim() === "") return;
      at("line").value = "";
      await say(line);
    } else {
      await generate(tree.current(), taken());
    }
  },
  stop: () => running?.abort(),
  undo: () => {
    tree.head = tree.current()?.parent ?? null;
    tree.save();
    redraw();
  },
  again: async () => {
    const node = tree.current();
    tree.head = node.parent;
    await (chatting ? say(node.prompt) : generate(tree.get(node.parent), node.prompt));
  },
  rewind: () => {
    view.rewind();
    redraw();
  },
  download: async () => {
    const node = tree.get(view.selected);
    await attempt(async () => save(await download(`/v1/states/${node.state}/content`), `${node.state}.safetensors`));
  },
  delete: async () => {
    const node = tree.get(view.selected);
    await attempt(() => remove(`/v1/states/${node.state}`));
    tree.remove(node.id);
    redraw();
  },
  export: () => save(new Blob([tree.text()], { type: "application/json" }), "exlstm-tree.json"),
  clear: () => {
    tree.clear();
    tree.save();
    redraw();
  },
  "view-notebook": () => setChat(false),
  "view-chat": () => setChat(true),
  "as-curl": () => {
    asPython = false;
    showCode();
  },
  "as-python": () => {
    asPython = true;
    showCode();
  },
};
for (const [id, action] of Object.entries(actions)) at(id).addEventListener("click", action);

at("upload").addEventListener("change", async (event) => {
  if (event.target.files[0]) await takeState(event.target.files[0]);
  event.target.value = "";
});
at("import").addEventListener("change", async (event) => {
  tree.restore(await event.target.files[0].text());
  tree.save();
  event.target.value = "";
  redraw();
});
for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", over);
    if (kind === "drop" && event.dataTransfer.files[0]) takeState(event.dataTransfer.files[0]);
  });
}
at("key").value = sessionStorage.getItem("key") ?? "";
at("key").addEventListener("change", () => {
  sessionStorage.setItem("key", at("key").value);
  attempt(start);
});
at("code").addEventListener("toggle", showCode);
for (const id of ["text", "line"]) {
  at(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) actions.generate();
  });
}
redraw();
attempt(start);
