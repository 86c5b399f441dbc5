"""A finished run as one file that another program can use without this package."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
import zipfile
from pathlib import Path

import torch

from reproduce.files import atomic
from reproduce.own_images.featured import open_run
from reproduce.settings import ConfigError

PREPARE = """
import numpy, torch
from PIL import Image, ImageOps
image = Image.open(path)
image.draft(None, (2 * {side}, 2 * {side}))
image = ImageOps.exif_transpose(image).convert("RGBA")
image = ImageOps.{fit}(image, ({side}, {side}), Image.Resampling.BILINEAR)
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
images = torch.from_numpy(numpy.asarray({image}).transpose(2, 0, 1)[None].copy())
"""


def prepare(shape: tuple[int, int, int], letterbox: bool) -> str:
    """Lines of Python that make of the image file ``path`` what an exported program takes, uint8
    ``[1, C, S, S]``: upright, on white where it is transparent, the shorter side resized to S, the
    centre cut out; or with letterbox the longer side, between white bars."""
    channels, side, _ = shape
    padded = f'ImageOps.pad(image, ({side}, {side}), color="white")'
    words = {"side": side, "fit": "contain" if letterbox else "fit"}
    lines = PREPARE.format(**words, image=padded if letterbox else "image").strip()
    grey = "\nimages = images.float().mean(1, keepdim=True).round().byte()"
    return lines + grey * (channels == 1)


def export(run: str, out: str) -> dict:
    """Write ``out``: uint8 images ``[N, C, S, S]``, any N, to probabilities ``[N, K]`` and features
    ``[N, D]``. A ``.pt2`` is read by ``torch.export.load(out).module()``, and holds "clusters.json"
    among its extra files; an ``.onnx`` by any ONNX runtime. A ``.pt`` holds the backbone's weights
    in half precision, for ``-p weights`` and for features. Returns what clusters.json says."""
    path = Path(os.path.expanduser(out))
    if path.suffix not in (".pt2", ".onnx", ".pt"):
        raise ConfigError(f"model file must end in .pt2, .onnx or .pt, got {out!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"model file {out!r}: there is no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"model file {out!r}: {str(path.parent)!r} cannot be written to")
    missing = [p for p in ("onnx", "onnxscript") if importlib.util.find_spec(p) is None]
    if path.suffix == ".onnx" and missing:
        how = "pip install -e '.[onnx]', or name a .pt2"
        raise ConfigError(f"model file {out!r} needs the package {missing[0]}: {how}")
    clusterer = open_run(run)
    if path.suffix == ".pt" and not hasattr(clusterer, "method"):
        others = "has another's network, which has a name (weights in config.json)"
        raise ConfigError(f"model file {out!r}: the run {others}: name a .pt2 or an .onnx")
    clusterer.made_ready()
    said = {
        "run": clusterer.path.resolve().name,
        "method": clusterer.config.method,
        "image": list(clusterer.shape),
        "n_clusters": clusterer.n_clusters,
        "names": {str(k): name for k, name in clusterer.names.items()},
        "prepare": prepare(clusterer.shape, clusterer.config.letterbox),
    }
    if path.suffix == ".pt":
        state = {f"backbone.{k}": v for k, v in clusterer.method.backbone.state_dict().items()}
        # rounded to bfloat16's digits (by 0.2 %) the file compresses by a quarter
        half = {k: v.bfloat16().half() if v.is_floating_point() else v for k, v in state.items()}
        kept = {"state_dict": half, "weights_sha256": clusterer.metrics["weights_sha256"]}
        torch.save(kept, plain := io.BytesIO())
        small = dict(mode="w", compression=zipfile.ZIP_DEFLATED, compresslevel=9)
        with (
            atomic(path) as temporary,
            zipfile.ZipFile(plain) as before,
            zipfile.ZipFile(temporary, **small) as after,
        ):
            for name in before.namelist():
                after.writestr(name, before.read(name))
        return said
    example = torch.zeros(2, *clusterer.shape, dtype=torch.uint8)
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    with atomic(path) as temporary, torch.no_grad(), quiet():
        program = torch.export.export(clusterer, (example,), dynamic_shapes=batch)
        if path.suffix == ".pt2":
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={"clusters.json": json.dumps(said)})
            temporary.write_bytes(buffer.getbuffer())
        else:
            names = ["probabilities", "features"]
            model = torch.onnx.export(program, input_names=["images"], output_names=names)
            model.model.metadata_props["clusters.json"] = json.dumps(said)
            model.save(str(temporary), external_data=False)
    return said


@contextlib.contextmanager
def quiet():
    """Without what exporters tell of their own steps; errors come through as such."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
