"""Export a trained model, and hold other programs' labels against its own.

    python examples/check_export.py --checkpoint runs/ndigits_finetune

The model is written as ONNX and as a NIR graph, and labels the test recordings of its run in ONNX
Runtime and in those of snnTorch, norse and sinabs that are installed.
"""

import argparse
import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import onnxruntime
import torch
from torch import Tensor

from sj_ottt.export.checkpoints import export_checkpoint
from sj_ottt.learning import predict
from sj_ottt.run.evaluation import load_trained


def in_snntorch(graph: nir.NIRGraph, x_seq: Tensor) -> Tensor:
    """Label one recording [T, ...]; return the outputs of all steps."""
    import snntorch
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        net = import_from_nir(graph)
    for cell in net.modules():
        if isinstance(cell, snntorch.Leaky):
            cell.reset_mechanism, cell.mem_reset = "subtract", torch.zeros_like
    return step_by_step(net, x_seq)


def in_norse(graph: nir.NIRGraph, x_seq: Tensor) -> Tensor:
    """The same in norse."""
    import norse.torch
    from norse.torch.functional.reset import reset_subtract

    net = norse.torch.from_nir(graph, dt=1.0)
    for cell in net.modules():
        if isinstance(cell, norse.torch.LIFBoxCell):
            cell.p = cell.p._replace(reset_method=reset_subtract)
    return step_by_step(net, x_seq)


def in_sinabs(graph: nir.NIRGraph, x_seq: Tensor) -> Tensor:
    """The same in sinabs, which takes all steps at once."""
    import sinabs

    for node in graph.nodes.values():
        if isinstance(node, nir.LIF):
            node.v_leak = np.zeros(1)
            node.tau = torch.as_tensor(node.tau, dtype=torch.float32)
            node.v_threshold = torch.as_tensor(node.v_threshold, dtype=torch.float32)
    net = sinabs.nir.from_nir(graph, num_timesteps=len(x_seq))
    for cell in net.modules():
        if isinstance(cell, sinabs.layers.LIF):
            cell.spike_fn = sinabs.activation.SingleSpike
    return net(x_seq)[0]


def step_by_step(net: torch.nn.Module, x_seq: Tensor) -> Tensor:
    """Run a network that takes and gives its state."""
    outputs, state = [], None
    for x in x_seq:
        output, state = net(x, state)
        outputs.append(output)
    return torch.stack(outputs)


READERS: dict[str, Callable[[nir.NIRGraph, Tensor], Tensor]] = {
    "snntorch": in_snntorch,
    "norse": in_norse,
    "sinabs": in_sinabs,
}


def main(argv: list[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the --out of a run")
    parser.add_argument("--samples", type=int, default=50, help="recordings for the NIR readers")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="nir|norse|sinabs|snntorch")
    trained = load_trained(args.checkpoint, "cpu")
    dataset = trained.dataset(None, "test", trained.info.frames.steps)
    x_seq = torch.stack([dataset[i][0] for i in range(len(dataset))], 1)
    labels = predict(trained.model, x_seq).argmax(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model"
        export_checkpoint(args.checkpoint, "onnx", path)
        (found,) = onnxruntime.InferenceSession(path).run(None, {"x_seq": x_seq.numpy()})
        report("onnxruntime", torch.from_numpy(found).argmax(1), labels)
        for name, run in READERS.items():
            if importlib.util.find_spec(name) is None:
                print(f"{name:12} not installed")
                continue
            made = export_checkpoint(args.checkpoint, "nir", path, reader=name)
            print(f"{name:12} {made.readers[name]}")
            few = x_seq[:, : args.samples].unbind(1)
            sums = [run(nir.read(path), x).reshape(len(x), -1).sum(0) for x in few]
            report(name, torch.stack(sums).argmax(1), labels[: len(few)])


def report(name: str, found: Tensor, labels: Tensor) -> None:
    """Print how many labels are the same."""
    print(f"{name:12} {int((found == labels).sum())} of {len(labels)} labels are the same")


if __name__ == "__main__":
    main()
