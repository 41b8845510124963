"""A run's config: sections of declared fields, checked, with an id."""

from mujax.config.run import DERIVED, ConfigMaker, RunConfig, default_config, make_run_config
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
from mujax.config.together import DATASETS
from mujax.config.trees import canonical, differences, digest, hashed, leaves
from mujax.config.typed import typed_section

__all__ = [
    "DATASETS",
    "DERIVED",
    "OPERATION_SECTIONS",
    "RULES",
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
    "default_config",
    "differences",
    "digest",
    "hashed",
    "leaves",
    "make_run_config",
    "typed_section",
]
