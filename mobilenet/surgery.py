"""Network surgery by hand: dependency groups, removal of channels, reconstruction.

import mobilenet

thinned = mobilenet.surgery.thin(model, ratio=0.5, round_to=16, importance="magnitude")
thinned.verify(images)
model = mobilenet.build(thinned.config)
model.set_weights(thinned.model.get_weights())
"""

from __future__ import annotations

from mobilenet.compression.pruning.channel.constant_channels import Leftover
from mobilenet.compression.pruning.channel.dependency_groups import Group, Member
from mobilenet.compression.pruning.channel.dependency_groups import find_groups as groups
from mobilenet.compression.pruning.channel.importance import gradients
from mobilenet.compression.pruning.channel.surgery import (
    Thinned,
    mask_channels,
    reconstruct,
    remove_channels,
    remove_zero_channels,
    thin,
)

__all__ = [
    "Group",
    "Leftover",
    "Member",
    "Thinned",
    "gradients",
    "groups",
    "mask_channels",
    "reconstruct",
    "remove_channels",
    "remove_zero_channels",
    "thin",
]
