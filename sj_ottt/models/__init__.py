"""Spiking networks for online training, registered in timm on import."""

from sj_ottt.models.ann_weights import AnnWeights, load_ann_weights
from sj_ottt.models.calibrate import calibrate
from sj_ottt.models.ltc_nets import LTCCNN, LTCRNN, LTCCNNCfg, LTCRNNCfg
from sj_ottt.models.ottt_nf_resnet import NFResNet, NFResNetCfg
from sj_ottt.models.ottt_vgg import VGG, VGGCfg

__all__ = [
    "LTCCNN",
    "LTCRNN",
    "VGG",
    "AnnWeights",
    "LTCCNNCfg",
    "LTCRNNCfg",
    "NFResNet",
    "NFResNetCfg",
    "VGGCfg",
    "calibrate",
    "load_ann_weights",
]
