"""An exported model in a program of its own: numpy and onnxruntime, no exlstm and no torch.

    exlstm export runs/demo --output step.onnx
    exlstm export runs/demo --part chunk --output chunk.onnx
    python examples/07_onnx_without_exlstm.py step.onnx chunk.onnx

A language model goes on from a text, byte by byte; another model reads random numbers. Files of any such model will do:
names, shapes and first values of all tensors are in their metadata.
"""

import json
import sys
import time

import numpy as np
import onnxruntime

PROMPT = "def "
TOKENS = 60


class Graph:
    """An exported step or chunk: `y, state = graph(x, state)`."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the steps of a small model are too short to share
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        about = self.session.get_modelmeta().custom_metadata_map
        self.model, self.part = about["exlstm.model"], about["exlstm.part"]
        self.steps = int(about["exlstm.steps"] or 1)
        self.time_axis = int(about["exlstm.time_axis"] or 1)
        self.input, self.output, self.parts = (json.loads(about[f"exlstm.{n}"]) for n in ("input", "output", "state"))

    def empty(self, batch: int) -> dict[str, np.ndarray]:
        """The state before the first step. A row times 0 is such a state, too: the memory is cleared."""
        return {
            part["name"]: np.full([batch if n == "batch" else n for n in part["shape"]], part["zero"], part["dtype"])
            for part in self.parts
        }

    def __call__(self, x: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The output, and the state after the last step."""
        names = [self.output["name"], *(part["after"] for part in self.parts)]
        y, *after = self.session.run(names, {self.input["name"]: x, **state})
        return y, {part["name"]: value for part, value in zip(self.parts, after, strict=True)}


def read(step: Graph, chunk: Graph | None, x: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict]:
    """Steps along axis 1, as many whole chunks as there are and the rest one by one: the last output, and the state."""
    begin, y = 0, np.zeros(0)
    while chunk is not None and begin + chunk.steps <= x.shape[1]:
        part = x[:, begin : begin + chunk.steps]
        outputs, state = chunk(part if chunk.time_axis else part.swapaxes(0, 1), state)
        y, begin = outputs[:, -1] if chunk.time_axis else outputs[-1], begin + chunk.steps
    for t in range(begin, x.shape[1]):
        y, state = step(x[:, t], state)
    return y, state


def write(step: Graph, chunk: Graph | None, prompt: str, count: int) -> bytes:
    """The prompt and its greedy continuation, in bytes."""
    tokens = list(prompt.encode())
    logits, state = read(step, chunk, np.array([tokens], dtype=np.int64), step.empty(1))
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits, state = step(np.array(tokens[-1:], dtype=np.int64), state)
    return bytes(token for token in tokens if token < 256)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    step, chunk = Graph(sys.argv[1]), Graph(sys.argv[2]) if len(sys.argv) > 2 else None
    assert step.part == "step", f"{sys.argv[1]} is a {step.part}; export a step first"
    begin = time.perf_counter()
    if step.model == "LM":
        text = write(step, chunk, PROMPT, TOKENS)
        print(text.decode(errors="replace"))
        count = len(PROMPT) + TOKENS
    else:
        count = 100
        x = np.random.default_rng(0).standard_normal((2, count, step.input["shape"][-1]), dtype=np.float32)
        y, _ = read(step, chunk, x, step.empty(2))
        print(f"output after {count} steps: {y[0, :4]} ...")
    seconds = time.perf_counter() - begin
    print(f"{step.model}: {count} steps, {1e3 * seconds / count:.2f} ms each")
    loaded = {"exlstm", "torch"} & set(sys.modules)
    print(f"loaded beside numpy and onnxruntime: {sorted(loaded) or 'nothing of exlstm or torch'}")


if __name__ == "__main__":
    main()
