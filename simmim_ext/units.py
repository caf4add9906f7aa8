"""Units of a network, and the layers that shrink with them.

A unit is a neuron, a channel, an attention head (or key/value group) or a normalization group. A
group is a set of units that share one fate: unit j of the group's root layer, the same channel of
the norm behind it and of a residual branch beside it, and the input columns of the layers that
read it.
"""

from dataclasses import dataclass

from .layers import Axis


@dataclass(frozen=True)
class Member:
    """One axis of one layer that shrinks with a group's units.

    Attributes:
        module: qualified name of the layer, or of a parameter that no layer holds.
        axis: "out" for its output channels (a norm's channels too), "in" for its input channels,
            of a parameter the dimension: "0", "1", ...
        indices: the channels of that axis that belong to the group, in increasing order.
        units: the unit that each of them belongs to; after a flatten, a channel's unit repeats
            once for each pixel, and a head has all of its channels.
        size: all channels of that axis, the group's or not, in the model that was traced.
    """

    module: str
    axis: Axis
    indices: tuple[int, ...]
    units: tuple[int, ...]
    size: int = 0


@dataclass(frozen=True)
class UnitGroup:
    """Units that are removed together.

    Attributes:
        name: qualified name of the root layer, whose outputs the units are; of the attention
            whose heads they are.
        units: how many there are.
        members: every axis of every layer that changes with them, the root's outputs first.
        channels: channels that make up a unit where it is made: 1, or the size of a head.
        attributes: (module, attribute, what each unit adds to it) of the integers in which modules
            keep the number of their units, as attention does.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    channels: int = 1
    attributes: tuple[tuple[str, str, int], ...] = ()

    @property
    def readers(self) -> tuple[Member, ...]:
        """The layers that read all of the units; others, before a concatenation, read some."""
        every = set(range(self.units))
        return tuple(m for m in self.members if m.axis == "in" and set(m.units) == every)
