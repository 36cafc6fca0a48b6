"""The building plan, enforced: imports go down, mixers do not know each other, files stay readable, import is free."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGE = SRC / "exlstm"
FILES = sorted(PACKAGE.rglob("*.py"))
# ground floor first; a file may import its own floor and those below
FLOORS = {
    "runtime": 0,
    "ops": 1,
    "nn": 2,
    "mixers": 3,
    "models": 4,
    "rnn": 4,
    "data": 5.0,
    "train": 5.1,
    "infer": 5.2,
    "cli": 7,
}
FLOORS |= {"hf": 6.0, "harness": 6.1}  # each needs an extra; only cli imports them
FLOORS |= {"study": 6.2}
FLOORS |= {"forecast": 5.3}
FLOORS |= {"exporting": 5.4}
FLOORS |= {"serve": 6.3}
# both read tokens; neither needs the other
APART = {("infer", "train")}
# who may import which third party; what is not listed and not the standard library may be imported by nobody
OUTSIDE = {
    "torch": set(FLOORS),
    "numpy": {"runtime", "ops", "data", "train", "study", "forecast", "exporting", "serve"},
    "safetensors": {"models", "train"},
    "triton": {"runtime", "ops"},
    "numba": {"runtime", "ops"},
    "llvmlite": {"runtime", "ops"},
    "tokenizers": {"data"},
    "matplotlib": {"train", "cli", "study", "forecast"},
    "rich": {"train", "cli", "study"},
    "tyro": {"cli"},
    "transformers": {"hf"},
    "lm_eval": {"harness"},
    "tqdm": {"harness"},
    "yaml": {"models"},
    "ray": {"study"},
    "sklearn": {"data"},
    "pyarrow": {"data"},
    "mnist1d": {"data"},
    "statsforecast": {"forecast"},
    "onnx": {"exporting"},
    "onnxruntime": {"exporting"},
}
SERVING = {"fastapi", "starlette", "uvicorn", "uvloop", "pydantic", "prometheus_client", "jinja2", "msgspec"}
SERVING |= {"llguidance"}
OUTSIDE |= {name: {"serve"} for name in SERVING}
# what `import exlstm` may not cost: imported inside the function that needs it
HEAVY = {"numba", "llvmlite", "triton", "matplotlib", "tokenizers", "rich", "tyro"}
HEAVY |= {"transformers", "datasets", "lm_eval", "ray", "sklearn", "pyarrow", "statsforecast", "mnist1d"}
HEAVY |= {"onnx", "onnxscript", "onnxruntime"} | SERVING
AT_TOP = {"rich": {"cli"}, "tyro": {"cli"}, "transformers": {"hf"}, "lm_eval": {"harness"}}
AT_TOP |= {name: {"serve"} for name in SERVING}
MAX_FILE, MAX_FUNCTION = 400, 60


def part(path):
    """The floor a file stands on: its folder or, for cli.py, its name; '' for the package's own names."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return {"__init__": "", "api": "", "__main__": "cli"}.get(name, name)


def imports(tree):
    """Every import of a file, at any depth: (module, is it executed on import of the file)."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full, from the package root"
            # `from exlstm.mixers import lstm` imports the sibling as much as `import exlstm.mixers.lstm`
            yield from ((f"{node.module}.{alias.name}", id(node) not in inside) for alias in node.names)


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def is_kernel_page(parts):
    """Kernels and what they are written with: they import their compiler, so others import them when they run."""
    if parts and parts[0] == "ops" and len(parts) > 1:
        return len(parts) > 2 and parts[2] in {"numba", "triton"}
    return list(parts[:2]) == ["runtime", "cpu"] or list(parts[:3]) in (
        ["runtime", "gpu", "math"],
        ["runtime", "gpu", "tiles"],
    )


def problems(path, source):
    """What the plan has against this file."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    here = part(path)
    for module, at_top in imports(ast.parse(source)):
        top, *rest = module.split(".")
        if top == "exlstm":
            yield from problems_inside(here, parts, rest, at_top)
        elif top in sys.stdlib_module_names:
            continue
        elif here and here not in OUTSIDE.get(top, set()):
            yield f"{here} may not import {top}"
        elif top in HEAVY and at_top and here not in AT_TOP.get(top, set()) and not is_kernel_page(parts):
            yield f"import {top} inside the function that needs it"


