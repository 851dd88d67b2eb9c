"""What can be called now, as one immutable snapshot. Built by `gateway/fleet`, read by `dispatch`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from inferhub.core.errors import ModelNotFound, NoEndpoint
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Route


@dataclass(frozen=True, slots=True)
class Directory:
    """Public names on one side, endpoints on the other."""

    endpoints: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    """Model name → where it runs; an empty tuple while the model is wanted but nowhere ready."""
    routes: Mapping[str, Route] = field(default_factory=dict)
    revision: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Everything a client may put into `model`, sorted."""
        return tuple(sorted({*self.endpoints, *self.routes}))

    def first_for(
        self,
        modality: str,
        features: Collection[str] = (),
        may_call: Callable[[str], bool] = lambda _: True,
    ) -> str | None:
        """The first name that is ready for this kind of call: of one's own models alphabetically, then of
        others' models, then of routes. Nobody's recording goes to a vendor because it named no model."""
        for name in sorted(self.names, key=lambda name: (name in self.routes, self._is_remote(name), name)):
            endpoints = (e for model in self.models_of(name) for e in self.endpoints.get(model, ()))
            found = (endpoint.model.capability(modality) for endpoint in endpoints)
            if may_call(name) and any(c and c.features.issuperset(features) for c in found):
                return name
        return None

    def _is_remote(self, name: str) -> bool:
        return any(endpoint.model.device == "remote" for endpoint in self.endpoints.get(name, ()))

    def models_of(self, name: str) -> tuple[str, ...]:
        """Every model that may answer to this name, the likeliest first; itself where it is a model's."""
        route = self.routes.get(name)
        return route.models if route else (name,)

    def primary(self, name: str) -> str:
        """The model that most likely answers to this name."""
        return self.models_of(name)[0]

    def check(self, name: str, may_call: Callable[[str], bool]) -> None:
        """Raises `ModelNotFound` for a name that is neither a model nor a route."""
        if name not in self.endpoints and name not in self.routes:
            raise self.unknown(name, may_call)

    def resolve(
        self, name: str, may_call: Callable[[str], bool] = lambda _: True
    ) -> tuple[str, tuple[Endpoint, ...]]:
        """(model name, its endpoints). Raises `ModelNotFound` or `NoEndpoint`."""
        model = self.primary(name)
        endpoints = self.endpoints.get(model)
        if endpoints is None:
            raise self.unknown(name, may_call)
        if not endpoints:
            raise NoEndpoint(f"The model {model!r} is known but not ready on any worker.", retry_after_s=1.0)
        return model, endpoints

    def unknown(self, name: str, may_call: Callable[[str], bool] = lambda _: True) -> ModelNotFound:
        """What to tell who asked for `name`: the nearest of the names that he may call."""
        names = [known for known in self.names if may_call(known)]
        near = difflib.get_close_matches(name[:128], names, n=1)
        if near:
            hint = f"Did you mean {near[0]!r}?"
        else:
            hint = f"Available: {', '.join(names[:10])}." if names else "No model is loaded."
        return ModelNotFound(f"The model {name[:128]!r} does not exist. {hint}")
