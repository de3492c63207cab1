"""The training loop: from a model, samples and a config to a run folder.

Everything that happens in a step follows from (seed, step): the samples, their corruption, and the global generators of torch, NumPy and
Python, which are set anew for every micro-batch. So a resumed run is the uninterrupted one bit for bit, whatever was validated or
drawn in between, and there are no generator states to keep. Under `max_seconds` the rate also follows the clock; then a resumed run goes
on from the recorded time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.base.errors import NumericsError, RecipeError, unknown_name
from mmlm.kernels.dispatch import multiplies_bf16_faster
from mmlm.training import checkpoint
from mmlm.training.config import TrainConfig
from mmlm.training.ema import WeightAverage
from mmlm.training.interrupts import Interrupted, Interrupts
from mmlm.training.loader import Feed, Plan, Plans, Samples
from mmlm.training.lock import RunLock
from mmlm.training.log import RunLog
from mmlm.training.machine import kept_memory, peak_gib, process_settings
from mmlm.training.optimizers import build_optimizers, trained_parameters
from mmlm.training.order import derived
from mmlm.training.ranks import Ranks
from mmlm.training.schedules import learning_rate
from mmlm.training.state import Parts, RunState
from mmlm.training.step import Outcome, Stepper, coefficient, train_mode
from mmlm.training.trackers import flat, require_tracker

logger = logging.getLogger(__name__)

Validate = Callable[[nn.Module, int], dict[str, float]]
Draw = Callable[[nn.Module, int, Path], None]
Progress = Callable[[int, dict[str, Any]], None]

CHECKPOINTS, LOG, SAMPLES, TRACKERS = "checkpoints", "log.jsonl", "samples", "trackers"
PATIENCE = timedelta(days=1)  # for the main process, which alone validates and draws samples; torch's own 10 minutes may be too few


@dataclass
class Result:
    """How a run ended. reason: steps, time or signal. metrics: of the last validation. best: step and value of the kept best."""

    step: int
    reason: str
    seconds: float
    skipped: int
    signal: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    best: tuple[int, float] | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal that stopped the run."""
        return 128 + self.signal if self.signal else 0


