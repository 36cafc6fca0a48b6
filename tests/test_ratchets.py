"""Rules that keep the rooms as they are: compilers in their folders, one way to run kernels, plain words.

Numbers here may fall and not rise: when one has fallen, write the new one down.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from exlstm.runtime.cpu.jit import INLINED

PACKAGE = Path(__file__).parents[1] / "src" / "exlstm"
FILES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in FILES.items()}


def is_kernel_page(name):
    """Pages of kernels: their records and helpers are their own."""
    parts = Path(name).with_suffix("").parts
    return parts[0] == "ops" and bool({"numba", "triton"} & set(parts))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_compilers_stay_in_their_rooms():
    """Numba in runtime/cpu and in the kernels of ops, and LLVM's language in runtime/cpu, but for one page."""
    found = defaultdict(set)
    for name, tree in TREES.items():
        for module in imported(tree):
            if module.split(".")[0] in {"numba", "llvmlite"} and not name.startswith("runtime/cpu/"):
                found[name].add(module.split(".")[0])
    # weights of fewer bits are whole numbers, which the vectors of runtime/cpu do not know
    assert dict(found) == {"ops/linear/numba/tiles.py": {"llvmlite"}, "runtime/internals.py": {"numba"}}


PRIVATE = re.compile(
    r"torch\._(?!_)|_dynamo|numba\.core|numba\.np|\._cache\b|mkldnn\._|_python_dispatch|_functorch"
    r"|\._(parameters|buffers|forward_hooks|forward_pre_hooks)\b"
)


@pytest.mark.parametrize("name", FILES)
def test_private_names_are_in_one_place(name):
    """One file for torch, one for Numba, which need not be installed."""
    if name not in {"runtime/internals.py", "runtime/cpu/internals.py"}:
        assert PRIVATE.findall(FILES[name]) == []


def kernels_of(tree):
    """The names of what a page declares with @kernel(...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(d, ast.Call) and isinstance(d.func, ast.Name) and d.func.id == "kernel"
            for d in node.decorator_list
        ):
            yield node.name


def misused(tree, names):
    """Kernels that are named anywhere but as the first argument of `launch`, or of a capture's `add_node`."""
    allowed = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and node.args
        and ((isinstance(node.func, ast.Name) and node.func.id == "launch")
             or (isinstance(node.func, ast.Attribute) and node.func.attr == "add_node"))
    }  # fmt: skip
    local = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names - local and id(node) not in allowed:
            yield node.id, node.lineno


def test_kernels_are_only_launched():
    """`launch` is what checks tensors, chooses threads and captures."""
    own = {name: set(kernels_of(tree)) for name, tree in TREES.items()}
    assert sum(map(len, own.values())) >= 15
    found = {name: list(misused(TREES[name], own[name])) for name in FILES if own[name]}
    assert {name: uses for name, uses in found.items() if uses} == {}


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("launch(step, 3, x, cost=1.0)", False),
        ("self.add_node(step, 3, x)", False),
        ("step(0, 3, x)", True),
        ("launch(other, step, cost=1.0)", True),
        ("f = step", True),
    ],
)
def test_planted_uses_of_kernels(code, wrong):
    assert bool(list(misused(ast.parse(code), {"step"}))) == wrong


TWICE = {name: [f"mixers/{name.lower()}.py", f"rnn/{name.lower()}.py"] for name in ("LSTM", "MLSTM", "SLSTM")}


def test_class_names_are_unique():
    """But for records of kernels, which are a page's own, and layers that are called as their drop-ins are."""
    homes = defaultdict(list)
    for name, tree in TREES.items():
        if not is_kernel_page(name):
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(name)
    assert {name: files for name, files in homes.items() if len(files) > 1} == TWICE


# words of a former private language, and what the field says: capture, replay, pool, replica, item or block, bfloat16
RETIRED = {"tape", "taped", "team", "player", "crew", "twin", "piece", "pieces", "short", "recordable", "yardstick"}
# tokenizers cut text into pieces; a setting of saved runs
EXCEPTED = {"data/tokenizer.py": {"piece", "pieces"}, "train/config.py": {"yardstick"}}


