"""transformers' own tests of every model, on ours: each one passes, or is named here with the reason.

They are in the source distribution of transformers. pip downloads it once, into pytest's cache; with
`--transformers-sdist FILE` it is read from a file. Where neither works the test fails, for nothing was tested.
"""

import importlib
import re
import subprocess
import sys
import tarfile
import types
import unittest
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import exlstm
from exlstm.hf import ExlstmConfig, ExlstmForCausalLM

pytestmark = pytest.mark.slow
# pages that test_modeling_common imports and the source distribution lacks; the tests of these two mixins do not run
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
INAPPLICABLE = {
    "test_generation_tester_mixin_inheritance": "GenerationTesterMixin is not in the source distribution",
    **dict.fromkeys(
        (
            "test_gradient_checkpointing_enable_disable",
            "test_training_gradient_checkpointing",
            "test_training_gradient_checkpointing_use_reentrant_false",
            "test_training_gradient_checkpointing_use_reentrant_true",
        ),
        "they look for a GradientCheckpointingLayer, and blocks are ours; test_hf_training.py asks for equal "
        "gradients, and that less is kept",
    ),
    "test_model_base_model_prefix": "there is no model without a head",
}
# why transformers itself leaves a test out
SKIPS = (
    r"test requires (accelerator|multiple accelerators|Flash Attention( \d)?|the kernels library|MPS|deepspeed|PEFT)",
    r"test is slow",
    r".*(does not|doesn't|don't) (support|output|have) .*(attention|sdpa|grouped_mm|position embeddings|TP plan).*",
    r"Cannot capture hidden states, or cannot .*",  # transformers' decorators, which ours does not use
    r"No usage of the `capture_outputs` decorator\.",
    r"No conversion found for .*",
    r"This model is not composite",
    r"No subconfigs so the test does not make sense",
    r"No sequence-to-sequence language modeling head to check",
    r".*has no _keep_in_fp32_modules .*",
    r"This model has no (`base_model_class` defined in tester|sparse experts|`output_router_logits` in its config)\.",
    r"Not a prioritized model for now\.",
    r"ExlstmConfig not in MODEL_MAPPING",  # there is no model without a head
)
# these found something, and show that tests did run
MUST_PASS = {
    "test_resize_embeddings_untied_no_reinit_on_post_init", "test_retain_grad_hidden_states_attentions",
    "test_causal_lm_loss_honors_shift_labels", "test_training", "test_save_load", "test_batching_equivalence",
}  # fmt: skip


@pytest.fixture(scope="session")
def common(pytestconfig, tmp_path_factory):
    """The module of transformers' common tests, of the version that is installed."""
    version = transformers.__version__
    cache = pytestconfig.cache.mkdir(f"transformers-{version}")
    archive = Path(pytestconfig.getoption("--transformers-sdist") or cache / f"transformers-{version}.tar.gz")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    if not archive.is_file():
        source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", f"transformers=={version}"]
        subprocess.run([*pip, "download", *source, "--dest", cache], check=True)
    if not (library := cache / "library").is_dir():
        # what the tests need beside pytest
        subprocess.run([*pip, "install", "--no-deps", "--target", library, "parameterized"], check=True)
    folder = tmp_path_factory.mktemp("transformers")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    tests = folder / f"transformers-{version}/tests"
    for page in (tests / "test_modeling_common.py", Path(transformers.__file__).with_name("testing_utils.py")):
        for mark in set(re.findall(r"mark\.(\w+)", page.read_text())):
            pytestconfig.addinivalue_line("markers", f"{mark}: of transformers")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(str(library))
        package = types.ModuleType("transformers_tests")
        package.__path__ = [str(tests)]
        patch.setitem(sys.modules, package.__name__, package)
        for name, mixin in LEFT_OUT.items():
            parent, _, page = f"{package.__name__}.{name}".rpartition(".")
            stand_in = types.ModuleType(page)
            setattr(stand_in, mixin, type(mixin, (), {}))
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
            patch.setitem(sys.modules, f"{parent}.{page}", stand_in)
        patch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "exlstm", ExlstmForCausalLM.__name__)
        yield importlib.import_module("transformers_tests.test_modeling_common")


class Small:
    """The interface through which the tests get a small model and its input."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, vocab_size = 32, 2, 99
    pattern = "ms"

    def get_config(self):
        return ExlstmConfig.from_lm(
            exlstm.lm_from_pattern(self.pattern, vocab_size=self.vocab_size, width=self.hidden_size, heads=2)
        )

    def prepare_config_and_inputs_for_common(self):
        tokens_BT = torch.randint(self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT)}


def case(common, pattern):
    """The tests as a class of unittest."""
    small = type("Small", (Small,), {"pattern": pattern})
    has = {
        "all_model_classes": (ExlstmForCausalLM,),
        "has_attentions": False,
        "pipeline_model_mapping": {},
        "setUp": lambda self: setattr(self, "model_tester", small()),
    }
    return type("Common", (common.ModelTesterMixin, unittest.TestCase), has)


def by_name(outcomes):
    """The last word on each test, without what a subtest adds to its name."""
    return {test.id().rpartition(".")[2].split()[0]: said for test, said in outcomes}


@pytest.mark.parametrize("pattern", ["ms", "Ml"])
def test_transformers_own_tests(common, pattern, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(case(common, pattern))
    names = {name for name, _ in by_name((test, None) for test in tests).items()}
    result = unittest.TestResult()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests.run(result)
    failed, skipped = by_name([*result.failures, *result.errors]), by_name(result.skipped)
    unknown = {name: said for name, said in failed.items() if name not in INAPPLICABLE}
    assert not unknown, "\n\n".join(f"{name}\n{said}" for name, said in unknown.items())
    assert failed.keys() == INAPPLICABLE.keys()
    assert {name: said for name, said in skipped.items() if not any(re.fullmatch(why, said) for why in SKIPS)} == {}
    assert names - failed.keys() - skipped.keys() >= MUST_PASS
