"""The report of layers, as a value."""

from typing import NamedTuple


class Layer(NamedTuple):
    """
    One layer of isolation.

    Args:
        name: Such as "net namespace", "capabilities" or "seccomp".
        active: It is in force.
        why: What it consists of, or why it is not in force.
    """

    name: str
    active: bool
    why: str

    def __str__(self) -> str:
        return f"{'on' if self.active else 'off':<4}{self.name:<24}{self.why}"


class Enforced(tuple[Layer, ...]):
    """
    The layers of a sandbox; printing it gives one line each.

    ``enforced["seccomp"]`` is a layer by its name.
    """

    __slots__ = ()

    def __getitem__(self, key: object) -> Layer:  # type: ignore[override]  # a name, or a position
        if isinstance(key, str):
            for layer in self:
                if layer.name == key:
                    return layer
            raise KeyError(key)
        return super().__getitem__(key)  # type: ignore[call-overload, no-any-return]

    def __str__(self) -> str:
        return "\n".join(str(layer) for layer in self)
