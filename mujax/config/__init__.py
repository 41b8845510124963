"""A run's config: sections of declared fields, checked, with an id."""

from mujax.config.cross_checks import DATASETS
from mujax.config.ids import SCHEMA, is_of_today, renamed_fields
from mujax.config.run import (
    DERIVED,
    ConfigMaker,
    RunConfig,
    config_of_today,
    default_config,
    make_run_config,
)
from mujax.config.sections import (
    OPERATION_SECTIONS,
    RULES,
    SECTIONS,
    STUDY_SECTIONS,
    WEIGHT_AXES,
    DataConfig,
    MeshConfig,
    OptimConfig,
    ParameterizationConfig,
    RefineConfig,
    ScheduleConfig,
    TrainConfig,
)
from mujax.config.trees import canonical, differences, hashed, leaves
from mujax.config.typed import typed_section

__all__ = [
    "DATASETS",
    "DERIVED",
    "OPERATION_SECTIONS",
    "RULES",
    "SCHEMA",
    "SECTIONS",
    "STUDY_SECTIONS",
    "WEIGHT_AXES",
    "ConfigMaker",
    "DataConfig",
    "MeshConfig",
    "OptimConfig",
    "ParameterizationConfig",
    "RefineConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
    "canonical",
    "config_of_today",
    "default_config",
    "differences",
    "hashed",
    "is_of_today",
    "leaves",
    "make_run_config",
    "renamed_fields",
    "typed_section",
]
