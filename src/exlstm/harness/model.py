"""The model `exlstm` of lm-evaluation-harness: log-likelihoods with carried state, for texts of any length."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from exlstm.data.model_tokenizer import tokenizer_of
from exlstm.data.tokenizer import Tokenizer
from exlstm.harness.scoring import batches, score_choices, score_texts
from exlstm.infer.generate import stream
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY, SamplingConfig
from exlstm.models.lm import LM
from exlstm.models.locate import Which, locate
from exlstm.models.weight_formats import WeightFormat
from exlstm.runtime.machine import pick_device

Scored = tuple[float, bool]
Pair = tuple[tuple[str, str], list[int], list[int]]
# generation settings that a task may have
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
OTHERS = ("until", "do_sample", "max_gen_toks", "num_beams")


@register_model("exlstm")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A model or run on disk as a model of lm-evaluation-harness.

    pretrained: a folder with a run, or with a model in any layout that `exlstm.load` knows.
    tokenizer: a tokenizer.json or "bytes"; None takes the one of the run or folder.
    checkpoint: "best", "last" or a step, for a run.
    weights: "as-saved", "float32", "bfloat16", "int8" or "int4".
    window: None reads every text whole, as far as the model has positions for it; a number cuts texts into windows of
    so many tokens.
    add_bos_token: whether a context begins with the boundary, as in training.
    seed: of sampled answers.
    batch_size: sequences at a time; "auto" is 16.
    Raises ValueError for a folder without a model or a tokenizer, and for invalid settings.
    """

    shows_progress = True

    def __init__(
        self, pretrained: str, *, tokenizer: str | None = None, checkpoint: Which | int = "best",
        weights: WeightFormat = "as-saved", window: int | None = None, add_bos_token: bool = True,
        max_gen_toks: int = 256, seed: int = 0, batch_size: int | str = 16, max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"window is {window}; it must be at least 1 token, or left out to read texts whole.")
        self._device = pick_device(device or "auto")
        place = locate(pretrained, checkpoint)
        self._tokenizer: Tokenizer = tokenizer_of(place, tokenizer)
        self.model: LM = place.load(weights, self._device)
        classes = self.model.config.vocab_size
        if self._tokenizer.vocab_size > classes:
            raise ValueError(
                f"the tokenizer has {self._tokenizer.vocab_size} tokens but the model only {classes}; "
                "name the tokenizer that the model was trained with."
            )
        # a model with a table of positions reads no more than these
        self.window, self.add_bos_token = window or self.model.config.positions, add_bos_token
        self.max_gen_toks, self.seed, self.name = max_gen_toks, seed, str(pretrained)
        self.batch_size = _batch(batch_size, max_batch_size)

    @property
    def eot_token_id(self) -> int:
        """The boundary token, between documents."""
        return self._tokenizer.boundary

    @property
    def max_length(self) -> int:
        """The window, or a number larger than any text."""
        return self.window or 2**31 - 1

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer in the harness's cache of requests."""
        return self.name.replace(os.sep, "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """The ids of a text; add_special_tokens puts the boundary in front, None takes add_bos_token."""
        front = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return [self.eot_token_id] * front + self._tokenizer.encode(string.encode())

    def _bar(self, total: int, hidden: bool, what: str) -> Any:
        return tqdm(total=total, disable=hidden or not self.shows_progress, desc=f"Running {what} requests")

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False) -> list[Scored]:
        """Log-likelihoods of continuations; each context is read once, however many continuations it has."""
        results: list[Scored] = [(0.0, True)] * len(requests)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            groups.setdefault(tuple(self._cut(context, continuation)), []).append(index)
        contexts = list(groups)
        bar = self._bar(len(requests), disable_tqdm, "loglikelihood")
        for here in batches(range(len(contexts)), [len(context) for context in contexts], self.batch_size):
            members = [groups[contexts[row]] for row in here]
            choices = [[requests[index][2] for index in group] for group in members]
            found = score_choices(self.model, [contexts[row] for row in here], choices, self.batch_size)
            for group, scores in zip(members, found, strict=True):
                for index, score in zip(group, scores, strict=True):
                    results[index] = (score.total, score.greedy)
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
                bar.update(len(group))
        bar.close()
        return results

    def _cut(self, context: list[int], continuation: list[int]) -> list[int]:
        """The end of a context that fits into the window before the last token of the continuation."""
        if not context:
            raise ValueError("a context has no tokens; set add_bos_token=True, so that it begins with the boundary.")
        if self.window is None:
            return context
        if len(continuation) > self.window:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, more than the window of {self.window}; "
                "leave window out."
            )
        return context[-(self.window + 1 - len(continuation)) :]

    @torch.inference_mode()
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts after a boundary, with the state carried from beginning to end.

        With a window it is the usual sum over windows that do not overlap.
        """
        texts = [[self.eot_token_id, *self.tok_encode(request.args[0], False)] for request in requests]
        totals = [0.0] * len(texts)
        bar = self._bar(len(requests), disable_tqdm, "loglikelihood_rolling")
        for here in batches(range(len(texts)), [len(text) for text in texts], self.batch_size):
            if self.window is None:
                found = [score.total for score in score_texts(self.model, [texts[index] for index in here])]
            else:
                found = [self._windowed(texts[index]) for index in here]
            for index, total in zip(here, found, strict=True):
                totals[index] = total
                self.cache_hook.add_partial("loglikelihood_rolling", requests[index].args, total)
            bar.update(len(here))
        bar.close()
        return totals

    def _windowed(self, text: list[int]) -> float:
        windows = get_rolling_token_windows(text[1:], text[0], max_seq_len=self.max_length, context_len=1)
        pairs: list[Any] = [(None, *make_disjoint_window(pair)) for pair in windows]
        return sum(total for total, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, the end of the document, or max_gen_toks."""
        asked = [self._request(index, *request.args) for index, request in enumerate(requests)]
        texts: list[list[str]] = [[] for _ in asked]
        bar = self._bar(len(requests), disable_tqdm, "generate_until")
        for event in stream(self.model, asked, tokenizer=self._tokenizer, slots=self.batch_size):
            texts[event.request].append(event.text)
            if event.finish_reason is not None:
                if event.error is not None:
                    raise ValueError(f"request {event.request} cannot be answered: {event.error}")
                text = "".join(texts[event.request])
                self.cache_hook.add_partial("generate_until", requests[event.request].args, text)
                bar.update(1)
        bar.close()
        return ["".join(parts) for parts in texts]

    def _request(self, index: int, context: str, given: dict[str, Any]) -> Request:
        settings = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        if unknown := sorted(settings.keys() - {*SAMPLING, *OTHERS}):
            raise ValueError(
                f"the task sets {unknown[0]!r} for generation; known are {', '.join((*SAMPLING, *OTHERS))}."
            )
        if settings.get("num_beams", 1) != 1:
            raise ValueError(f"num_beams is {settings['num_beams']}; this model samples, so leave it out.")
        values = {name: settings[name] for name in SAMPLING if settings.get(name) is not None}
        sampling = SamplingConfig(**values) if settings["do_sample"] else GREEDY
        return Request(
            prompt=self.tok_encode(context) or [self.eot_token_id],
            max_tokens=settings["max_gen_toks"],
            sampling=sampling,
            seed=self.seed + index,
            stop=[text for text in settings["until"] if text],
        )


def _batch(size: int | str, most: int | None) -> int:
    number = 16 if str(size).startswith("auto") else int(size)
    number = number if most is None else min(number, int(most))
    if number < 1:
        raise ValueError(f"batch_size is {size}; it must be at least 1, or auto.")
    return number
