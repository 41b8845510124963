"""Every field of a config, as `mujax train --helpfull` prints it."""

import textwrap

from mujax.config import SECTIONS, RefineConfig
from mujax.config.sections import SEED
from mujax.fields import explain_fields
from mujax.models import MODELS

INDENT = " " * 6


def fields_text() -> str:
    """Returns every field of a config with its name, default and meaning, section after section."""
    lines = [
        "Fields of a config, with their defaults",
        f"  seed = {SEED.default}",
        f"      {SEED.metadata['doc']}",
    ]
    of_models = {f"model, {name}": config for name, (config, _) in MODELS.items()}
    for title, section in {**of_models, **SECTIONS, "refine": RefineConfig}.items():
        lines.append(f"\n{title}")
        for name, default, doc in explain_fields(section, title.partition(",")[0]):
            lines += [
                f"  {name} = {default}",
                *textwrap.wrap(doc, 90, initial_indent=" " * 6, subsequent_indent=" " * 6),
            ]
    return "\n".join(lines)
