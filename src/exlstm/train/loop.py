"""The training loop.

A step is a function of the step number, the weights, the optimizer's averages, the random generators and (with
carry_state) the carried state. A checkpoint holds exactly these, so a resumed run continues bit for bit.

B batch  T time  D model width  C classes (vocabulary)
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from exlstm.data.packing import Batch, TokenStream, batch_at, windows_of
from exlstm.data.tokenizer import Tokenizer
from exlstm.mixers.state import detach, join, map_state
from exlstm.models.lm import LM
from exlstm.runtime.files import sync
from exlstm.runtime.machine import autocast
from exlstm.train.checkpoint import Position, load_checkpoint, save_checkpoint, tidy
from exlstm.train.config import TrainConfig
from exlstm.train.display import Display, StepProgress
from exlstm.train.evaluate import score
from exlstm.train.loss import bits_per_byte, model_cross_entropy
from exlstm.train.optimizer import adamw
from exlstm.train.replicas import ThreadedReplicas
from exlstm.train.run_folder.tensorboard import TensorBoard
from exlstm.train.schedule import due, learning_rate, progress
from exlstm.train.setup import Setup
from exlstm.train.watchdog import NotFiniteError, first_bad_tensor, keep_random_state

Sample = Callable[[LM, Tokenizer], str]  # generates a text for the report; the model is in evaluation mode

_LONG_AGO, _LATER = 1 << 20, 1 << 21


class Step(NamedTuple):
    """Measurements of one optimizer step."""

    nats: float
    bytes: int
    gradient_norm: float


class Trainer:
    """A run in progress: model, optimizer, position and carried state."""

    def __init__(self, setup: Setup, device: torch.device, display: Display, sample: Sample | None) -> None:
        self.setup, self.config, self.run_folder = setup, setup.config, setup.run
        self.device, self.display, self.sample = device, display, sample
        torch.manual_seed(self.config.seed)
        self.model = LM(setup.model).to(device)
        self.model.gradient_checkpointing = self.config.gradient_checkpointing
        self.optimizer = adamw(self.model, self.config)
        self.byte_lengths_C = torch.from_numpy(setup.tokenizer.byte_lengths)
        self.position = Position()
        self.state: Any = None
        if self.config.carry_state and self.model.state_bytes(_LATER) > self.model.state_bytes(_LONG_AGO):
            raise ValueError(
                "--carry-state needs a state of fixed size, but this model keeps the steps that it has seen, as "
                "attention without a window and long convolutions do; leave --carry-state out, or use other blocks."
            )
        resumes = self.config.resume and bool(self.run_folder.steps())
        if setup.start is not None and not resumes:
            setup.start.load_into(self.model)
        if resumes:
            self.position, self.state = load_checkpoint(
                self.run_folder, self.model, self.optimizer, carry_state=self.config.carry_state
            )
        if self.config.resume:
            self.run_folder.cut_metrics(self.position.step)
        self.board: TensorBoard | None = None
        self.replicas = ThreadedReplicas(self.model, self.config.workers, compiled=self.config.compile)
        self.began = time.monotonic() - self.position.seconds

    def seconds(self) -> float:
        """Time spent training, over all sessions of the run."""
        return time.monotonic() - self.began

    def fraction(self) -> float:
        """The share of the budget that is used up."""
        return progress(self.config, steps=self.position.step, seconds=self.seconds())

    def run(self, stop: Callable[[], bool]) -> Literal["budget", "signal"]:
        """Trains until the budget is used up or `stop()` is true, and saves at the end."""
        if not self.config.tensorboard:
            return self._train(stop)
        with closing(TensorBoard(self.run_folder, self.position.seconds)) as self.board:
            return self._train(stop)

    def _train(self, stop: Callable[[], bool]) -> Literal["budget", "signal"]:
        before = self.fraction()
        saved = time.monotonic()
        while before < 1 or self.position.step == 0:
            self.step()
            after = self.fraction()
            validates = due(self.config.validations, before, after)
            if validates:
                self.validate()
            if due(self.config.samples, before, after):
                self.take_sample()
            asked = stop()
            if validates or asked or after >= 1 or time.monotonic() - saved > 60 * self.config.save_minutes:
                self.save()
                saved = time.monotonic()
            if asked:
                return "signal"
            before = after
        return "budget"

    def step(self) -> None:
        """One optimizer step and its line in metrics.jsonl."""
        fraction = self.fraction()
        lr = learning_rate(self.config, fraction)
        done = self._update(lr)
        tokens = self.tokens()
        loss, bits = done.nats / self.config.tokens_per_step, bits_per_byte(done.nats, max(done.bytes, 1))
        step, seconds = self.position.step, self.seconds()
        if step % self.config.log_every == 0:
            record = {"step": step, "tokens": tokens, "seconds": round(seconds, 3), "loss": loss}
            self.log({**record, "bits_per_byte": bits, "lr": lr, "gradient_norm": done.gradient_norm})
        self.display.show(
            StepProgress(
                step=step,
                fraction=self.fraction(),
                seconds=seconds,
                loss=loss,
                bits_per_byte=bits,
                lr=lr,
                tokens=tokens,
            )
        )

    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.position.step * self.config.tokens_per_step

    def _update(self, lr: float) -> Step:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        restore_random_state = keep_random_state(self.device)
        with _explaining_compile_errors() if self.config.compile else nullcontext():
            nats, size, state = self._gradients(self.replicas)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip).item()
        if not (math.isfinite(nats) and math.isfinite(norm)):

            def run_again() -> None:
                restore_random_state()
                self._gradients(ThreadedReplicas(self.model, 1))

            where = first_bad_tensor(self.model, self.state, run_again)
            what = "gradient" if math.isfinite(nats) else "loss"
            raise NotFiniteError(
                f"training stopped at step {self.position.step + 1} because the {what} is not finite; the first tensor "
                f"that is not finite is {where}; the checkpoints are as they were: start a new run with an --lr below "
                f"{self.config.lr:g}."
            )
        self.optimizer.step()
        self.state = state
        self.position = Position(step=self.position.step + 1)
        return Step(nats, size, norm)

    def _gradients(self, replicas: ThreadedReplicas) -> tuple[float, int, Any]:
        """Computes gradients of the mean loss over the step's batches. Returns total nats, bytes, and the new state."""
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        state = self.state
        nats, size = 0.0, 0
        for index in range(self.position.step * config.accumulate, (self.position.step + 1) * config.accumulate):
            batch = self.setup.train.batch_at(
                index,
                batch=config.batch,
                length=config.length,
                seed=config.seed,
                carry=config.carry_state,
            )
            parts = replicas.run(partial(self._part, replicas=replicas, batch=batch, state=state), config.batch)
            nats += sum(loss for loss, _ in parts)
            size += int(self.byte_lengths_C[batch.targets_BT].sum())
            state = join([part_state for _, part_state in parts]) if config.carry_state else None
        replicas.gather_gradients()
        return nats, size, state

    def _part(
        self, model: LM, part: slice, number: int, replicas: ThreadedReplicas, batch: Batch, state: Any
    ) -> tuple[float, Any]:
        """Adds the gradient of some rows of a batch. Returns their loss in nats and their state."""
        inputs_BT, targets_BT, reset_BT = (x[part].to(self.device) for x in batch[:3])
        before = None if state is None else map_state(lambda x: x[part], state)
        with autocast(self.device, self.config.dtype):
            hidden_BTD, after = replicas.hidden[number](inputs_BT, before, reset_BT=reset_BT)
            loss = model_cross_entropy(model, hidden_BTD, targets_BT)
        (loss / self.config.tokens_per_step).backward()  # type: ignore[no-untyped-call]
        return loss.item(), detach(after) if self.config.carry_state else None

    def validate(self) -> None:
        """Measures the loss on the validation slice, which also decides which checkpoint is the best."""
        found = score(
            self.replicas,
            validation_slice(self.setup.val, self.config),
            self.setup.tokenizer.byte_lengths,
            carry=False,
            chunk=self.config.length,
            dtype=self.config.dtype,
        )
        step = self.position.step
        self.position = replace(self.position, validation_bits_per_byte=found.bits_per_byte)
        record = {"step": step, "tokens": self.tokens(), "seconds": round(self.seconds(), 3)}
        self.log({**record, "validation_loss": found.loss, "validation_bits_per_byte": found.bits_per_byte})
        self.display.note(f"step {step:,}: {found.bits_per_byte:.3f} bits/byte on {found.bytes:,} validation bytes")

    def log(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl, and to TensorBoard if it is on."""
        self.run_folder.append_metrics(record)
        if self.board is not None:
            self.board.add(record)

    def take_sample(self) -> None:
        """Generates a text for the report, without advancing training's random generators."""
        if self.sample is None:
            return
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            text = self.sample(self.model, self.setup.tokenizer)
        self.model.train()
        self.log({"step": self.position.step, "tokens": self.tokens(), "sample": text})

    def save(self) -> None:
        """Saves a checkpoint of the present step and removes old ones."""
        if self.run_folder.metrics.exists():
            sync(self.run_folder.metrics)
        self.position = replace(self.position, seconds=self.seconds())
        save_checkpoint(
            self.run_folder,
            self.model,
            self.optimizer,
            self.state,
            self.position,
            tokens=self.tokens(),
            batches=self.position.step * self.config.accumulate,
        )
        tidy(self.run_folder, self.config.keep)


@contextmanager
def _explaining_compile_errors() -> Iterator[None]:
    """Turns failures of torch.compile, such as a missing C++ compiler, into a ValueError of one sentence."""
    try:
        yield
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise ValueError(f"--compile does not work for this model on this machine ({reason}); leave it out.") from error


def validation_slice(stream: TokenStream, config: TrainConfig) -> list[Batch]:
    """Windows of the validation text, the same every time: all of a small text, a sample of a large one."""
    length = min(config.length, len(stream) - 1)
    if len(stream) <= config.validation_tokens:
        return list(windows_of(stream, length=length, batch=config.batch))
    count = math.ceil(config.validation_tokens / (config.batch * length))
    return [batch_at(stream, index, batch=config.batch, length=length, seed=0, carry=False) for index in range(count)]
