"""The architectures, by the name a config gives them. Another one is a file here, which ends in
`MODEL = (its config, its module)`, and the line of its name."""

import importlib
from typing import Any

from mujax.models.module import MuModule

NAMES = (
    "transformer",
    "mlp",
    "cnn",
    "moe",
    "recurrent",
)

# Name -> (class of its config, class of its module)
MODELS: dict[str, tuple[type[Any], type[MuModule]]] = {
    name: importlib.import_module(f"mujax.models.{name}").MODEL for name in NAMES
}