def problems_inside(here, parts, there, at_top):
    if not there or there[0] not in FLOORS:
        return
    if here and (FLOORS[there[0]] > FLOORS[here] or (here, there[0]) in APART):
        yield f"{here} may not import {there[0]}"
    if here == there[0] == "mixers" and parts[1] != "__init__" and there[1] not in {"contract", "state", parts[1]}:
        yield f"mixers.{parts[1]} may not import its sibling mixers.{there[1]}"
    if at_top and is_kernel_page(there) and not is_kernel_page(parts):
        yield f"import {'.'.join(there)} inside the function that needs it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_floors(path):
    assert part(path) in {"", *FLOORS}, f"{path.name} stands on no floor of the plan"
    assert list(problems(path, path.read_text())) == []


# a plan compares addresses to notice another tensor; it hands none to a kernel
COMPARES_ADDRESSES = {"ops/linear/__init__.py"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_kernels_get_addresses_from_one_place(path):
    """`launch` and `runtime.cpu.kernel.address` check dtype, device, order and length."""
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert "data_ptr" not in used or path.relative_to(PACKAGE).as_posix() in COMPARES_ADDRESSES, (
        "pass the tensor to `launch`"
    )


def circle(edges):
    """A circle of a graph as a list of its nodes, or None. edges: node -> the nodes that it points to."""
    done, path = set(), []

    def walk(node):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return None
        path.append(node)
        found = next(filter(None, map(walk, sorted(edges[node]))), None)
        path.pop()
        done.add(node)
        return found

    return next(filter(None, map(walk, edges)), None)


def import_graph():
    """Module -> the modules of ours that it imports when it runs: inside functions, too, but not for types alone."""
    names = {".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    edges = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        for node in filter(is_type_checking, list(ast.walk(tree))):
            node.body = []
        # `from exlstm.ops import mlstm` means a module, `from exlstm.ops.mlstm import mlstm` a name inside of one
        meant = {module if module in names else module.rpartition(".")[0] for module, _ in imports(tree)}
        edges[name] = (meant & names.keys()) - {name}
    return edges


def test_no_module_imports_itself_by_way_of_others():
    assert circle(import_graph()) is None


@pytest.mark.parametrize(
    ("edges", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, {"b", "c"}),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, None),
        ({"a": {"b", "c"}, "b": set(), "c": {"a"}}, {"a", "c"}),
    ],
)
def test_planted_circles_are_found(edges, found):
    got = circle(edges)
    assert (got and set(got)) == found


def test_every_folder_is_a_package():
    """Without its __init__ a folder works from a checkout and is missing from the wheel."""
    folders = {path.parent for path in FILES}
    assert [f for f in folders if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_size(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE, "split this file"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize(
    ("place", "line", "problem"),
    [
        ("ops/rope.py", "from exlstm.nn.norm import RMSNorm", "ops may not import nn"),
        ("runtime/threads.py", "from exlstm.ops.rope import rotate", "runtime may not import ops"),
        ("ops/rope.py", "import numba", "import numba inside the function that needs it"),
        ("ops/rope.py", "from exlstm.runtime.cpu.math import exp", "import runtime.cpu.math.exp inside the function"),
        ("ops/slstm/__init__.py", "from exlstm.ops.slstm.numba.op import scan", "inside the function that needs it"),
        ("__init__.py", "import tokenizers", "import tokenizers inside the function"),
        ("nn/norm.py", "def f():\n    import numba", "nn may not import numba"),
        ("mixers/lstm.py", "from exlstm.mixers import attention", "sibling mixers.attention"),
        ("mixers/lstm.py", "from exlstm.mixers.attention import AttentionConfig", "sibling mixers.attention"),
        ("models/lm.py", "import exlstm.data.text", "models may not import data"),
        ("infer/generate.py", "def f():\n    from exlstm.train.loop import train", "infer may not import train"),
        ("models/lm.py", "import transformers", "models may not import transformers"),
        ("data/text.py", "from rich.progress import track", "data may not import rich"),
        ("infer/generate.py", "import exlstm.hf", "infer may not import hf"),
        ("hf/model.py", "import exlstm.harness", "hf may not import harness"),
        ("cli/commands.py", "def f():\n    import lm_eval", "cli may not import lm_eval"),
    ],
)
def test_planted_imports_are_found(place, line, problem):
    found = list(problems(PACKAGE / place, line))
    assert any(problem in text for text in found), found


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("mixers/lstm.py", "from exlstm.mixers.state import rows\nfrom exlstm.ops.conv import causal_conv"),
        ("mixers/__init__.py", "from exlstm.mixers.lstm import LSTMConfig"),
        ("ops/slstm/numba.py", "import numba\nfrom exlstm.runtime.cpu.math import exp"),
        ("ops/slstm/__init__.py", "def f():\n    from exlstm.ops.slstm.numba.op import scan"),
        ("infer/generate.py", "from exlstm.data.tokenizer import Decoder"),
        ("train/loop.py", "from exlstm.data.text import documents\ndef f():\n    import matplotlib.pyplot as plt"),
        ("cli.py", "import tyro\nfrom exlstm.train.loop import train"),
        ("hf/model.py", "from transformers import PreTrainedModel\nfrom exlstm.train.loss import cross_entropy"),
        ("harness/model.py", "from lm_eval.api.model import TemplateLM\nfrom exlstm.infer.generate import stream"),
    ],
)
def test_allowed_imports_pass(place, line):
    assert list(problems(PACKAGE / place, line)) == []