def identifiers(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def words(identifier):
    """PlayerOf_short -> player, of, short"""
    return set(re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", identifier).lower().split("_"))


def test_words():
    assert words("PlayerOf_short") == {"player", "of", "short"}


@pytest.mark.parametrize("name", FILES)
def test_retired_words_do_not_come_back(name):
    found = {i for i in identifiers(TREES[name]) if words(i) & (RETIRED - EXCEPTED.get(name, set()))}
    assert found == set()


MAX_PARAMETERS, MAX_KERNEL_PARAMETERS = 12, 16  # Triton's kernels: tests/test_architecture.py
# public signatures, interfaces of others, and what autograd calls; these may only fall
MORE = {
    ("hf/model.py", "forward"): 13,
    ("ops/linear/numba/op.py", "tile_sums"): 16,
    ("ops/mlstm/__init__.py", "mlstm"): 15,
    ("ops/mlstm/numba/scan.py", "forward"): 13,
    ("ops/mlstm/triton/op.py", "backward"): 16,
    ("ops/mlstm/triton/op.py", "fake_forward"): 14,
    ("ops/mlstm/triton/op.py", "forward"): 15,
    # torch.nn.LSTM has 11 of them
    ("rnn/mlstm.py", "__init__"): 15,
    ("rnn/slstm.py", "__init__"): 15,
}


def parameters():
    """(file, function) -> how many parameters it takes, and whether it is a kernel; the largest of equal names."""
    found = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                decorators = [ast.unparse(d) for d in node.decorator_list]
                if any("triton.jit" in d for d in decorators):
                    continue
                a = node.args
                count = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs)
                key = name, node.name
                found[key] = max(found.get(key, (0, False)), (count, any(d.startswith("kernel(") for d in decorators)))
    return found


def test_functions_take_few_parameters():
    counts = parameters()
    too_many = {
        key: count for key, (count, is_kernel) in counts.items()
        if count > (MAX_KERNEL_PARAMETERS if is_kernel else MAX_PARAMETERS)
    }  # fmt: skip
    assert too_many == MORE


MAX_FMT_SKIP = 176


def test_the_formatter_is_switched_off_no_more_often():
    assert sum(source.count("# fmt: skip") for source in FILES.values()) <= MAX_FMT_SKIP


def test_every_op_has_the_same_faces():
    """A folder with the op in its __init__, unless it is plain torch only; beside them what several ops share."""
    ops = PACKAGE / "ops"
    shared = {"arguments", "common", "derivatives", "fused", "gates", "packed", "positions", "products", "steps"}
    torch_only = {"elman", "position_table", "rope", "toeplitz", "token_shift"}
    files = {path.stem for path in ops.glob("*.py")} - {"__init__"}
    assert files == shared | torch_only
    folders = sorted(path for path in ops.iterdir() if path.is_dir() and path.name != "__pycache__")
    ours = [
        "assoc_lstm",
        "attention",
        "block_linear",
        "bonus",
        "bounded_memory",
        "chunk_attention",
        "conv",
        "delta_rule",
        "ema",
        "features",
        "gated_linear_attention",
        "gated_norm",
        "gru",
        "layer",
        "linear",
        "linear_attention",
        "long_conv",
        "lstm",
        "lti",
        "matrix_rnn",
        "mlstm",
        "mult_lstm",
        "norm",
        "rglru",
        "rotary",
        "scan",
        "selective_scan",
        "slstm",
        "vector_norm",
        "wkv4",
    ]
    assert [path.name for path in folders] == ours
    for path in folders:
        assert (path / "numba.py").exists() or (path / "numba").is_dir(), path
        assert (path / "reference.py").exists() or path.name in {"layer", "linear", "norm"}, path


def test_the_kernels_of_an_op_are_its_own():
    """They may inline those of linear maps, norms and the LSTM's; `runtime.cpu.jit.sources` hashes no others."""
    for name, tree in TREES.items():
        if is_kernel_page(name):
            own = f"exlstm.ops.{Path(name).parts[1]}."
            foreign = {
                module for module in imported(tree)
                if re.match(r"exlstm\.ops\.\w+\.(numba|triton)\b", module)
                and not module.startswith((own, *(f"exlstm.ops.{folder}." for folder in INLINED)))
            }  # fmt: skip
            assert foreign == set(), name
