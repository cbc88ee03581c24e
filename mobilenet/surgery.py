"""Surgery by hand: thin a net, remove channels, see what belongs together.

import mobilenet

thinned = mobilenet.surgery.thin(model, ratio=0.5, round_to=16, importance="magnitude")
mobilenet.surgery.prove(model, thinned, images)
net = mobilenet.build(thinned.config)
net.set_weights(thinned.model.get_weights())
"""

from __future__ import annotations

from mobilenet.compression.pruning.channel.constant_channels import Leftover
from mobilenet.compression.pruning.channel.dependency_groups import Group, Member
from mobilenet.compression.pruning.channel.dependency_groups import find as groups
from mobilenet.compression.pruning.channel.importance import gradients
from mobilenet.compression.pruning.channel.surgery import (
    Thinned,
    prove,
    reconstruct,
    remove_channels,
    remove_zero_channels,
    silenced,
    thin,
)

__all__ = [
    "Group",
    "Leftover",
    "Member",
    "Thinned",
    "gradients",
    "groups",
    "prove",
    "reconstruct",
    "remove_channels",
    "remove_zero_channels",
    "silenced",
    "thin",
]