IMPORT = """
import json, os, socket, sys
import torch, numpy, safetensors
asked = []
class Environment(dict):
    def __getitem__(self, key): asked.append(key); return super().__getitem__(key)
    def get(self, key, default=None): asked.append(key); return super().get(key, default)
    def __contains__(self, key): asked.append(key); return super().__contains__(key)
os.environ = Environment(os.environ)
def refuse(*args, **kwargs): raise AssertionError("import exlstm opened a socket")
socket.socket = refuse
before = set(sys.modules)
import exlstm
for name in exlstm.__all__:
    getattr(exlstm, name)
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "asked": asked,
    "cuda": torch.cuda.is_initialized(),
    "threads": torch.get_num_threads(),
}))
"""


def test_import_does_no_work():
    """In a fresh interpreter: no kernel compiler, no plotting, no environment variable, no socket, no CUDA."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    after = json.loads(done.stdout)
    assert set(after["modules"]).isdisjoint(HEAVY)
    assert after["asked"] == []
    assert after["cuda"] is False
    assert after["threads"] == 1  # what OMP_NUM_THREADS of the tests says: importing changes no setting of torch


def test_no_environment_variables_in_the_source():
    for path in FILES:
        for word in ("os.environ", "getenv"):
            assert word not in path.read_text(), f"{path.name} reads the environment"


# what may look at a clock below the floors of training: how long a thread looks for work
CLOCKS = {"runtime/cpu/tasks.py"}


def test_no_clock_chooses_a_form():
    """Forms of an op round differently: chosen by a stopwatch, two runs would differ in their last bits."""
    computing = [path for path in FILES if part(path) in {"runtime", "ops", "nn", "mixers", "models", "infer"}]
    modules = {
        str(path.relative_to(PACKAGE)): {name.split(".")[0] for name, _ in imports(ast.parse(path.read_text()))}
        for path in computing
    }
    assert {path for path, names in modules.items() if names & {"time", "timeit", "datetime"}} <= CLOCKS


# pages in Triton's language: Python in looks, with types of its own, which mypy cannot check
KERNEL_PAGES = [path for path in FILES if "@triton.jit" in path.read_text()]
MAX_KERNEL_PARAMETERS = 20


def triton_functions():
    """(file, function) of all kernels and what they call."""
    for path in KERNEL_PAGES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                yield path.name, node


def test_triton_kernels_take_few_parameters():
    """Tensors with their strides, states and constants come in named tuples."""
    counts = {(page, node.name): len(node.args.args) for page, node in triton_functions()}
    assert len(counts) > 30
    assert {name: count for name, count in counts.items() if count > MAX_KERNEL_PARAMETERS} == {}


def test_only_pages_of_kernels_are_hidden_from_mypy():
    """In one way; what calls kernels is on pages of its own, which are checked."""
    assert {path for path in FILES if "# mypy:" in path.read_text()} == set(KERNEL_PAGES)
    assert all(path.read_text().startswith("# mypy: ignore-errors\n") for path in KERNEL_PAGES)


def test_triton_stays_in_its_rooms():
    """`runtime/gpu` and the folder `triton` of an op."""
    outside = [
        path.relative_to(PACKAGE).as_posix() for path in FILES
        if any(name.split(".")[0] == "triton" for name, _ in imports(ast.parse(path.read_text())))
        and not {"gpu", "triton"} & set(path.relative_to(PACKAGE).parts)
    ]  # fmt: skip
    assert outside == []
