"""Super-resolution as the engine sees it: metrics, example, figures, and a folder of images."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kdtasks.engine.task import Metric
from kdtasks.images.folder_flags import add_folder_flags
from kdtasks.images.listing import results_of
from kdtasks.super_resolution.ail import AILLoss
from kdtasks.super_resolution.batches import enlarged, scale_of
from kdtasks.super_resolution.data import patch_shapes
from kdtasks.super_resolution.inference import self_ensemble, tiled, upscale_rgb
from kdtasks.super_resolution.metrics import WINDOW, imresize, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from kdtasks.super_resolution.pairs import Pairs, read_levels

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from kdtasks.core.stages import Stage
    from kdtasks.engine.export_form import OnnxForm
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run
    from kdtasks.super_resolution.pictures import Shown

PRIMARY = "psnr_y"
HIGHER_IS_BETTER = True
HUB_TASK = "image-to-image"
# SSIM lies so near to 1 that two decimals say nothing
METRICS = {"psnr*": Metric("dB"), "ssim*": Metric(decimals=4)}
# figures of each image of a folder
_COLUMNS = ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y")


def evaluate(model: nn.Module, loader: "Loader") -> dict[str, float]:
    """``psnr_y`` (dB) and ``ssim_y`` (at most 1), each the mean over the images; of RGB also
    ``psnr_rgb`` and ``ssim_rgb``.

    As papers give them: uint8-rounded, without a border as wide as the scale; see
    :mod:`kdtasks.super_resolution.metrics`. A batch is of images of one size; see
    :func:`~kdtasks.super_resolution.batches.scale_of`. The PSNR of an image without error is inf:
    it is left out of the mean, which is inf if all are so, and NaN if one is.

    Warns:
        RuntimeWarning: the model gives the bicubic picture, as a dead network with a residual does.
    """
    figures: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(loader):
        input, target, scale = batch["input"], batch["target"], scale_of(batch)
        output = model(input)
        measures = {"psnr_y": psnr_y, "ssim_y": ssim_y}
        if target.shape[1] == 3:
            measures |= {"psnr_rgb": psnr_rgb, "ssim_rgb": ssim_rgb}
        for name, measure in measures.items():
            figures.setdefault(name, []).append(measure(output, target, crop=scale))
        if number == 0 and torch.allclose(output.float(), enlarged(input, target), atol=1e-5):
            warnings.warn(
                "the network gives the bicubic picture: it is dead, or has not been trained",
                RuntimeWarning,
                stacklevel=2,
            )
    return {name: _mean(torch.cat(values).tolist()) for name, values in figures.items()}


def _mean(values: list[float]) -> float:
    """Over the values that are not inf, if there are any."""
    kept = [value for value in values if value != math.inf] or values
    return sum(kept) / len(kept)


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random patches of the shapes that the data gives, without reading it."""
    generator = torch.Generator().manual_seed(0)
    input_shape, target_shape = patch_shapes(**config["data"]["train"])
    return {
        "input": torch.rand(batch_size, *input_shape, generator=generator),
        "target": torch.rand(batch_size, *target_shape, generator=generator),
        "index": torch.arange(batch_size),
    }


