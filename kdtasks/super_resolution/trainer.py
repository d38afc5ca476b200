"""Super-resolution: what the engine needs to know of the task."""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdtasks.core.stages import final_stage
from kdtasks.images.files import results_of
from kdtasks.super_resolution.ail import AILLoss
from kdtasks.super_resolution.batches import enlarged, scale_of
from kdtasks.super_resolution.data import patch_shapes
from kdtasks.super_resolution.inference import self_ensemble, tiled, upscale_rgb
from kdtasks.super_resolution.metrics import WINDOW, imresize, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from kdtasks.super_resolution.pairs import Pairs, read_levels

PRIMARY = "psnr_y"
HIGHER_IS_BETTER = True
# of a folder's images
_COLUMNS = ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y")


def evaluate(model: nn.Module, loader) -> dict[str, float]:
    """``psnr_y`` (dB) and ``ssim_y`` (at most 1), each the mean over the images; of RGB also
    ``psnr_rgb`` and ``ssim_rgb``.

    As papers give them: uint8-rounded, without a border as wide as the scale; see
    :mod:`kdtasks.super_resolution.metrics`. A batch is of images of one size; see
    :func:`~kdtasks.super_resolution.batches.scale_of`. The PSNR of an image without error is inf:
    it is left out of the mean, which is inf if all are so, and NaN if one is.

    Warns:
        RuntimeWarning: the model gives the bicubic picture, as a dead network with a residual does.
    """
    found: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(loader):
        input, target, scale = batch["input"], batch["target"], scale_of(batch)
        output = model(input)
        measures = {"psnr_y": psnr_y, "ssim_y": ssim_y}
        if target.shape[1] == 3:
            measures |= {"psnr_rgb": psnr_rgb, "ssim_rgb": ssim_rgb}
        for name, measure in measures.items():
            found.setdefault(name, []).append(measure(output, target, crop=scale))
        if number == 0 and torch.allclose(output.float(), enlarged(input, target), atol=1e-5):
            warnings.warn(
                "the network gives the bicubic picture: it is dead, or has not been trained",
                RuntimeWarning,
                stacklevel=2,
            )
    return {name: _mean(torch.cat(values).tolist()) for name, values in found.items()}


def _mean(values: list[float]) -> float:
    """Over what is not inf, if anything."""
    kept = [value for value in values if value != math.inf] or values
    return sum(kept) / len(kept)


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random patches of the shapes that the data gives, without reading it."""
    generator = torch.Generator().manual_seed(0)
    input, target = (
        torch.rand(batch_size, *shape, generator=generator)
        for shape in patch_shapes(**config["data"]["train"])
    )
    return {"input": input, "target": target, "index": torch.arange(batch_size)}


def onnx_form(student: nn.Module, images: Tensor):
    """For export: batch, height and width are left open, and a second size is compared too."""
    from kdtasks.engine.export import OnnxForm

    other = images[:1, :, : images.shape[2] - 5, : images.shape[3] * 2 // 3].contiguous()
    return OnnxForm(
        student, [(images,), (other,)], dynamic={"input": {0: "batch", 2: "height", 3: "width"}}
    )


# Pictures of a run --------------------------------------------------------------------------------
def pictures(run) -> list[tuple]:
    """``[(title, figure)]`` on the test data: details as each model enlarges them, errors, the gain
    of each image, and of AIL the importance of pixels, round by round.

    Whatever of teacher, alone and distilled there is takes part; a teacher from a file as the last
    taught stage used it.
    """
    from kdtasks.engine.report import stage_colors  # what draws is imported only here
    from kdtasks.super_resolution import pictures as draw

    experiment, finished = run.experiment, run.finished
    if not finished:
        return []
    final, configured = final_stage(finished), experiment.config["teachers"]
    pair = [name for name in ("alone", final and final.name) if name in run.done]
    models = {
        name: run.trained(name)
        for name in (*pair, *(s.name for s in finished if s.name in configured))
    }
    taught = next((s for s in reversed(finished) if s.model == "student" and s.teachers), None)
    if taught and not any(name in models for name in configured):
        teachers = experiment.distiller(taught, run.files).teachers
        models |= {name: model for name, model in teachers.items() if name in configured}
    psnr, shown = draw.look(models, experiment.test_loader(finished[-1]))
    return draw.draw(psnr, shown, pair, stage_colors(run), importance_of(run, finished, shown))


def importance_of(run, stages: list, shown: list) -> dict[str, list[Tensor]]:
    """``{stage: importance of each image}``, (1,1,H,W) or (1,C,H,W) on the CPU, of those stages
    that have AIL's loss.
    """
    maps: dict[str, list[Tensor]] = {}
    device = run.experiment.device
    for stage in stages:
        if stage.model != "student" or stage.name == "alone":
            continue
        distiller = run.experiment.distiller(stage, run.files)
        entries = [
            (n, loss)
            for n, loss in distiller.losses.items()
            if isinstance(loss, AILLoss) and loss.variant != "uniform"
        ]
        for name, loss in entries[:1]:
            for one in shown:
                known = distiller.tensors(
                    {"input": one.input.to(device), "target": one.target.to(device)}
                )
                _, *others = (known[tensor] for tensor in stage.losses[name]["of"])
                maps.setdefault(stage.name, []).append(loss.weight(*others).cpu())
    return maps


# A folder of images -------------------------------------------------------------------------------
def predict_arguments(parser) -> None:
    """The flags of tools/test.py that :func:`predict` takes as keyword arguments."""
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
    """Enlarges the images at any depth below a folder in colour, and writes each to its place below
    ``out`` as PNG.

    Two that differ in their ending only keep it: ``a.jpg.png`` and ``a.png.png``.

    By ``scale``, ``color`` and ``enlarged`` of the config's ``data.test``, or else ``data.train``;
    a network of luma enlarges luma, and bicubic interpolation the rest. Images are read as
    :class:`~kdtasks.super_resolution.pairs.Pairs` reads them.

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
    from PIL import Image

    from kdtasks.engine.checkpoint import save_json

    data = {
        "scale": 2,
        "color": "rgb",
        "enlarged": False,
        **config["data"]["train"],
        **config["data"]["test"],
    }
    scale, luma_only, large = data["scale"], data["color"] == "y", data["enlarged"]
    if not isinstance(scale, int):
        raise ValueError(
            f"the test data has scale={scale!r}, expected one: --cfg-options data.test.scale=2"
        )
    files, folder, out = results_of(folder, out), Path(folder), Path(out)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def network(x: Tensor) -> Tensor:
        return (
            model(x.to(device)).to(x.device)
            if tile is None
            else tiled(model, x, 1 if large else scale, tile)
        )

    def every(x: Tensor) -> Tensor:
        return self_ensemble(network, x) if ensemble else network(x)

    out.mkdir(parents=True, exist_ok=True)
    found, failed = {}, []
    for path, made in files.items():
        name = path.relative_to(folder).as_posix()
        try:
            small, target = _small_and_target(path, scale, large, measured)
        except (RuntimeError, ValueError) as error:
            # past the decorator
            warnings.warn(f"left out: {error}", stacklevel=3)
            failed.append(str(path))
            continue
        output = (
            upscale_rgb(every, small, scale, large)
            if luma_only
            else every(imresize(small, scale) if large else small)
        )
        expected = (1, 3, scale * small.shape[2], scale * small.shape[3])
        if output.shape != expected:
            raise ValueError(
                f"the network made {tuple(output.shape)} of {path.name}, expected "
                f"{expected}: the data has "
                f"scale={scale} and enlarged={large}, which must be the network's"
            )
        levels = output[0].float().clamp(0, 1).mul(255).round().byte().movedim(0, -1)
        made.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(levels.numpy())).save(made)
        if measured:
            measures = _measures(path, target, scale)
            found[name] = {
                f"{which}{measure}": float(measures[measure](image, target, crop=scale))
                for which, image in (("", output), ("bicubic_", imresize(small, scale)))
                for measure in measures
            }
            _print_row(name, found[name], header=len(found) == 1)
    if found:
        columns = {name: [row[name] for row in found.values() if name in row] for name in _COLUMNS}
        mean = {name: _mean(values) for name, values in columns.items() if values}
        _print_row(f"mean of {len(found)}{_fewer(columns, len(found))}", mean)
        images = {name: _finite(row) for name, row in found.items()}
        save_json({"scale": scale, "mean": _finite(mean), "images": images}, out / "figures.json")
    return failed


