"""Online training through time (OTTT) for SpikingJelly: same gradient, one product a step.

Importing the package registers its models in timm:

    import timm, sj_ottt
    model = timm.create_model("ottt_vgg5_ws", pretrained=True, num_classes=4)
"""

from sj_ottt import functional, layer, learning, models, neuron
from sj_ottt.conversion import convert
from sj_ottt.errors import InputError
from sj_ottt.learning.rules import set_rule

__version__ = "0.2.0"
__all__ = [
    "InputError",
    "__version__",
    "convert",
    "functional",
    "layer",
    "learning",
    "models",
    "neuron",
    "set_rule",
]
