"""Spiking networks for online training, registered in timm on import."""

from sj_ottt.models.ottt_nf_resnet import NFResNet, NFResNetCfg
from sj_ottt.models.ottt_vgg import VGG, VGGCfg

__all__ = ["VGG", "NFResNet", "NFResNetCfg", "VGGCfg"]
