"""The model zoo: folders of weights, how they are found, checked, loaded and described.

A zoo is a folder with, for each `arch.tag` as in timm, `arch.tag.safetensors`, its card
`arch.tag.md`, and a row of `manifest.json`: the file's SHA-256, the fields of timm's pretrained
configuration, and how the network is built where not as usual. One ships with the package; the user
has another one. Nothing here uses a network.
"""

from sj_ottt.zoo.folders import (
    WEIGHTS_LIMIT,
    ZooEntry,
    add_to_zoo,
    all_entries,
    check_tag,
    entry_named,
    own_folder,
    shipped_folder,
    zoo_entries,
)
from sj_ottt.zoo.loading import (
    adapt_input_channels,
    cfg_beside,
    check_numbers,
    load_weights,
    options_beside,
    pretrained_cfgs,
)
from sj_ottt.zoo.models import create, layer_depths, model_rows

__all__ = [
    "WEIGHTS_LIMIT",
    "ZooEntry",
    "adapt_input_channels",
    "add_to_zoo",
    "all_entries",
    "cfg_beside",
    "check_numbers",
    "check_tag",
    "create",
    "entry_named",
    "layer_depths",
    "load_weights",
    "model_rows",
    "options_beside",
    "own_folder",
    "pretrained_cfgs",
    "shipped_folder",
    "zoo_entries",
]
