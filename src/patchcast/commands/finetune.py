"""`patchcast finetune`: a classifier from a run or a timm model, with checkpoints, numbers, pictures and a card."""

from __future__ import annotations

import json
import shlex
import shutil
import time

from rich.console import Console

from patchcast import options
from patchcast.arguments import words_of
from patchcast.classification.classifier_card import write_classifier_card
from patchcast.classification.classifier_data import classifier_data
from patchcast.classification.classifier_fit import fit_classifier
from patchcast.classification.classifier_folder import save_classifier
from patchcast.classification.classifier_plan import FINETUNE_RANGES, plan_of
from patchcast.classification.classifier_results import classifier_summary, measure_classifier
from patchcast.classification.model import classifier, freeze
from patchcast.commands.finetune_masks import finetune_segmenter, next_commands
from patchcast.data import open_source
from patchcast.data.names import escape
from patchcast.files import read_json, write_text
from patchcast.folder_files import BEGUN, RESULTS
from patchcast.heap import keep_freed_memory
from patchcast.parts import note_plan
from patchcast.ranges import check_ranges
from patchcast.runs.network import Network, is_run, open_network, torch_device
from patchcast.training.lock import locked


def finetune_classifier(given: options.FinetuneClassifier) -> None:
    """Train the classifier, or go on with it, and write its folder.

    Raises:
        ValueError: for anything that the user can put right, in one sentence.
        InterruptedError, KeyboardInterrupt: for SIGTERM and Ctrl-C, after a checkpoint.
    """
    check_ranges({name: getattr(given, name) for name in FINETUNE_RANGES}, FINETUNE_RANGES, prefix="--")
    if given.multi_label and (given.mixup or given.cutmix or given.limit_per_class):
        raise ValueError("--mixup, --cutmix and --limit_per_class need one label per image; leave out --multi_label")
    if given.out.is_file():
        raise ValueError(f"{given.out} is a file; --out is a folder")
    if given.out.is_dir() and any(given.out.iterdir()) and not (given.out / BEGUN).exists():
        raise ValueError(f"{given.out} is not empty and holds no classifier of this command; choose another --out")
    device = torch_device(given.device)
    if device == "cpu":
        keep_freed_memory()
    network = _network(given)
    if given.task == "segmentation":
        finetune_segmenter(given, network, device, words=_command(given))
        return
    if given.head == "conv" or given.tiles:
        raise ValueError("--head conv and --tiles are for --task segmentation")
    reading = {name: getattr(given, name) for name in ("image_column", "label_column", "max_pixels")}
    source = open_source(
        given.data,
        channels=network.backbone.channels,
        held_out_share=network.held_out_share(given.data),
        several_labels=given.multi_label,
        **reading,
    )
    data = classifier_data(source, per_class=given.limit_per_class, seed=given.seed, multi_label=given.multi_label)
    plan = plan_of(given, data, device)
    model = classifier(network.backbone, len(data.names), head=plan.head, seed=given.seed)
    if plan.is_frozen:
        freeze(model)
    console = Console(highlight=False)
    with locked(given.out):
        now = {"model": network.name, "data": given.data, "plan": plan.depends_on(data, network)}
        if not note_plan(now, given.out / BEGUN, given.out / RESULTS, kind="classifier"):
            console.print(f"{escape(given.out)} is finished: {classifier_summary(read_json(given.out / RESULTS))}")
            return
        console.print(
            f"{len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test images of "
            f"{len(data.names)} classes ({data.phrase})."
        )
        console.print(f"{escape(network.described)}: {plan}.")
        began = time.process_time()
        chosen = fit_classifier(model, network, data, plan, given.out, device)
        seconds = time.process_time() - began
        save_classifier(model, network, data.names, given.out, is_multi_label=given.multi_label)
        metrics = measure_classifier(model.to(device), network, data, given.out, device)
        metrics |= {"processor_seconds": round(seconds, 1), "chosen": chosen, "data": data.phrase, "how": str(plan)}
        metrics["command"] = shlex.join(_command(given))
        channels = network.backbone.channels
        write_classifier_card(
            given.out, network.described, given.data, data.names, metrics, _command(given), channels=channels
        )
        write_text(given.out / RESULTS, json.dumps(metrics, indent=2) + "\n")
        shutil.rmtree(given.out / "checkpoints", ignore_errors=True)
    console.print(classifier_summary(metrics))
    console.print(f"Written to {escape(given.out)}. {next_commands(given.out, '--out predictions.csv')}")


def _network(given: options.FinetuneClassifier) -> Network:
    if given.image_size is None:
        return open_network(given.model, untrained=given.untrained)
    if is_run(given.model):
        raise ValueError(f"the run in {given.model} knows its image size; leave --image_size out")
    return open_network(given.model, untrained=given.untrained, img_size=given.image_size)


def _command(given: options.FinetuneClassifier) -> list[str]:
    words = ["patchcast", "finetune"]
    for name, typed in words_of(given):
        words += typed[1:] if name == "model" else typed
    return words
