"""`patchcast finetune --task segmentation`: a segmenter from a run or other weights."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from patchcast import options
from patchcast.classification.training import best_of
from patchcast.data import Evaluate
from patchcast.data.names import escape
from patchcast.files import read_json, write_text
from patchcast.folder_files import BEGUN, RESULTS
from patchcast.parts import note_plan
from patchcast.runs.network import Network
from patchcast.segmentation.masked_data import masked_data
from patchcast.segmentation.segmenter import Segmenter
from patchcast.segmentation.segmenter_card import write_segmenter_card
from patchcast.segmentation.segmenter_fit import fit_segmenter
from patchcast.segmentation.segmenter_folder import FineTunedSegmenter, save_segmenter
from patchcast.segmentation.segmenter_plan import check_for_segmentation, segmenter_plan_of
from patchcast.segmentation.segmenter_results import measure_segmenter, segmenter_summary
from patchcast.training.lock import locked


def finetune_segmenter(
    given: options.FinetuneClassifier, network: Network, device: str, *, words: Sequence[str]
) -> None:
    """Train the segmenter, or resume it, and write its folder.

    Args:
        words: of the command, for the card.
    Raises:
        ValueError: for anything that the user can put right, in one sentence.
        InterruptedError, KeyboardInterrupt: for SIGTERM and Ctrl-C, after a checkpoint.
    """
    check_for_segmentation(given)
    evaluate = Evaluate(network.size, network.mean, network.std, squash=True)
    data = masked_data(Path(given.data), channels=network.backbone.channels, evaluate=evaluate, seed=given.seed)
    plan = segmenter_plan_of(given, data, device)
    model = Segmenter(network.backbone, len(data.names), head=plan.head, seed=given.seed)
    assert model.layers is not None
    if plan.is_frozen:
        model.freeze()
    tuned = FineTunedSegmenter(
        model, data.names, network.backbone.channels, network.size, network.mean, network.std, plan.tiled
    )
    console = Console(highlight=False)
    with locked(given.out):
        now = {"model": network.name, "data": given.data, "plan": plan.depends_on(data, network)}
        if not note_plan(now, given.out / BEGUN, given.out / RESULTS, kind="model"):
            console.print(f"{escape(given.out)} is finished: {segmenter_summary(read_json(given.out / RESULTS))}")
            return
        console.print(
            f"{len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test masks of "
            f"{len(data.names)} classes.\n{escape(network.described)}: {plan}."
        )
        began = time.process_time()
        rows = fit_segmenter(model, tuned, data, plan, plan.augmentation(network), given.out, device)
        seconds = time.process_time() - began
        save_segmenter(tuned, network, given.out, head=plan.head, layers=model.layers)
        model.to(device)
        metrics = {
            **measure_segmenter(tuned, data, given.out, device),
            "processor_seconds": round(seconds, 1),
            "chosen": {**best_of(rows, "mean_iou"), "epochs": rows},
            "data": data.phrase,
            "how": str(plan),
            "command": shlex.join(words),
        }
        write_segmenter_card(
            given.out, network.described, given.data, data.names, metrics, words,
            channels=tuned.channels, size=tuned.size, tiled=tuned.tiled,
        )  # fmt: skip
        write_text(given.out / RESULTS, json.dumps(metrics, indent=2) + "\n")
        shutil.rmtree(given.out / "checkpoints", ignore_errors=True)
    console.print(segmenter_summary(metrics))
    console.print(f"Written to {escape(given.out)}. {next_commands(given.out, '--out masks')}")


def next_commands(out: Path, options: str) -> str:
    """What follows after fine-tuning, as markup."""
    folder = shlex.quote(str(out))
    predict, page = f"patchcast predict {folder} IMAGES {options}", f"patchcast report {folder}"
    return f"Next: [bold]{escape(predict)}[/], or [bold]{escape(page)}[/] for one page about it"
