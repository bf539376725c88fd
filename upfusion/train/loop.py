"""The training loop: one step after another until the recipe ends or a signal asks to stop."""

from __future__ import annotations

import copy
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from upfusion.checkpoint import save_checkpoint
from upfusion.config import PRESETS
from upfusion.model import FusionNetwork
from upfusion.runtime.errors import DeviceError, InputError, TrainingError
from upfusion.runtime.images import Image, write_image
from upfusion.text import TextFeatures
from upfusion.train.ablation import ablate
from upfusion.train.data import Crops
from upfusion.train.distributed import Processes
from upfusion.train.initialisation import make_ready_to_copy
from upfusion.train.objective import objective
from upfusion.train.ranking import Ranking, set_ranking
from upfusion.train.recipes import Recipe
from upfusion.train.schedule import learning_rate
from upfusion.train.state import FILE, RunState, update_average
from upfusion.train.steady_order import make_order_steady
from upfusion.train.validation import validate

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
BEST = "best.safetensors"
NOISE_STREAM = 1 << 32
"""Keeps the seeds of a step's noise apart from the seed of the starting weights."""

ORDER_CROPS = 32
"""How many of a run's first crops a steady order is taken from."""

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How a run is carried out; what it learns is the recipe's business."""

    output: Path
    """Folder for the state, the weights, TensorBoard's log and sample pictures."""
    preset: str = "base"
    seed: int = 0
    precision: Precision = "fp32"
    """What the network computes in; weights, optimiser and loss are float32."""
    ranking: Ranking = "fixed"
    without: tuple[str, ...] = ()
    """Parts to leave out, see ``upfusion.train.ablation``."""
    resume: bool = False
    steps: int | None = None
    """Length of the run in steps; by default the recipe's epochs."""
    save_minutes: float = 10.0
    """Time between saved states; one is also saved at the end and on a signal."""
    validate_steps: int = 1000

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"no preset is named {self.preset!r}", f"choose one of {', '.join(PRESETS)}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"{self.steps} steps: at least 1 is needed", "leave --steps out to follow the recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did."""

    step: int
    """Steps done, counting this one."""
    total_steps: int
    loss: float
    """This process's loss."""
    terms: dict[str, float]
    learning_rate: float
    gradient_norm: float
    """Before clipping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    steps: int
    finished: bool
    """False after a signal: the run can be resumed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last validation."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Pairs left out by this process, with the reason."""