def onnx_form(student: nn.Module, images: Tensor) -> "OnnxForm":
    """For export: batch, height and width are dynamic, and a second size is compared too."""
    from kdtasks.engine.export_form import OnnxForm

    other = images[:1, :, : images.shape[2] - 5, : images.shape[3] * 2 // 3].contiguous()
    dynamic = {"input": {0: "batch", 2: "height", 3: "width"}}
    return OnnxForm(student, [(images,), (other,)], dynamic=dynamic)


# Pictures of a run --------------------------------------------------------------------------------
def pictures(run: "Run") -> list[tuple]:
    """``[(title, figure)]`` on the test data: details as each model enlarges them, errors, the gain
    of each image, and of AIL the importance of pixels, round by round.

    Whatever of teacher, alone and distilled there is takes part; a teacher from a file as the last
    taught stage used it.
    """
    from kdtasks.engine.report import stage_colors  # what draws is imported only here
    from kdtasks.super_resolution import pictures as draw

    finished = run.finished
    if not finished:
        return []
    pair = [stage.name for stage in run.arms.pair]
    models = run.arm_models()
    # the two that are compared come first
    models = {name: models[name] for name in (*pair, *(n for n in models if n not in pair))}
    psnr, shown = draw.look(models, run.experiment.test_loader(finished[-1]))
    return draw.draw(psnr, shown, pair, stage_colors(run), importance_of(run, finished, shown))


def importance_of(
    run: "Run", stages: Sequence["Stage"], shown: Sequence["Shown"]
) -> dict[str, list[Tensor]]:
    """``{stage: importance of each image}``, (1,1,H,W) or (1,C,H,W) on the CPU, of the stages that
    have AIL's loss.
    """
    maps: dict[str, list[Tensor]] = {}
    device = run.experiment.device
    for stage in stages:
        if stage.model != "student" or stage.role == "control":
            continue
        distiller = run.experiment.distiller(stage, run.files)
        names = [
            name
            for name, loss in distiller.losses.items()
            if isinstance(loss, AILLoss) and loss.variant != "uniform"
        ]
        if not names:
            continue
        loss, of = distiller.losses[names[0]], stage.losses[names[0]]["of"]
        maps[stage.name] = []
        for picture in shown:
            batch = {"input": picture.input.to(device), "target": picture.target.to(device)}
            tensors = distiller.tensors(batch)
            _, *others = (tensors[name] for name in of)
            maps[stage.name].append(loss.weight(*others).cpu())
    return maps


# A folder of images -------------------------------------------------------------------------------
def predict_arguments(parser: "ArgumentParser") -> None:
    """The flags of tools/test.py that :func:`predict` takes as keyword arguments."""
    add_folder_flags(
        parser,
        images="images as they should come out: they are made worse as in training, restored, and "
        "compared",
    )
    parser.add_argument(
        "--tile", type=int, help="compute in tiles of so many pixels, where memory is short"
    )
    parser.add_argument(
        "--ensemble", action="store_true", help="the mean over the 8 turned and mirrored images"
    )


@torch.no_grad()
def predict(
    model: nn.Module,
    config: dict,
    folder: str | Path,
    out: str | Path,
    measured: bool,
    tile: int | None = None,
    ensemble: bool = False,
    classes: list | None = None,
) -> list[str]:
    """Enlarge the images at any depth below a folder in colour, and write each to its place below
    ``out`` as PNG.

    Two that differ in their ending only keep it: ``a.jpg.png`` and ``a.png.png``.

    ``scale``, ``color`` and ``enlarged`` are those of the config's ``data.test``, or else
    ``data.train``; a network of luma enlarges luma, and bicubic interpolation the rest. Images are
    read as :class:`~kdtasks.super_resolution.pairs.Pairs` reads them.

    Args:
        model: in eval.
        config: of the run that trained it.
        folder: where the images lie.
        out: a folder that is new or empty, and not inside the other.
        measured: the images are high-resolution ones: each is cut to a multiple of the scale,
            shrunk as for training, and enlarged. PSNR and SSIM of the luma of what is written, and
            of bicubic interpolation, are printed, and kept in ``<out>/figures.json``, where null
            stands for inf, NaN, and what a picture is too small for; means are formed as by
            :func:`evaluate`. For a network of luma they differ a little from :func:`evaluate`'s,
            which are of its output before there is any colour. False: they are enlarged as they
            are.
        tile: pixels of the network's input along a side of the tiles that it computes; None: the
            whole image at once.
        ensemble: the mean over the 8 symmetries of a square; both are in
            :mod:`~kdtasks.super_resolution.inference`.
        classes: there are none.

    Returns:
        The files that are left out.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: ``out`` holds files or lies inside ``folder``, the data has several scales,
            the network has another one.

    Warns:
        UserWarning: a file cannot be read, or is too small to be made smaller; it is left out. A
            picture is too small to be measured; it is enlarged all the same.
    """
    data = {**config["data"]["train"], **config["data"]["test"]}
    scale, enlarged_input = data.get("scale", 2), data.get("enlarged", False)
    luma_only = data.get("color", "rgb") == "y"
    if not isinstance(scale, int):
        raise ValueError(
            f"the test data has scale={scale!r}, expected one: --cfg-options data.test.scale=2"
        )
    files, folder, out = results_of(folder, out), Path(folder), Path(out)
    network = _network(model, scale, enlarged_input, tile, ensemble)
    out.mkdir(parents=True, exist_ok=True)
    figures, failed = {}, []
    for path, result in files.items():
        try:
            small, target = _small_and_target(path, scale, enlarged_input, measured)
        except (RuntimeError, ValueError) as error:
            # past the decorator
            warnings.warn(f"left out: {error}", stacklevel=3)
            failed.append(str(path))
            continue
        output = _upscaled(network, small, scale, enlarged_input, luma_only)
        expected = (1, 3, scale * small.shape[2], scale * small.shape[3])
        if output.shape != expected:
            raise ValueError(
                f"the network made {tuple(output.shape)} of {path.name}, expected {expected}: the "
                f"data has scale={scale} and enlarged={enlarged_input}, which must be the network's"
            )
        _save_png(output, result)
        if measured:
            name = path.relative_to(folder).as_posix()
            measures = _measures(path, target, scale)
            figures[name] = _figures(measures, output, imresize(small, scale), target, scale)
            _print_row(name, figures[name], header=len(figures) == 1)
    if figures:
        _report_means(figures, scale, out / "figures.json")
    return failed


def _network(
    model: nn.Module, scale: int, enlarged_input: bool, tile: int | None, ensemble: bool
) -> Callable[[Tensor], Tensor]:
    """The model on one image, in tiles and over the symmetries of a square if asked for."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def network(image: Tensor) -> Tensor:
        if tile is None:
            return model(image.to(device)).to(image.device)
        return tiled(model, image, 1 if enlarged_input else scale, tile)

    return partial(self_ensemble, network) if ensemble else network


def _upscaled(
    network: Callable[[Tensor], Tensor],
    small: Tensor,
    scale: int,
    enlarged_input: bool,
    luma_only: bool,
) -> Tensor:
    if luma_only:
        return upscale_rgb(network, small, scale, enlarged_input)
    return network(imresize(small, scale) if enlarged_input else small)


def _save_png(output: Tensor, path: Path) -> None:
    from PIL import Image

    levels = output[0].float().clamp(0, 1).mul(255).round().byte().movedim(0, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(levels.numpy())).save(path)


def _figures(
    measures: Mapping[str, Callable], output: Tensor, bicubic: Tensor, target: Tensor, scale: int
) -> dict[str, float]:
    """PSNR and SSIM of the network's image and of bicubic interpolation."""
    figures = {}
    for prefix, image in (("", output), ("bicubic_", bicubic)):
        for name, measure in measures.items():
            figures[prefix + name] = float(measure(image, target, crop=scale))
    return figures


def _report_means(figures: Mapping[str, dict[str, float]], scale: int, path: Path) -> None:
    """Print the means over the images, and save all figures."""
    from kdtasks.engine.checkpoint import save_json

    columns = {name: [row[name] for row in figures.values() if name in row] for name in _COLUMNS}
    mean = {name: _mean(values) for name, values in columns.items() if values}
    _print_row(f"mean of {len(figures)}{_fewer(columns, len(figures))}", mean)
    images = {name: _finite(row) for name, row in figures.items()}
    save_json({"scale": scale, "mean": _finite(mean), "images": images}, path)


def _measures(path: Path, target: Tensor, scale: int) -> dict[str, Callable]:
    """The measures that an image is large enough for, ``scale`` pixels cut off all around."""
    side, least = min(target.shape[2:]), WINDOW + 2 * scale
    if side >= least:
        return {"psnr_y": psnr_y, "ssim_y": ssim_y}
    has_psnr = side > 2 * scale
    left_out = "SSIM is" if has_psnr else "PSNR and SSIM are"
    warnings.warn(
        f"{path} is {target.shape[2]}x{target.shape[3]}, SSIM at scale {scale} needs "
        f"{least}x{least} pixels: its {left_out} left out",
        stacklevel=4,
    )
    return {"psnr_y": psnr_y} if has_psnr else {}


def _fewer(columns: dict[str, list[float]], images: int) -> str:
    """Of how many images the means are, if not of all: PSNR leaves out inf, and both leave out
    small images.
    """
    psnr, bicubic = (
        len(columns[name]) - columns[name].count(math.inf) for name in ("psnr_y", "bicubic_psnr_y")
    )
    ssim = len(columns["ssim_y"])
    text = f", PSNR {psnr} and {bicubic}" if min(psnr, bicubic) < images else ""
    if ssim < images:
        text += f", SSIM {ssim}"
    return text


def _small_and_target(
    path: Path, scale: int, enlarged_input: bool, measured: bool
) -> tuple[Tensor, Tensor | None]:
    """A file as RGB, (1,3,h,w), and the image to be restored, (1,3,H,W), both in [0,1]."""
    if not measured:
        return torch.from_numpy(read_levels(str(path))).movedim(2, 0)[None] / 255, None
    pairs = Pairs([str(path)], scale=scale)
    target = pairs.target.image(0)[None]
    small = imresize(target, 1 / scale) if enlarged_input else pairs.input.image(0)[None]
    return small, target


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no inf and no NaN."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return {name: finite.get(name) for name in _COLUMNS}


def _print_row(name: str, values: Mapping[str, float], header: bool = False) -> None:
    if header:
        print(f"{'':32}" + "".join(f"{column:>16}" for column in _COLUMNS))
    cells = []
    for column in _COLUMNS:
        digits = 2 if "psnr" in column else 4
        cells.append(f"{values[column]:.{digits}f}" if column in values else "-")
    print(f"{name:32}" + "".join(f"{cell:>16}" for cell in cells))
