"""The package: the declared dependencies, the lock, and a wheel that installs and runs."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import exlstm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# ourselves; torch on Linux with a GPU; numba; an extra; lm-eval, and an error says how to get it;
# statsforecast, pyarrow and mnist1d where they are installed: a table or an error says if not;
# onnx and onnxruntime: an extra, and an error says how to get it
COME_WITH_OTHERS = {"exlstm", "triton", "llvmlite", "ray", "sklearn", "statsforecast", "pyarrow", "mnist1d", "onnx"}
COME_WITH_OTHERS |= {"onnxruntime"}
EXTRAS = PROJECT["optional-dependencies"]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def locked(folder=ROOT):
    lines = (folder / "requirements.lock").read_text().splitlines()
    return dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if line and line[0] != "#")


def imported_names(place):
    for path in [place] if place.is_file() else place.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module.split(".")[0]


def test_the_core_dependencies_are_those_that_src_imports():
    """Beside what exlstm.hf, exlstm.harness and exlstm.serve import, which come with extras."""
    distributions = packages_distributions()
    used = {
        name_of(distribution)
        for folder in (ROOT / "src/exlstm").iterdir()
        if folder.name not in ("hf", "harness", "serve")
        for module in imported_names(folder)
        if module not in sys.stdlib_module_names and module not in COME_WITH_OTHERS
        for distribution in distributions[module][:1]
    }
    assert used == {name_of(r) for r in PROJECT["dependencies"]}


def test_ranges_not_pins():
    assert all(">=" in r for r in PROJECT["dependencies"])


def test_the_lock_pins_every_direct_dependency_and_fits_every_machine():
    pins = {name_of(name): version for name, version in locked().items()}
    direct = [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
    # every torch for NVIDIA brings its own Triton
    assert {name_of(r) for r in direct} <= set(pins) | {"triton"}
    # a local version or a CUDA package would tie the lock to one index or one machine
    assert pins["torch"] == "2.13.0"
    assert not [n for n in pins if n.startswith("nvidia") or n == "triton"]
    assert not [v for v in pins.values() if "+" in v]
    # torch asks for this at run time, and pip leaves it out of a plain freeze
    assert "setuptools" in pins


def test_the_lock_of_integrations_has_what_they_and_exlstm_need():
    """It is of the same torch, and of no index and no machine, too."""
    folder = ROOT / "examples/integrations"
    pins = {name_of(name): version for name, version in locked(folder).items()}
    asked = [x for x in (folder / "requirements.in").read_text().splitlines() if x[0] != "#"]
    assert all(">=" in x for x in asked)
    assert {name_of(x) for x in [*asked, *PROJECT["dependencies"]]} <= set(pins)
    assert pins["torch"] == locked()["torch"]
    assert not [name for name in pins if name.startswith("nvidia") or name == "triton"]
    assert not [version for version in pins.values() if "+" in version]


def test_the_installed_metadata_is_that_of_pyproject():
    """An editable install made before the last change to pyproject.toml would test another package."""
    core = {name_of(r) for r in requires("exlstm") if "extra ==" not in r}
    assert core == {name_of(r) for r in PROJECT["dependencies"]}


def test_the_version_is_told_once():
    assert exlstm.__version__ == PROJECT["version"] == version("exlstm")


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_every_file_and_runs_where_the_source_is_not(tmp_path):
    """The wheel is built from a copy, since setuptools leaves files behind, and installed in a new environment."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("exlstm-*.whl")
    shipped = {n for n in zipfile.ZipFile(wheel).namelist() if not n.split("/")[0].endswith(".dist-info")}
    modules = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src/exlstm").rglob("*.py")}
    pages = {f"exlstm/serve/static/{p.name}" for p in (ROOT / "src/exlstm/serve/static").iterdir()}
    assert shipped == modules | pages | {"exlstm/py.typed"}

    # the dependencies are those of this environment; only exlstm itself comes from the wheel
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    where = run(python, "-c", "import exlstm; print(exlstm.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))
    assert "generate" in run(tmp_path / "venv/bin/exlstm", "--help", cwd=tmp_path)