class Trainer:
    """One run. Build it in every process, then call :meth:`run`."""

    def __init__(
        self,
        recipe: Recipe,
        options: TrainOptions,
        crops: Crops,
        text: TextFeatures,
        processes: Processes,
        *,
        held_out: Sequence[tuple[Image, Image]] = (),
        start: FusionNetwork | None = None,
        provenance: dict[str, object] | None = None,
    ) -> None:
        """Build the network and the optimiser, and load the state if the run is resumed.

        Args:
            recipe: what is learned.
            options: how.
            crops: where the crops come from.
            text: the feature that fixes the channel order, stored with the weights.
            processes: this process among its fellows.
            held_out: decoded pairs to validate on; only the leading process uses them.
            start: weights to continue from instead of fresh ones; it is taken over.
            provenance: JSON-ready facts about the data, stored with the weights.

        Raises:
            InputError: the folder holds a run and ``resume`` is off, or the other way round.
            CheckpointError: the saved state is damaged or belongs to other settings.
            DeviceError: FP16 on a CPU, which has no fast path and overflows.
        """
        self.recipe, self.options, self.crops, self.text = recipe, options, crops, text
        self.processes, self.held_out = processes, held_out
        self._provenance = provenance or {}
        if options.precision == "fp16" and processes.device.type != "cuda":
            raise DeviceError("fp16 training needs a CUDA GPU", "use --precision bf16 or fp32")
        saved = (options.output / FILE).exists()
        if saved and not options.resume:
            raise InputError(
                f"{options.output} already holds a run", "continue it with --resume, or choose another folder"
            )
        if options.resume and not saved:
            raise InputError(f"{options.output} holds no run to resume", "start it without --resume")
        network = self._built(start).to(processes.device)
        if recipe.steady_order and options.ranking == "fixed" and not options.resume:
            make_order_steady(network, (crops.batch(k, 1) for k in range(ORDER_CROPS)), torch.from_numpy(text.features))
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=recipe.betas)
        self.state = RunState(
            network=network,
            average=copy.deepcopy(network).requires_grad_(False) if recipe.ema else None,
            optimiser=optimiser,
            scaler=torch.amp.GradScaler(processes.device.type, enabled=options.precision == "fp16"),
        )
        self._parameters = parameters
        self._parallel: nn.Module = network
        if processes.count > 1:
            ids = [processes.device.index] if processes.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(network, device_ids=ids)
        self._features = torch.from_numpy(text.features).to(processes.device)
        per_step = recipe.batch * processes.count
        self.steps_per_epoch = max(1, len(crops) // per_step)
        self.total_steps = options.steps or recipe.epochs * self.steps_per_epoch
        if options.resume:
            self.state.load(options.output, self._settings())
            log.info("resumed after step %d of %d", self.state.step, self.total_steps)
        self._stop = threading.Event()

    @property
    def trained(self) -> FusionNetwork:
        """The weights that are validated and saved: the average where the recipe keeps one."""
        network = self.state.average if self.state.average is not None else self.state.network
        assert isinstance(network, FusionNetwork)
        return network

    def stop(self) -> None:
        """Ask the run to save and end after the current step; safe to call from a signal handler."""
        self._stop.set()

    def run(self, report: Callable[[StepReport], None] = lambda _: None) -> Outcome:
        """Train until the end of the recipe or until asked to stop; state and weights are saved either way.

        SIGINT and SIGTERM ask to stop, in the main thread. ``report`` is called after each step in the leading process.

        Raises:
            InputError: a pair cannot be used and the run does not skip such pairs.
            TrainingError: the loss is no longer finite.
        """
        metrics: dict[str, float] = {}
        self._train_mode()
        with self._signals(), self._board() as board, self._batches() as batches:
            saved_at = time.monotonic()
            while self.state.step < self.total_steps:
                done = self._step(*next(batches))
                if self.processes.leads:
                    report(done)
                    self._log_step(board, done)
                step, last = self.state.step, self.state.step == self.total_steps
                stopping = self.processes.any(self._stop.is_set())
                if last or step % self.options.validate_steps == 0:
                    metrics = self._validate(board) or metrics
                if last or stopping or time.monotonic() - saved_at > 60 * self.options.save_minutes:
                    self._save()
                    saved_at = time.monotonic()
                if stopping:
                    break
        self.processes.wait()
        reader = self.crops.reader
        return Outcome(
            steps=self.state.step,
            finished=self.state.step == self.total_steps,
            metrics=metrics,
            skipped={reader.pairs[index].name: reason for index, reason in reader.skipped.items()},
        )

    def _step(self, visible: Tensor, infrared: Tensor) -> StepReport:
        """Take one optimiser step on this process's share of the batch."""
        state, recipe, device = self.state, self.recipe, self.processes.device
        rate = learning_rate(recipe, state.step, self.steps_per_epoch, self.total_steps)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        if recipe.trunk_noise:
            # Seeded by the step, so that a resumed run drops the same paths; each process its own.
            torch.manual_seed(
                self.options.seed + NOISE_STREAM + state.step * self.processes.count + self.processes.rank
            )
        visible, infrared = (planes.to(device, non_blocking=True) for planes in (visible, infrared))
        with self._autocast():
            fused = self._parallel(visible, infrared, self._features)
        loss, terms = objective(recipe, fused, visible, infrared)
        state.optimiser.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimiser)
        limit = float("inf") if recipe.clip_norm is None else recipe.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        # A gradient scaler that finds an overflow skips the step by itself; anything else that is not finite is final.
        if not state.scaler.is_enabled() and not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite in step {state.step + 1} (loss {float(loss.detach())})",
                "resume from the last state with a lower --learning-rate, or look for broken images",
            )
        state.scaler.step(state.optimiser)
        state.scaler.update()
        state.step += 1
        if state.average is not None and recipe.ema is not None:
            update_average(state.average, state.network, recipe.ema, state.step)
        return StepReport(
            step=state.step,
            total_steps=self.total_steps,
            loss=float(loss.detach()),
            terms={name: float(term) for name, term in terms.items()},
            learning_rate=rate,
            gradient_norm=float(norm),
        )

    def _built(self, start: FusionNetwork | None) -> FusionNetwork:
        """Return the network to train, the same in every process."""
        torch.manual_seed(self.options.seed)
        network = start
        if network is None:
            network = FusionNetwork(PRESETS[self.options.preset])
            if self.recipe.initialisation == "ready to copy":
                make_ready_to_copy(network, self.options.seed)
        network.requires_grad_(True)
        ablate(network, self.options.without)
        set_ranking(network, self.options.ranking)
        return network

    def _train_mode(self) -> None:
        """Put the network into training mode; the trunk only where the recipe wants its noise."""
        self.state.network.train()
        pruning = getattr(self.state.network, "pruning", None)
        trunk = getattr(pruning, "trunk", None)
        if trunk is not None:
            trunk.train(self.recipe.trunk_noise)

    def _settings(self) -> dict[str, Any]:
        """Return what must be the same when the run is resumed, as plain values."""
        options = self.options
        return {
            "recipe": repr(dataclasses.asdict(self.recipe)),
            "preset": options.preset,
            "seed": options.seed,
            "precision": options.precision,
            "ranking": options.ranking,
            "without": ", ".join(options.without),
            "total_steps": self.total_steps,
            "processes": self.processes.count,
            "pairs": len(self.crops.reader.pairs),
            "text": self.text.encoder,
        }

    def _autocast(self) -> Any:
        if self.options.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.options.precision == "bf16" else torch.float16
        return torch.autocast(self.processes.device.type, dtype)

    @contextmanager
    def _batches(self) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Yield this process's batches from the current step on, read ahead by one in a thread."""
        size, count, rank = self.recipe.batch, self.processes.count, self.processes.rank

        def batch(step: int) -> tuple[Tensor, Tensor]:
            return self.crops.batch((step * count + rank) * size, size)

        with ThreadPoolExecutor(1) as pool:

            def ahead() -> Iterator[tuple[Tensor, Tensor]]:
                coming: Future[tuple[Tensor, Tensor]] = pool.submit(batch, self.state.step)
                while True:
                    current = coming.result()
                    coming = pool.submit(batch, self.state.step + 1)
                    yield current

            yield ahead()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM ask to stop; a second SIGINT interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            log.warning("%s: stopping after this step", signal.Signals(number).name)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.stop()

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _board(self) -> Iterator[Any]:
        """Yield TensorBoard's writer in the leading process, None in the others."""
        if not self.processes.leads:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        self.options.output.mkdir(parents=True, exist_ok=True)
        # A resumed run replaces what an interrupted one logged after its last saved state.
        writer = SummaryWriter(str(self.options.output / "tensorboard"), purge_step=self.state.step + 1)
        try:
            yield writer
        finally:
            writer.close()

    @staticmethod
    def _log_step(board: Any, done: StepReport) -> None:
        board.add_scalar("loss", done.loss, done.step)
        board.add_scalar("learning rate", done.learning_rate, done.step)
        board.add_scalar("gradient norm", done.gradient_norm, done.step)
        for name, value in done.terms.items():
            board.add_scalar(f"term/{name}", value, done.step)

    def _validate(self, board: Any) -> dict[str, float]:
        """Measure the held-out pairs, log and draw them, and keep the weights if they are the best so far."""
        if not self.processes.leads or not self.held_out:
            return {}
        metrics, pictures = validate(self.trained, self._features, self.held_out)
        self._train_mode()
        for name, value in metrics.items():
            board.add_scalar(f"validation/{name}", value, self.state.step)
        folder = self.options.output / "samples"
        folder.mkdir(exist_ok=True)
        for place, picture in enumerate(pictures):
            board.add_image(f"sample {place}", picture, self.state.step, dataformats="HW")
            write_image(folder / f"{self.state.step:07d}_{place}.png", picture, "visible, infrared, fused (validation)")
        score = sum(metrics.values()) / len(metrics)
        if score > self.state.best:
            self.state.best = score
            self._save_weights(BEST, metrics)
        return metrics

    def _save(self) -> None:
        """Write the state, and the weights for use, in the leading process."""
        if self.processes.leads:
            self.state.save(self.options.output, self._settings())
            self._save_weights(WEIGHTS, {})

    def _save_weights(self, name: str, metrics: dict[str, float]) -> None:
        """Write weights for export; an ablated network has none, since nothing could load them."""
        if self.options.without:
            return
        provenance = {
            **self._provenance,
            "recipe": dataclasses.asdict(self.recipe),
            "steps": self.state.step,
            "total_steps": self.total_steps,
            "batch": self.recipe.batch * self.processes.count,
            "seed": self.options.seed,
            "precision": self.options.precision,
            "ranking": self.options.ranking,
            "torch": torch.__version__,
        }
        if metrics:
            provenance["validation"] = metrics
        save_checkpoint(self.trained, self.options.output / name, text=self.text, provenance=provenance)
