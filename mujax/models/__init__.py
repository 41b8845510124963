"""The architectures, by the name a config gives them. A fork adds one file and one line here."""

from mujax.models.cnn import CNN, CNNConfig
from mujax.models.mlp import MLPConfig, MLPLanguageModel
from mujax.models.moe import MoEConfig, MoETransformer
from mujax.models.recurrent import RecurrentConfig, RecurrentModel
from mujax.models.transformer import Transformer, TransformerConfig

MODELS = {
    "transformer": (TransformerConfig, Transformer),
    "mlp": (MLPConfig, MLPLanguageModel),
    "cnn": (CNNConfig, CNN),
    "moe": (MoEConfig, MoETransformer),
    "recurrent": (RecurrentConfig, RecurrentModel),
}
