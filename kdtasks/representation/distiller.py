"""The Distiller of representations: every network supplies its embedding and its map."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.representation.models import embedding_of, map_of, map_path, seen_size


class RepresentationDistiller(Distiller):
    """Beside what every Distiller has, ``'<role>.embedding'``, ``(B, D)``, and ``'<role>.map'``,
    ``(B, D, H, W)``, of the student and of each teacher, whatever the network gives.

    The map is the last one, or the last tokens, inside the network: found on the first batch.

    Raises:
        ValueError: (when a loss asks for it) a network that has no map, or an output in which there
            is no representation.
    """

    def names(self, role: str) -> list[str]:
        """The network's own, and these two."""
        return [*super().names(role), f"{role}.embedding", f"{role}.map"]

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role."""
        embedding, whole = f"{role}.embedding", f"{role}.map"
        plain = [name for name in wanted if name not in (embedding, whole)]
        images = self.read(batch, "input", role)
        source = self._map_name(role, images) if whole in wanted else None
        names = plain if source in (None, role) else [*plain, source]
        values = self.run(role, images, names)
        rows = embedding_of(values[role])
        if embedding in wanted:
            values[embedding] = rows
        if source is not None:
            prefix = getattr(self.model(role), "num_prefix_tokens", None)
            size = seen_size(self._called(role), images)
            values[whole] = map_of(values[source], rows.shape[1], prefix, size)
        return values

    def _called(self, role: str) -> nn.Module:
        """What a role's images go to."""
        return self.teachers[role] if role in self.teachers else self.model(role)

    def _map_name(self, role: str, images: Any) -> str:
        """The name of the tensor that is the map; found once for a network."""
        facts = self.facts(role)
        if "map" not in facts:
            few: Tensor = images[:2]
            call = self._called(role) if role in self.teachers else None
            path = map_path(self.model(role), few, call)
            if path is None:
                raise ValueError(
                    f"{role}.map: no module of {type(self.model(role)).__name__} gives a map or "
                    f"tokens of several places for an image of {tuple(few.shape[-2:])}"
                )
            facts["map"] = f"{role}.{path}" if path else role
        return facts["map"]
