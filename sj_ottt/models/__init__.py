"""Spiking networks for online training, registered in timm on import."""

from sj_ottt.models.calibrate import calibrate
from sj_ottt.models.ltc_nets import LTCCNN, LTCRNN, LTCCNNCfg, LTCRNNCfg
from sj_ottt.models.ottt_nf_resnet import NFResNet, NFResNetCfg
from sj_ottt.models.ottt_vgg import VGG, VGGCfg

__all__ = [
    "LTCCNN",
    "LTCRNN",
    "VGG",
    "LTCCNNCfg",
    "LTCRNNCfg",
    "NFResNet",
    "NFResNetCfg",
    "VGGCfg",
    "calibrate",
]
