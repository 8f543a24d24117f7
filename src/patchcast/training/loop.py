"""`train`: the training loop, one step from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from patchcast.data import Cuts
from patchcast.data.seeds import mix_seed
from patchcast.folder_files import METRICS
from patchcast.modes import evaluating
from patchcast.plans import Plan
from patchcast.plans.earlier import as_before
from patchcast.pretrainer import Pretrainer
from patchcast.schedules import warmup_cosine
from patchcast.training import checkpoints, shards
from patchcast.training.ahead import InPlace, SideStream
from patchcast.training.average import Average
from patchcast.training.checkpoints import Checkpoint
from patchcast.training.ending import Ending
from patchcast.training.engine import Engine, LossModule, one_voice, products_in
from patchcast.training.guard import Guard, NotFinite
from patchcast.training.log import AVERAGE, OBJECTIVE, Log, Logger
from patchcast.training.looks import Look, looking
from patchcast.training.optimization import Optimization, make_optimizer
from patchcast.training.progress import ProgressLine, Throughput
from patchcast.training.stream import Stream


def train(
    pretrainer: Pretrainer,
    stream: Stream,
    held_out: DataLoader[Any] | None,
    *,
    optimization: Optimization,
    engine: Engine,
    out: Path,
    title: str,
    loggers: Sequence[Logger] = (),
    looks: Sequence[Look] = (),
    finish: Callable[[Cuts], Tensor] | None = None,
    blind: float | None = None,
) -> float:
    """Train in place until the last step of the stream; resumes from the last checkpoint under `out` if there is one.

    Random numbers in a step are seeded by (seed, step, piece). A resumed run therefore draws the same numbers as an
    uninterrupted one, and no random state is saved. A plan is drawn for the batch of all devices, and each device takes
    its rows, so the result does not depend on the number of devices or of accumulated pieces.

    Args:
        held_out: batches for the evaluation loss, with the same plans at every evaluation.
        loggers: also get the rows of `metrics.csv`.
        looks: called at every evaluation and at the end of the run.
        finish: turns crops into images on the device, if the stream gives crops (`patchcast.data.Cutter`).
        blind: the loss of a prediction that ignores the image, shown next to the loss.

    Returns:
        the share of the time of training in which this process waited for images; 0 if no step was left.

    Raises:
        InterruptedError: on SIGTERM, after a checkpoint has been saved; KeyboardInterrupt on Ctrl-C.
        NotFinite: if a loss, a feature or a parameter is NaN or infinite.
    """
    out.mkdir(parents=True, exist_ok=True)
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)  # a classifier head gets no gradient, and DDP would wait for one
    if engine.checkpointing:
        pretrainer.backbone.model.set_grad_checkpointing(True)
    if engine.compiled and not engine.sharded:  # else block by block: see `sharding`
        pretrainer.compile()
    fabric = engine.fabric()
    fabric.launch()
    device, first, steps, pieces = fabric.device, fabric.is_global_zero, stream.steps, stream.accumulate
    objective = LossModule(pretrainer, engine.precision)
    network = fabric.setup_module(objective)
    optimizer = make_optimizer(pretrainer, optimization, products_in(engine.precision))
    average = None if optimization.ema is None else Average(objective, optimization.ema)
    clipped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    group: Any = dist.new_group(backend="gloo") if fabric.world_size > 1 else None  # on the CPU, so no GPU sync
    ending, guard = Ending(group), Guard(out, group)
    log = Log(out / METRICS, loggers, is_written=first)

    def save() -> None:
        state, moments = objective.state_dict(), checkpoints.optimizer_state(optimizer, objective)
        seen_by = {type(look).__name__: look.state_dict() for look in looks}
        averaged = None if average is None else average.state_dict()
        checkpoint = Checkpoint(step, state, moments, stream.state_dict(), seen_by, plans, is_seen, averaged)
        if first:
            log.write()
        if engine.sharded:
            shards.save_shards(checkpoint, out / "checkpoints", group)
        elif first:
            checkpoints.save(checkpoint, out / "checkpoints")

    plans: str | None = checkpoints.PLANS
    step, is_seen = 0, True  # optimizer steps done; whether the evaluation due after them is done
    resumed = checkpoints.load_latest(out)
    if resumed is not None:
        resumed = shards.fill(resumed, objective.state_dict())
        step, is_seen, plans = resumed.step, resumed.is_seen, resumed.plans
        if plans is None:
            pretrainer.plan = as_before(pretrainer.plan)
        checkpoints.load_model_state(objective, resumed.model)
        checkpoints.load_optimizer_state(optimizer, objective, resumed.optimizer)
        if average is not None and resumed.average is not None:
            average.load_state_dict(resumed.average)
        stream.load_state_dict(resumed.stream)
        log.resume(step, counted_from_zero=resumed.is_lightnings)
    with looking(pretrainer):
        for look in looks:
            if resumed is not None and type(look).__name__ in resumed.looks:
                look.load_state_dict(resumed.looks[type(look).__name__])
            else:
                log.add(0, look.start(device))
    if resumed is not None and resumed.is_lightnings:
        save()  # Lightning counted the rows of the log from 0; from here on they are counted from 1

    speed = Throughput(stream)
    line = ProgressLine(title, speed, steps=steps, first=step, is_shown=first, blind=blind)
    with one_voice(fabric), ending.listening(), line:
        line.evaluated(log.rows.get(0, {}) if resumed is None else {})
        transfer = SideStream if device.type == "cuda" else InPlace
        batches = stream.batches(transfer(device, stream.move))
        pretrainer.train()
        while step < steps or not is_seen:
            saves = False
            if is_seen:
                optimizer.zero_grad()
                lr = optimization.lr * warmup_cosine(step, steps=steps, warmup=optimization.warmup)
                for settings in optimizer.param_groups:
                    settings["lr"] = optimization.rate(step, steps, settings)
                loss = torch.zeros((), device=device)
                losses: dict[str, Any] = {}  # by objective, if there are several
                for index in range(pieces):
                    speed.resume(step)
                    images = next(batches)[0]
                    speed.begin(step)
                    if finish is not None and isinstance(images, Cuts):
                        images = finish(images)
                    piece = index * fabric.world_size + fabric.global_rank
                    torch.manual_seed(mix_seed(stream.seed, step, 0))
                    plan, share = pretrainer.draw_piece(images, piece, fabric.world_size * pieces)
                    if piece:
                        torch.manual_seed(mix_seed(stream.seed, step, piece))
                    with fabric.no_backward_sync(network, enabled=index < pieces - 1):
                        part = network(images, plan) * share
                        fabric.backward(part / pieces)
                    guard.note(step + 1, part, images)
                    loss = loss + part.detach()
                    for name, of_one in objective.losses.items():
                        losses[name] = losses.get(name, 0.0) + of_one * share
                if optimization.clip:
                    clip_grad_norm_(clipped, optimization.clip)
                optimizer.step()
                pretrainer.after_step()
                step += 1
                if average is not None:
                    average.update(step)

                is_logged = step % min(engine.log_every, steps) == 0
                is_seen = step % engine.eval_every != 0 and step < steps
                saves = step % engine.checkpoint_every == 0 or step == steps
                read = None
                if is_logged or saves or not is_seen or line.is_due(step) or device.type == "cpu":
                    guard.check(step)  # reading a loss makes a GPU wait, so there it is not read at every step
                    mean: Any = fabric.all_reduce(loss / pieces)
                    read = float(mean)
                    speed.measure(step, pauses=saves or not is_seen)
                if is_logged:
                    row = {"loss": float(read), "lr": lr, **speed.found(device)}  # type: ignore[arg-type]
                    for name, of_one in losses.items():
                        shared: Any = fabric.all_reduce(of_one / pieces)
                        row[f"{OBJECTIVE}{name}"] = float(shared)
                    log.add(step, row)
                line.show(step, read)

            if not is_seen and not ending.agreed():
                guard.check(step, objective.named_parameters())
                stream.settle()
                try:
                    with line.evaluating():
                        is_seen = _see(step, pretrainer, network, held_out, looks, stream, fabric, ending, log, average)
                    line.evaluated(log.rows.get(step, {}))
                except NotFinite as problem:
                    guard.fail(f"after step {step}, {problem}")

            asked = ending.agreed()
            if saves or asked:
                guard.check(step, objective.named_parameters())
                save()
            if asked and (step < steps or not is_seen):
                ending.raise_at(step)
    log.write()
    return speed.waited_share


def _pieces(images: int, pieces: int) -> list[slice]:
    """Images in that many pieces, or fewer."""
    size = -(-images // pieces)
    return [slice(start, start + size) for start in range(0, images, size)]


def _counts(part: Plan, whole: Plan) -> float | Tensor:
    """For how many images of a batch a part of its plan counts: predictions may differ in weight."""
    if part.weight is None or whole.weight is None:
        return float(len(part.predict))
    return len(whole.predict) * part.weight.sum() / whole.weight.sum()


def _see(
    step: int,
    pretrainer: Pretrainer,
    network: Any,
    held_out: DataLoader[Any] | None,
    looks: Sequence[Look],
    stream: Stream,
    fabric: Fabric,
    ending: Ending,
    log: Log,
    average: Average | None,
) -> bool:
    """Evaluate the loss and call the looks; False if the run is asked to end before the evaluation is complete."""
    columns: dict[str, Callable[[], AbstractContextManager[Any]]] = {"eval_loss": nullcontext}
    if average is not None:
        columns[AVERAGE] = average.applied
    for column, weights in columns.items():
        if held_out is None:
            break
        total, counted = torch.zeros((), device=fabric.device), 0
        with evaluating(pretrainer), weights():
            for index, (images, *_) in enumerate(held_out):
                images = fabric.to_device(images)
                plan = pretrainer.draw(images, torch.Generator().manual_seed(mix_seed(stream.seed, index)))
                for rows in _pieces(len(images), stream.accumulate * fabric.world_size):  # as many as in a step
                    part = plan.rows(rows)
                    total = total + network(images[rows], part) * _counts(part, plan)
                counted += len(plan.predict)
                if ending.agreed():
                    return False
        loss = float(total / counted)
        if not math.isfinite(loss):
            raise NotFinite(f"the loss of held-out images is {loss}")
        log.add(step, {column: loss})
    with looking(pretrainer):
        for look in looks:
            log.add(step, look.look(step, fabric.device))
    return True
