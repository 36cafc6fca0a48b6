"""Attacks that took other servers down, and which test here stands for each; and what the source may not do at all."""

import ast
import json
from pathlib import Path

import pytest

import exlstm.serve
from serving_tools import serving

HERE, SOURCE = Path(__file__).parent, Path(exlstm.serve.__file__).parent
# file of tests -> test -> attacks that it stands for
COVERED = {
    "test_guard.py": {
        "test_headers_have_bounds": {
            "CVE-2025-48956": "one huge header fills the memory",
        },
        "test_every_key_is_compared_whatever_matches": {
            "CVE-2025-59425": "keys compared by time",
        },
        "test_errors_name_the_field": {
            "CVE-2026-34756": "choices without bound",
        },
        "test_bad_bodies": {
            "llama.cpp 26600": "deep JSON",
        },
    },
    "test_chat.py": {
        "test_what_is_refused": {
            "CVE-2025-62426": "templates from requests",
            "CVE-2026-0599": "addresses in messages are fetched",
        },
    },
    "test_templates.py": {
        "test_hostile_templates_are_stopped": {
            "CVE-2025-61620": "templates that take all time",
        },
        "test_all_hostile_templates_are_stopped": {
            "CVE-2024-34359": "templates without a sandbox",
            "CVE-2026-5760": "templates of model files",
        },
    },
    "test_grammar.py": {
        "test_what_cannot_be_built_is_refused": {
            "CVE-2025-48944": "schemas that end the worker",
        },
    },
    "test_known_attacks.py": {
        "test_the_source_does_nothing_dangerous": {
            "CVE-2025-32444": "pickles from the network",
            "CVE-2026-3059": "pickles from the network",
        },
        "test_negative_and_huge_numbers": {
            "CVE-2026-21869": "negative numbers reach the engine",
        },
        "test_ids_never_become_paths": {
            "llama.cpp 26315": "names of states become paths",
        },
        "test_a_pattern_cannot_take_all_time": {
            "llama.cpp 25308": "patterns that take all time",
        },
    },
    "test_schema.py": {
        "test_any_values_in_known_fields": {
            "CVE-2026-22773": "input that ends the engine",
        },
    },
    "test_states_http.py": {
        "test_what_is_another_s_is_not_there": {
            "CVE-2026-45349": "ids of others",
            "llama.cpp 11040": "prompts of others are shown",
        },
        "test_uploads_that_are_no_states": {
            "CVE-2025-0315": "memory by a number in a request",
        },
        "test_mistakes_are_one_sentence": {
            "no key by default": "open to everybody",
        },
    },
}


@pytest.mark.parametrize("file", COVERED)
def test_every_attack_has_its_test(file):
    tree = ast.parse((HERE / file).read_text())
    there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert COVERED[file].keys() <= there


FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "urllib", "requests", "httpx", "aiohttp", "http", "ftplib", "dill"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "getenv"}
FORBIDDEN_ATTRIBUTES = {"environ", "getenv", "loads_pickle", "system", "popen"}


@pytest.mark.parametrize("file", sorted(SOURCE.glob("*.py")), ids=lambda file: file.name)
def test_the_source_does_nothing_dangerous(file):
    """Nothing unpickles, fetches, runs text, or reads the environment; one file starts a process, of its own code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES, names
            assert "subprocess" not in names or file.name == "sandbox.py"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        if isinstance(node, ast.Attribute):
            assert node.attr not in FORBIDDEN_ATTRIBUTES
            assert not (isinstance(node.value, ast.Name) and node.value.id == "torch" and node.attr == "load")


HUGE = [-1, 2**63, 10**400]


@pytest.mark.breadth(1)
@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/inspect", "/detokenize", "/v1/sessions"]
)
def test_negative_and_huge_numbers(served, path):
    fields = ("max_tokens", "n", "logprobs", "logprobs_from", "top_k", "seed", "block", "mark_every", "timeout")
    for field in fields:
        for value in HUGE:
            body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "tokens": [1], "max_tokens": 1}
            response = served.post(path, json.dumps({**body, field: value}).encode())
            assert response.status_code < 500, (field, value, response.text)
    for value in HUGE:
        for body in (
            {"prompt": [value]},
            {"tokens": [value]},
            {"logit_bias": {str(value)[:80]: 1}},
            {"stop_token_ids": [value]},
        ):
            assert served.post(path, json.dumps({"max_tokens": 1, **body}).encode()).status_code < 500


NAMES = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "st_" + "0" * 32 + "/../x",
    "%00",
    "st_\u202e",
    "a" * 5_000,
    "st_*",
    "~root",
]


def test_ids_never_become_paths(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    with serving(state_folder=str(tmp_path / "states")) as served:
        for name in [*NAMES, str(secret), "../secret", f"st_{secret}"]:
            for path in (
                f"/v1/states/{name}",
                f"/v1/states/{name}/content",
                f"/v1/sessions/{name}",
                f"/v1/models/{name}",
            ):
                response = served.get(path)
                assert response.status_code in (400, 404, 431, 414), path
                assert "a secret" not in response.text
            response = served.post("/v1/completions", {"prompt": "a", "state": name, "max_tokens": 1})
            assert response.status_code in (400, 404)
    assert secret.read_text() == "a secret"
    assert {file.name for file in tmp_path.iterdir()} == {"secret", "states"}


def test_a_pattern_cannot_take_all_time(served):
    """Patterns that take exponential time elsewhere; meanwhile others are served."""
    for pattern in ("(a+)+$", "(a|a)*b", "(.*)*x", "((a{1,50}){1,50}){1,50}"):
        body = {"prompt": "a", "max_tokens": 8, "grammar": {"type": "regex", "value": pattern}}
        assert served.post("/v1/completions", body).status_code in (200, 400)
    assert served.get("/health").status_code == 200