def _measures(path: Path, target: Tensor, scale: int) -> dict:
    """What a picture is large enough for, once ``scale`` pixels are cut off all around."""
    side, least = min(target.shape[2:]), WINDOW + 2 * scale
    if side >= least:
        return {"psnr_y": psnr_y, "ssim_y": ssim_y}
    some = side > 2 * scale
    warnings.warn(
        f"{path} is {target.shape[2]}x{target.shape[3]}, SSIM at scale {scale} needs "
        f"{least}x{least} pixels: its {'SSIM is' if some else 'PSNR and SSIM are'} left out",
        stacklevel=4,
    )
    return {"psnr_y": psnr_y} if some else {}


def _fewer(columns: dict[str, list[float]], images: int) -> str:
    """Of how many images the means are, where it is not of all: PSNR leaves out inf, and all leave
    out small pictures.
    """
    psnr = [
        len(columns[name]) - columns[name].count(math.inf) for name in ("psnr_y", "bicubic_psnr_y")
    ]
    ssim = len(columns["ssim_y"])
    return (f", PSNR {psnr[0]} and {psnr[1]}" if min(psnr) < images else "") + (
        f", SSIM {ssim}" if ssim < images else ""
    )


def _small_and_target(
    path: Path, scale: int, large: bool, measured: bool
) -> tuple[Tensor, Tensor | None]:
    """A file as RGB, (1,3,h,w), and what should come out, (1,3,H,W), both in [0,1]."""
    if not measured:
        return torch.from_numpy(read_levels(str(path))).movedim(2, 0)[None] / 255, None
    pairs = Pairs([str(path)], scale=scale)
    target = pairs.target.image(0)[None]
    return imresize(target, 1 / scale) if large else pairs.input.image(0)[None], target


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """For JSON, which has no inf and no NaN."""
    return {
        name: values[name] if math.isfinite(values.get(name, math.nan)) else None
        for name in _COLUMNS
    }


def _print_row(name: str, values: dict[str, float], header: bool = False) -> None:
    if header:
        print(f"{'':32}" + "".join(f"{column:>16}" for column in _COLUMNS))
    cells = (
        f"{values[column]:.{2 if 'psnr' in column else 4}f}" if column in values else "-"
        for column in _COLUMNS
    )
    print(f"{name:32}" + "".join(f"{cell:>16}" for cell in cells))
