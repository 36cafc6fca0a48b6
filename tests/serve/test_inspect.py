"""Gates over HTTP are those of the reader in this process."""

import pytest

from exlstm.infer.gates import GateReader, gated_blocks

TOKENS = [256, *b"What a memory keeps, and what it revises. " * 8]


def flat(rows):
    return [value for row in rows for value in row]


def test_gates(served):
    about = served.get("/v1/inspect").json()["blocks"]
    assert about == gated_blocks(served.model)
    for each in about:
        found = served.post("/v1/inspect", {"tokens": TOKENS, "block": each["block"]}).json()
        expected = GateReader(served.model, each["block"]).read(TOKENS)
        assert found["heads"] == each["heads"]
        for name, values_TH in zip(("forget", "input"), expected, strict=True):
            assert flat(found[name]) == pytest.approx(values_TH.flatten().tolist(), abs=1e-3)


def test_gates_after_a_state(served):
    state = served.post("/v1/states", {"prompt": TOKENS[:20]}).json()["id"]
    found = served.post("/v1/inspect", {"tokens": TOKENS[20:30], "block": 0, "state": state}).json()
    whole = served.post("/v1/inspect", {"tokens": TOKENS[:30], "block": 0}).json()
    assert flat(found["forget"]) == pytest.approx(flat(whole["forget"][20:]), abs=1e-3)


def test_what_is_refused(served):
    for body, param in (
        ({"tokens": []}, "tokens"), ({"tokens": [999]}, "tokens"), ({"tokens": [1] * 5_000}, "tokens"),
        ({"tokens": [1], "block": 9}, "block"), ({"tokens": [1], "state": "st_none"}, "state"),
    ):  # fmt: skip
        response = served.post("/v1/inspect", {"block": 0, **body})
        assert response.status_code in (400, 404)
        assert response.json()["error"]["param"] == param
