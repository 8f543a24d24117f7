"""`patchcast export`: an encoder, a classifier or a segmenter for other libraries, with a model card."""

from __future__ import annotations

from pathlib import Path

from patchcast.classification.classifier_export import export_classifier
from patchcast.classification.classifier_folder import is_fine_tuned
from patchcast.data.names import printable
from patchcast.files import unfinished_folder
from patchcast.interop.card import Preparation, write_card, write_weights_card
from patchcast.interop.export_formats import default_format, images_of_noise, write_encoder
from patchcast.interop.graph import save_onnx, save_torch
from patchcast.interop.timm_weights import save_pretrained
from patchcast.runs.network import is_run, open_network
from patchcast.runs.results import encoder_of
from patchcast.runs.run import open_run
from patchcast.segmentation.segmenter_export import export_segmenter
from patchcast.segmentation.segmenter_folder import is_segmenter


def export(run: Path, out: Path, *, to: str | None = None) -> None:
    """Write a run's encoder, or a fine-tuned model, to a new folder with a README.md that says how to load it.

    Args:
        run: the folder of a run, a classifier or a segmenter, or other weights by the words of `--start`.
        to: one of `patchcast.interop.export_formats.EXPORT_FORMATS`; None: the library that the network comes from
            (transformers for an ImageGPT, torch for a segmenter, else timm).
    Raises:
        ValueError: if the folder is not empty, or this format cannot hold the network; nothing is written then.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is {'a file' if out.is_file() else 'not empty'}; choose another --out")
    with unfinished_folder(out) as made:
        if is_fine_tuned(run):
            print(export_classifier(run, made, to=to or "timm"))
        elif is_segmenter(run):
            print(export_segmenter(run, made, to=to or "torch"))
        elif not is_run(run):
            write_other_weights(str(run), made, to=to or "timm", where=f"local-dir:{out}")
        else:
            write_folder(run, made, to=to, where=f"local-dir:{out}")
    print(f"{printable(str(out))} holds {', '.join(sorted(file.name for file in out.iterdir()))}.")
    print("README.md describes the weights and how to load them. It names no license yet: choose one there.")


def write_other_weights(words: str, out: Path, *, to: str, where: str) -> None:
    """Write the backbone of weights that no run of ours trained, and its card, to an empty folder.

    Raises:
        ValueError: if this format cannot hold the network.
    """
    network = open_network(words)
    backbone = network.backbone
    prepared = Preparation(network.size, backbone.channels, network.mean, network.std, network.squash)
    if to == "timm":
        save_pretrained(
            backbone.model,
            out,
            architecture=network.architecture.partition(".")[0],
            model_args={**network.model_args, "in_chans": backbone.channels},
            mean=network.mean,
            std=network.std,
            crop_mode="squash" if network.squash else "center",
            image_size=network.size,
        )
    elif to in ("onnx", "torch"):
        save, name = (save_onnx, "model.onnx") if to == "onnx" else (save_torch, "model.pt2")
        images = images_of_noise(backbone.channels, network.size, network.mean, network.std)
        difference = save(backbone, out / name, images)
        print(f"Compared with the network itself on 8 images: the largest difference is {difference}.")
    else:
        raise ValueError(
            f"--to {to} takes runs of MAE and ImageGPT, and classifiers; for {words} use --to timm, onnx or torch"
        )
    write_weights_card(words, backbone, prepared, out, to=to, where=where)


def write_folder(run: Path, out: Path, *, to: str | None, where: str) -> None:
    """Write a run's encoder and its card to an empty folder; `where` is the address in the card's code."""
    encoder = encoder_of(open_run(run))
    to = to or default_format(encoder.method)
    write_encoder(encoder, out, to=to)
    write_card(run, encoder, out, to=to, where=where)
