"""Options that belong to another one.  须与其他选项同用的选项。"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from medmesh.cli import say

F = TypeVar("F", bound=Callable[..., Any])


class Under(click.Option):
    """An option that says something only under another one, the switch: given without it, it is refused and never passed over, so that
    nobody takes a run for private, or secure, that is not. `of` are the switch's values that it belongs to, where not all of them."""

    def __init__(self, *declared: Any, under: str, of: tuple[str, ...] = (), **rest: Any) -> None:
        super().__init__(*declared, **rest)
        self.under, self.of = under, of

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> tuple[Any, list[str]]:
        """As click's. Raises `click.UsageError`."""
        if self.name in opts and not self._switched(ctx, opts):
            own, needed = self.opts[0], self._needed(ctx)
            english = f"{own} belongs to {needed} and does nothing without it: give that too, or leave {own} away."
            raise click.UsageError(say(english, f"{own} 须与 {needed} 同用，否则不起作用：请一并给出，或去掉 {own}。"), ctx)
        return super().handle_parse_result(ctx, opts, args)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As click's, with the switch."""
        found = super().get_help_record(ctx)
        return found and (found[0], f"{found[1]}  [{say('with', '须同用')} {self._needed(ctx)}]".strip())

    def _switched(self, ctx: click.Context, opts: Mapping[str, Any]) -> bool:
        return opts.get(self.under, self._switch(ctx).get_default(ctx)) in self.of if self.of else self.under in opts

    def _switch(self, ctx: click.Context) -> click.Parameter:
        return next(one for one in ctx.command.params if one.name == self.under)

    def _needed(self, ctx: click.Context) -> str:
        return " ".join((self._switch(ctx).opts[0], "|".join(self.of))).strip()


def under(switch: str, *declared: str, of: tuple[str, ...] = (), **rest: Any) -> Callable[[F], F]:
    """As `click.option`: an option under the parameter `switch`, see `Under`."""
    return click.option(*declared, cls=Under, under=switch, of=of, **rest)