class Trainer:
    """Trains a model in a run folder, going on from the newest checkpoint there.

    model: `model(batch) -> {name: (sum, weight)}` and `model.loss_weights(batch) -> {name: weight}`, whose names are those of every
    batch; where it has a method `begin_step(step, steps)`, this is called before each step, with the number of steps taken and of the run.
    samples: see `Samples`. folder: the run folder. validate(model, step) -> metrics and draw(model, step, folder) are called on
    the main process with the model in evaluation mode, with averaged weights where there are any. Where validate has a `fingerprint`, a
    change of it makes a resumed run forget its best checkpoint, which was measured on something else. progress(step, record) is called
    after every step; record is the logged line, or empty.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        config: TrainConfig,
        folder: Path | str,
        *,
        seed: int = 0,
        validate: Validate | None = None,
        draw: Draw | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.samples, self.config, self.folder = model, samples, config, Path(folder)
        self.seed, self.validate, self.draw, self.progress = seed, validate, draw, progress
        self.samples_of: Sequence[Samples] = getattr(samples, "parts", [samples])
        self.sizes: Sequence[int] = getattr(samples, "sizes", [config.batch_size])
        if len(samples) < 1:
            raise RecipeError("data: holds no samples to train on.")
        for key, hook in (("validate_every", validate), ("sample_every", draw)):
            if getattr(config, key) and hook is None:
                raise RecipeError(f"train.{key}: has no effect: this run has nothing to {key.removesuffix('_every')}. Leave it out.")
        self.feed: Feed | None = None
        self.log: RunLog | None = None
        self.window: dict[str, Tensor] = {}  # sums since the last log line, on the device
        self.norm: Tensor | None = None
        self.rate = 0.0
        self.left_undone = False
        self.stretch, self.stretch_tokens = 0.0, 0

    def fit(self, *, fresh: bool = False, until: int | None = None) -> Result:
        """Train to the end, or to the step `until`; resumes by itself unless fresh.

        At the end the model holds the weights to use, the same on all processes: of the best checkpoint where one is kept, averaged where
        there is an average.
        Raises RecipeError if another process holds the folder, CheckpointError if its checkpoints do not fit or cannot be written,
        NumericsError after more than `max_skipped` steps in a row that were not finite.
        """
        last = self.config.steps if until is None else min(until, self.config.steps)
        with contextlib.ExitStack() as stack:
            stack.enter_context(kept_memory())
            self._set_up()
            if self.ranks.is_main:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(RunLock(self.folder))
                except OSError as error:
                    raise RecipeError(f"output: the run folder {self.folder} cannot be written: {error.strerror}.") from error
            stack.enter_context(process_settings(self.config.deterministic))
            self.interrupts = stack.enter_context(Interrupts())
            self._resume(fresh)
            if self.ranks.is_main:
                self.log = stack.enter_context(contextlib.closing(RunLog(self.folder / LOG, self.state.log_bytes)))
                self._start_trackers(stack)
            try:
                reason = self._run(last)
            finally:
                if self.feed is not None:
                    self.feed.close()
                self.model.eval()
            self._save()
            self.ranks.wait()
            if reason != "signal":
                self.state.best_step = self.ranks.from_main(self.state.best_step or 0) or None  # the others have measured nothing
                self.parts.hold_final_weights(self.folder / CHECKPOINTS)
        state = self.state
        best = None if state.best_step is None or state.best_value is None else (state.best_step, state.best_value)
        number = (self.interrupts.signal or signal.SIGTERM) if reason == "signal" else 0  # another process may have got it
        return Result(state.step, reason, state.seconds, state.skipped, number, dict(state.metrics), best)

    @property
    def state(self) -> RunState:
        """The counters of the run."""
        return self.parts.state

    def _set_up(self) -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        for name in self.config.trackers:
            require_tracker(name)
        cpu = not torch.accelerator.is_available()  # told to accelerate, or it would take several processes for as many lone ones
        trackers = list(self.config.trackers) or None
        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        self.accelerator = Accelerator(
            mixed_precision="no", cpu=cpu, log_with=trackers, project_dir=str(self.folder / TRACKERS), kwargs_handlers=[patience]
        )
        self.ranks, device = Ranks(self.accelerator), self.accelerator.device
        if uneven := [size for size in self.sizes if size % self.ranks.world]:
            raise RecipeError(f"train.batch_size: must be a multiple of the {self.ranks.world} processes, but is {uneven[0]}.")
        if self.config.precision == "auto":
            precision = "bf16" if multiplies_bf16_faster(device) else "fp32"
            logger.info("train.precision: auto is %s on this machine", precision)
            self.config = self.config.model_copy(update={"precision": precision})
        elif self.config.precision == "bf16" and not multiplies_bf16_faster(device):
            logger.warning("train.precision: bf16 is slower than fp32 on this machine; auto takes the faster one")
        self.model.to(device)
        for parameter in self.model.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16) and (parameter.requires_grad or self.config.precision == "fp32"):
                parameter.data = parameter.data.float()
        parameters = trained_parameters(self.model)
        self.ranks.equalize(self.model.state_dict().values())
        optimizers = build_optimizers(self.config, self.model)
        average = WeightAverage(parameters, self.config.ema_decay) if self.config.ema_decay else None
        validation = str(getattr(self.validate, "fingerprint", ""))
        state = RunState(self.seed, self.samples.fingerprint, self.config.model_dump(mode="json"), validation=validation)
        self.parts = Parts(self.model, parameters, optimizers, average, state)
        self.stepper = Stepper(self.model, parameters, optimizers, average, self.config, self.ranks, device, self.seed)

    def _resume(self, fresh: bool) -> None:
        root = self.folder / CHECKPOINTS
        step = 0
        if self.ranks.is_main:
            checkpoint.clean(root)
            if fresh:
                checkpoint.prune(root, set())
            elif (found := checkpoint.newest(root)) is not None:
                step = checkpoint.step_of(found) or 0
                checkpoint.set_aside(root, step)
            for later in checkpoint.steps(self.folder / SAMPLES):  # of a run before, or of steps that are taken again
                if later > step:
                    shutil.rmtree(self.folder / SAMPLES / checkpoint.step_name(later), ignore_errors=True)
        step = self.ranks.from_main(step)
        if step:
            self.parts.restore(root / checkpoint.step_name(step))
            logger.info("going on from step %d", step)
        self.saved_step = step
        self.began = time.monotonic() - self.state.seconds
        dtype = self.stepper.sum_dtype
        self.window = {
            name: torch.tensor(total, dtype=dtype, device=self.accelerator.device) for name, (total, _) in self.state.window.items()
        }
        self.left_undone = False
        train_mode(self.model)

    def _start_trackers(self, stack: contextlib.ExitStack) -> None:
        if self.config.trackers:
            self.accelerator.init_trackers(self.folder.resolve().name, flat({"seed": self.seed, **self.state.config}))
            stack.callback(self._end_trackers)

    def _end_trackers(self) -> None:
        """What accelerate's end_training does, but for ending the process group, which the processes still need of one another."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _run(self, last: int) -> str:
        config, state = self.config, self.state
        plan = Plans([self._plan(number, last) for number in range(len(self.samples_of))])
        self.feed = feed = Feed(self.samples_of, plan, config.workers)
        if state.step:
            self._hooks(is_last=state.step >= last)  # those that a signal left undone
        self._begin_stretch()
        reason = ""
        while not reason and state.step < last:
            reason = self._agree()
            if not reason:
                try:
                    batches = feed.step()
                except RuntimeError:
                    if self.interrupts.signal:
                        continue  # the same signal has ended the workers
                    raise
                self._count(self.stepper(batches, state.step, self.rate), plan)
                self._after_step(is_last=state.step >= last)
            elif reason == "time":
                self._after_step(is_last=True)
        return "signal" if self.ranks.from_main(self.left_undone) else reason or "steps"

    def _plan(self, number: int, last: int) -> Plan:
        """The order of one part of the samples from here on; the first has the seed of the run."""
        size, state = self.sizes[number], self.state
        per_rank = size // self.ranks.world
        return Plan(
            num_items=len(self.samples_of[number]),
            seed=derived("part", self.seed, number) if number else self.seed,
            batch_size=size,
            micro_batch_size=min(per_rank, self.config.micro_batch_size or per_rank),
            first=state.step,
            last=last,
            position=state.samples * size // sum(self.sizes),
            rank=self.ranks.rank,
            world=self.ranks.world,
        )

    def _agree(self) -> str:
        """Why to stop, or nothing; and the rate of the next step. The same on all processes."""
        timed = self.config.max_seconds is not None
        signals, seconds = self.ranks.sums([float(self.interrupts.signal > 0), self._seconds() if timed and self.ranks.is_main else 0.0])
        self.rate = learning_rate(self.config, self.state.step, seconds)
        if signals:
            return "signal"
        return "time" if self.config.max_seconds is not None and seconds >= self.config.max_seconds else ""

    def _count(self, outcome: Outcome, plan: Plans) -> None:
        state = self.state
        state.step += 1
        state.samples += sum(self.sizes)
        state.tokens += outcome.tokens
        self.norm = outcome.norm
        if not outcome.fault:
            state.skipped_in_row = 0
            for number, name in enumerate(outcome.names):
                state.window.setdefault(name, [0.0, 0.0])[1] += outcome.weights[number]
                self.window[name] = self.window[name] + outcome.sums[number] if name in self.window else outcome.sums[number]
            return
        state.skipped += 1
        state.skipped_in_row += 1
        indices = [index for _, part in plan.of_step(state.step - 1) for _, index in part]
        told = f"step {state.step}: {outcome.fault} (samples {', '.join(map(str, indices[:8]))}{' ...' if len(indices) > 8 else ''})"
        logger.warning("%s; the step is skipped", told)
        if state.skipped_in_row > self.config.max_skipped:
            raise NumericsError(
                f"{told}. These were {state.skipped_in_row} steps in a row without a finite loss and gradient; train.max_skipped is "
                f"{self.config.max_skipped}. No weight has changed in them; the last checkpoint is that of step {self.saved_step}. "
                "Try a smaller train.lr, or look at these samples."
            )

    def _after_step(self, *, is_last: bool) -> None:
        state, record = self.state, {}
        if self.ranks.is_main and state.logged < state.step and (is_last or state.step % self.config.log_every == 0):
            record = self._log_line()
        self._hooks(is_last=is_last)
        if state.step % self.config.checkpoint_every == 0:
            self._save()
        if record:
            self._begin_stretch()
        if self.progress is not None and self.ranks.is_main:
            self.progress(state.step, record)

    def _log_line(self) -> dict[str, Any]:
        state = self.state
        sums = {name: float(total) for name, total in self.window.items()}
        means = {name: sums[name] / weight for name, (_, weight) in state.window.items() if weight > 0}
        seconds = time.perf_counter() - self.stretch
        record: dict[str, Any] = {
            "step": state.step,
            "epoch": (state.samples - 1) // len(self.samples),
            "loss": sum(coefficient(self.config, self.model, name) * mean for name, mean in means.items()) if means else None,
            **{f"loss.{name}": mean for name, mean in means.items()},
            "grad_norm": float(self.norm) if self.norm is not None else None,
            "lr": self.rate,
            "tokens": state.tokens,
            "tokens_per_second": round((state.tokens - self.stretch_tokens) / seconds, 1),
            "data_wait": round((self.feed.waited if self.feed else 0.0) / seconds, 4),
            "peak_gib": round(peak_gib(), 3),
            "skipped": state.skipped,
            "seconds": round(self._seconds(), 3),
        }
        self.window.clear()
        state.window.clear()
        state.logged = state.step
        self._write(record)
        return record

    def _write(self, record: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(record)
        if self.config.trackers:
            self.accelerator.log({key: value for key, value in record.items() if value is not None}, step=self.state.step)

    def _hooks(self, *, is_last: bool) -> None:
        """Validation and samples, where they are due and not done yet. A signal leaves them at once, to be done after a resume."""
        state, config, is_best = self.state, self.config, False

        def due(every: int, done: int) -> bool:
            return bool(every) and done < state.step and (is_last or state.step % every == 0)

        if not self.ranks.is_main:
            return
        began = time.perf_counter()
        try:
            if self.validate is not None and due(config.validate_every, state.validated):
                seconds = self._seconds()
                with self._evaluating():
                    metrics = dict(self.validate(self.model, state.step))
                state.validated, state.metrics = state.step, {**metrics}
                is_best = self._is_best(metrics)
                times = {"seconds": round(seconds, 3), "validation_seconds": round(self._seconds() - seconds, 3)}
                best = {} if config.keep_best is None else {"best_step": state.best_step}
                self._write({"step": state.step, **times, **best, **{f"validation.{name}": value for name, value in metrics.items()}})
            if self.draw is not None and due(config.sample_every, state.drawn):
                folder = self.folder / SAMPLES / checkpoint.step_name(state.step)
                folder.mkdir(parents=True, exist_ok=True)
                with self._evaluating():
                    self.draw(self.model, state.step, folder)
                state.drawn = state.step
        except Interrupted:
            self.left_undone = True
        self.stretch += time.perf_counter() - began
        if is_best:
            self._save()

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model as it will be used, for a hook that may be left in the middle."""
        average = self.parts.average
        self.model.eval()
        try:
            with average.in_place() if average is not None else contextlib.nullcontext(), self.interrupts.hook():
                yield
        finally:
            train_mode(self.model)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        best, state = self.config.keep_best, self.state
        if best is None:
            return False
        if best.metric not in metrics:
            raise RecipeError(f"train.keep_best.metric: {unknown_name('validation metric', best.metric, metrics)}")
        value = float(metrics[best.metric])
        known = state.best_value
        if not math.isfinite(value) or (known is not None and not (value < known if best.mode == "min" else value > known)):
            return False
        state.best_step, state.best_value = state.step, value
        return True

    def _save(self) -> None:
        """Write the checkpoint of this step, unless it is there, and delete those that need not be kept."""
        state, root = self.state, self.folder / CHECKPOINTS
        if not self.ranks.is_main or self.saved_step == state.step:
            return
        for name, total in self.window.items():
            state.window[name][0] = float(total)
        state.seconds = self._seconds()
        state.log_bytes = self.log.size() if self.log is not None else 0
        self.parts.save(root)
        self.saved_step = state.step
        newest = checkpoint.steps(root)[-self.config.keep_last :]
        checkpoint.prune(root, {*newest, *([] if state.best_step is None else [state.best_step])})

    def _begin_stretch(self) -> None:
        """The rates in a log line are over the time since here, without that of validation and samples."""
        self.stretch, self.stretch_tokens = time.perf_counter(), self.state.tokens
        if self.feed is not None:
            self.feed.waited = 0.0

    def _seconds(self) -> float:
        return time.monotonic() - self.began
