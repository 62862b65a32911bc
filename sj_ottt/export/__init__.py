"""Trained networks for other programs: NIR graphs, ONNX files and files of `torch.export`."""

from sj_ottt.export.nir_graph import READERS, NIRExport, to_nir
from sj_ottt.export.programs import AllSteps, to_onnx, to_torch

__all__ = ["READERS", "AllSteps", "NIRExport", "to_nir", "to_onnx", "to_torch"]
