// One exported step of a language model: tokens in, logits out, and the state goes round.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array };

export class Step {
  // url: of model.onnx; about: model.json, with the names, shapes and dtypes of all tensors
  static async load(url, about) {
    ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
    ort.env.wasm.numThreads = 1; // the steps of a small model are too short to share
    const step = new Step();
    step.session = await ort.InferenceSession.create(url, { executionProviders: ["wasm"] });
    step.about = about;
    return step;
  }

  // the state before the first token: zeros
  empty() {
    const state = {};
    for (const { name, shape, dtype } of this.about.state) {
      const sizes = shape.map((n) => (n === "batch" ? 1 : n));
      const count = sizes.reduce((a, b) => a * b, 1);
      state[name] = new ort.Tensor(dtype, new ARRAYS[dtype](count), sizes);
    }
    return state;
  }

  // logits of the next token, and the state after this one
  async run(token, state) {
    const tokens = new ort.Tensor("int64", BigInt64Array.of(BigInt(token)), [1]);
    const found = await this.session.run({ [this.about.input.name]: tokens, ...state });
    const after = {};
    for (const part of this.about.state) after[part.name] = found[part.after];
    return { logits: found[this.about.output.name].data, state: after };
  }
}

// temperature 0: the most probable token; the first of equal ones, as torch
export function draw(logits, temperature, random = Math.random) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  if (temperature === 0) return best;
  const weights = Array.from(logits, (x) => Math.exp((x - logits[best]) / temperature));
  let left = random() * weights.reduce((a, b) => a + b, 0);
  for (let i = 0; i < weights.length; i++) if ((left -= weights[i]) < 0) return i;
  return best;
}

// bytes of a continuation, as they come: {token, text}
export async function* continued(step, prompt, { count, temperature }) {
  const decoder = new TextDecoder();
  let state = step.empty();
  let logits;
  for (const token of new TextEncoder().encode(prompt)) ({ logits, state } = await step.run(token, state));
  for (let i = 0; i < count; i++) {
    const token = draw(logits, temperature);
    yield { token, text: token < 256 ? decoder.decode(Uint8Array.of(token), { stream: true }) : "\n" };
    ({ logits, state } = await step.run(token, state));
  }
}
