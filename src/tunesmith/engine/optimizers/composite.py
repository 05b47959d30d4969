"""One optimizer whose steps others take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


class Composite(torch.optim.Optimizer):
    """Passes its groups' rates and weights on to *inner*, whose groups are its own in the same order."""

    def __init__(
        self, groups: list[dict[str, Any]], inner: Sequence[torch.optim.Optimizer], defaults: dict[str, Any]
    ) -> None:
        self.inner = list(inner)
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every optimizer inside; *closure* is not supported."""
        assert closure is None
        self._pass_on()
        for optimizer in self.inner:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return its own state with that of the optimizers inside."""
        self._pass_on()
        return {**super().state_dict(), "inner": [optimizer.state_dict() for optimizer in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        for optimizer, state in zip(self.inner, state_dict["inner"], strict=True):
            optimizer.load_state_dict(state)

    def _pass_on(self) -> None:
        """Give each group inside the rate and the weights of its own group; the engine may step weights one by one."""
        inside = [group for optimizer in self.inner for group in optimizer.param_groups]
        for own, inner in zip(self.param_groups, inside, strict=True):
            inner["lr"], inner["params"] = own["lr"], self._stand_for(own["params"])

    def _stand_for(self, weights: list[Any]) -> list[Any]:
        """Return what the optimizers inside step for *weights*."""
        return list(weights)
