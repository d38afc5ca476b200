"""A transform of kornia on a batch, with parameters that each sample has of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdtasks.core.views import random_numbers

# random images that say how a transform takes a batch
_TRIED = 16


class BatchedTransform:
    """A transform, and the way in which it takes a batch: see
    :class:`~kdtasks.images.augmentation.KorniaAugmentation`.

    Args:
        transform: with kornia's ``forward_parameters(batch_shape)`` and
            ``forward(images, params)``.
        shape: (channels, height, width) of the images.

    Attributes:
        way: ``'batch'``, ``'groups'`` or ``'alone'``.
        result: (channels, height, width) of what comes out.

    Raises:
        ValueError: it cannot be applied to such images, or changes the size of some only.
    """

    def __init__(self, transform: nn.Module, shape: Sequence[int]):
        self.transform = transform
        self._shared: dict[nn.Module, frozenset[str]] = {}
        images = torch.rand(_TRIED, *shape, generator=torch.Generator().manual_seed(0))
        key = random_numbers(torch.tensor([0]), 0, _TRIED)[0]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                self.way = self._find_way(images, key)
                self._check_size(images[:1])
                self.result = tuple(self(images[:1], key[:1]).shape[1:])
                if 0 in self.result:
                    raise ValueError(f"nothing is left of them, they become {self.result}")
            except Exception as error:
                raise ValueError(
                    f"augment: {type(transform).__name__} cannot be applied to images of "
                    f"(channels, height, width) = {tuple(shape)}: {error}"
                ) from error

    def __call__(self, images: Tensor, key: Tensor) -> Tensor:
        """Images (b,C,H,W), each with the parameters that its number in ``key`` (b,) gives."""
        if self.way == "batch":
            return self.transform(images, params=_drawn_together(self.transform, images, key))
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            if self.way == "groups":
                return self._apply(self.transform, images, self._draw_each(images, key))
            return torch.cat(
                [self._run_alone(images[i : i + 1], k) for i, k in enumerate(key.tolist())]
            )

    def _draw_each(self, images: Tensor, key: Tensor) -> list:
        """The parameters of each sample, drawn as if it were alone."""
        params = []
        for k in key.tolist():
            torch.default_generator.manual_seed(k)
            params.append(self.transform.forward_parameters(torch.Size((1, *images.shape[1:]))))
        return params

    def _run_alone(self, image: Tensor, key: int) -> Tensor:
        torch.default_generator.manual_seed(key)
        if image.is_cuda:
            torch.cuda.manual_seed(key)
        return self.transform(image)

    # Which way ------------------------------------------------------------------------------------
    def _find_way(self, images: Tensor, key: Tensor) -> str:
        """The fastest way that gives each sample what it gets alone."""
        state = torch.get_rng_state()
        try:
            params = [
                _drawn_together(self.transform, images[i : i + 1], key[i : i + 1])
                for i in range(_TRIED)
            ]
            batch_params = _drawn_together(self.transform, images, key)
        except _SharedDraw:
            pass
        else:
            batch = self.transform(images, params=_all_applied(batch_params))
            singles = self._apply_each(images, params)
            # other random numbers than those of the samples come from torch's generator
            if torch.equal(torch.get_rng_state(), state) and _are_close(batch, singles):
                return "batch"
        params = self._draw_each(images, key)
        state = torch.get_rng_state()
        singles = self._apply_each(images, params)
        if not torch.equal(torch.get_rng_state(), state):
            return "alone"
        groups = self._apply(
            self.transform, images, [_all_applied(sample_params) for sample_params in params]
        )
        return "groups" if _are_close(groups, singles) else "alone"

    def _apply_each(self, images: Tensor, params: list) -> Tensor:
        return _of_one_size(
            [
                self.transform(images[i : i + 1], params=_all_applied(sample_params))
                for i, sample_params in enumerate(params)
            ]
        )

    def _check_size(self, image: Tensor) -> None:
        """Where a probability decides, the size is the same with and without."""
        for part in self.transform.modules():
            decides = any(0 < getattr(part, name, 1) < 1 for name in ("p", "p_batch"))
            if decides and hasattr(part, "forward_parameters"):
                params = _all_applied(part.forward_parameters(image.shape))
                _of_one_size([image, part(image, params=params)])

    # Samples that were drawn one by one -----------------------------------------------------------
    def _apply(self, transform: nn.Module, images: Tensor, params: list) -> Tensor:
        """A transform with each sample's own parameters: a dict of tensors, or for a container a
        list of (name, parameters) of the transforms that it has chosen.
        """
        if params[0] is None:
            return transform(images)
        if isinstance(params[0], list):
            for step in range(max(map(len, params))):
                images = self._apply_chosen(transform, images, params, step)
            return images
        parts: dict[tuple, list[int]] = {}
        for i, sample_params in enumerate(params):
            parts.setdefault(self._shared_values(transform, images, sample_params), []).append(i)
        return _in_parts(
            images,
            [
                (rows, functools.partial(transform, params=self._merged(transform, params, rows)))
                for rows in parts.values()
            ],
        )

    def _apply_chosen(
        self, container: nn.Module, images: Tensor, params: list, step: int
    ) -> Tensor:
        """The ``step``-th of the transforms that each sample has chosen."""
        parts: dict[str, list[int]] = {}
        for i, steps in enumerate(params):
            if step < len(steps):
                parts.setdefault(steps[step].name, []).append(i)
        return _in_parts(
            images,
            [
                (
                    rows,
                    functools.partial(
                        self._apply,
                        container.get_submodule(name),
                        params=[params[i][step].data for i in rows],
                    ),
                )
                for name, rows in parts.items()
            ],
        )

    def _shared_names(self, transform: nn.Module, shape: Sequence[int]) -> frozenset[str]:
        """Parameters that have no row for each sample."""
        if transform not in self._shared:
            two, three = (transform.forward_parameters(torch.Size((b, *shape[1:]))) for b in (2, 3))
            self._shared[transform] = frozenset(
                name for name in two if (two[name].shape[:1], three[name].shape[:1]) != ((2,), (3,))
            )
        return self._shared[transform]

    def _shared_values(self, transform: nn.Module, images: Tensor, params: dict) -> tuple:
        return tuple(
            tuple(params[name].flatten().tolist())
            for name in sorted(self._shared_names(transform, images.shape))
        )

    def _merged(self, transform: nn.Module, params: list[dict], rows: list[int]) -> dict:
        first, shared = params[rows[0]], self._shared[transform]
        merged = {
            name: first[name] if name in shared else torch.cat([params[i][name] for i in rows])
            for name in first
        }
        shape = first["forward_input_shape"].clone()
        shape[0] = len(rows)
        return {**merged, "forward_input_shape": shape}


def _in_parts(images: Tensor, parts: list[tuple[list[int], Callable]]) -> Tensor:
    """Each function of the rows that it comes with; rows of none stay as they are."""
    if len(parts) == 1 and len(parts[0][0]) == len(images):
        return parts[0][1](images)
    order = [row for rows, _ in parts for row in rows]
    untouched = sorted(set(range(len(images))) - set(order))
    results = [function(images[rows]) for rows, function in parts]
    inverse = torch.tensor([*order, *untouched]).argsort().to(images.device)
    return _of_one_size([*results, images[untouched]])[inverse]


def _of_one_size(images: list[Tensor]) -> Tensor:
    images = [part for part in images if len(part)]
    if len({part.shape[1:] for part in images}) > 1:
        raise ValueError(
            "it changes the size of some images and leaves that of others: expected p=1, or a size "
            "that stays"
        )
    return torch.cat(images)


def _all_applied(params: Any) -> Any:
    """The parameters with no sample left out by a probability."""
    if isinstance(params, list):
        return [item._replace(data=_all_applied(item.data)) for item in params]
    if params is None:
        return None
    return {**params, "batch_prob": torch.ones_like(params["batch_prob"])}


def _are_close(first: Tensor, second: Tensor) -> bool:
    """Equal but for rounding, which may take a few pixels over a threshold."""
    if first.shape != second.shape:
        return False
    return bool(((first - second).abs() > 1e-3).float().mean() < 1e-2)


# Numbers for samples that are drawn together ------------------------------------------------------
class _SharedDraw(Exception):
    """A random tensor has no row for each sample."""


class _SampleNumbers(TorchFunctionMode):
    """While it is on, row i of what ``torch.rand`` and ``torch.randn`` give comes from ``key[i]``.

    kornia draws with these two whatever has a value for each sample.
    """

    def __init__(self, key: Tensor):
        super().__init__()
        self.key, self.drawn = key, 0

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.rand, torch.randn):
            return func(*args, **kwargs)
        size = args or kwargs["size"]
        size = torch.Size(size[0] if isinstance(size[0], Sequence) else size)
        numbers = self._uniform(size) if func is torch.rand else self._normal(size)
        return numbers.to(kwargs.get("device"), kwargs.get("dtype") or torch.get_default_dtype())

    def _uniform(self, size: torch.Size, bits: int = 24) -> Tensor:
        """In [0,1), multiples of 2**-bits: 24 are those that float32 holds."""
        if not size or size[0] != len(self.key):
            raise _SharedDraw
        count = size[1:].numel()
        numbers = random_numbers(self.key, self.drawn, count)
        self.drawn += count
        # (b,count) < 2**63
        return ((numbers >> (63 - bits)).double() * 2.0**-bits).view(size)

    def _normal(self, size: torch.Size) -> Tensor:
        """By the formula of Box and Muller (1958)."""
        radius = (-2 * (1 - self._uniform(size, 53)).log()).sqrt()
        return radius * (2 * torch.pi * self._uniform(size, 53)).cos()


def _drawn_together(transform: nn.Module, images: Tensor, key: Tensor) -> Any:
    with _SampleNumbers(key):
        return transform.forward_parameters(images.shape)
