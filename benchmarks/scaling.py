"""What several processes gain: samples a second against one process, and what they exchange."""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import sj_ottt  # registers the models in timm  # noqa: F401
from sj_ottt.learning import train_step

MODEL = "ottt_vgg11_ws"
SIZE = 32
BATCH = 16


def scaling(args: argparse.Namespace) -> list[dict]:
    """Samples a second in 1, 2, ... processes of one thread each, 16 samples a process."""
    on_gpu = args.device != "cpu"
    most = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    rows = []
    for update in ("accumulate", "online"):
        alone = None
        for size in sorted({1, 2, most} & set(range(1, most + 1))):
            with tempfile.TemporaryDirectory() as folder:
                job = (size, folder, args.device, args.steps, args.repeats, update)
                mp.spawn(_worker, job, nprocs=size)
                found = torch.load(Path(folder) / "0.pt", weights_only=True)
            # Alternating with it, the first process has trained alone as well.
            alone = found["alone"]
            rows.append(
                {
                    "update": update,
                    "processes": size,
                    "samples/s": f"{size * BATCH / found['together']:.1f}",
                    "efficiency": f"{alone / found['together']:.2f}",
                    "MB added up a batch": f"{found['bytes'] / 1e6:.1f}",
                    "of the parameters": f"{found['bytes'] / found['parameters']:.3f}",
                }
            )
    return rows


def _worker(
    rank: int, size: int, folder: str, device: str, steps: int, repeats: int, update: str
) -> None:
    """Train on batches of one's own, alone and together in turn."""
    torch.set_num_threads(1)
    if sys.platform == "linux" and device == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    where = torch.device("cpu") if device == "cpu" else torch.device("cuda", rank)
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=10).to(where)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(BATCH, 3, SIZE, SIZE, device=where)
    target = torch.randint(10, (BATCH,), device=where)

    def batch() -> float:
        start = time.perf_counter()
        train_step(model, optimizer, x, target, steps=steps, update=update)
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    alone, together, sent = [], [], 0
    for round_ in range(repeats + 1):
        # Alone, while the others wait: on a machine of shared cores that is the honest reference.
        for turn in range(size):
            if turn == rank:
                seconds = batch()
                if round_ and rank == 0:
                    alone.append(seconds)
            _wait(rank, size, folder, f"{round_}-{turn}")
        backend = "nccl" if where.type == "cuda" else "gloo"
        store = f"file://{folder}/store{round_}"
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=size)
        with _Counted() as counted:
            seconds = batch()
        dist.destroy_process_group()
        if round_:
            together.append(seconds)
            sent = counted.bytes
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    found = {
        "alone": statistics.median(alone) if alone else 0.0,
        "together": statistics.median(together),
        "bytes": sent,
        "parameters": parameters,
    }
    torch.save(found, Path(folder) / f"{rank}.pt")


class _Counted:
    """Counts the bytes that this process gives to all-reduce and broadcast."""

    def __enter__(self) -> "_Counted":
        self.bytes = 0
        self._before = dist.all_reduce, dist.broadcast

        def counting(function):
            def call(tensor, *args, **kwargs):
                self.bytes += tensor.numel() * tensor.element_size()
                return function(tensor, *args, **kwargs)

            return call

        dist.all_reduce, dist.broadcast = map(counting, self._before)
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce, dist.broadcast = self._before


def _wait(rank: int, size: int, folder: str, name: str) -> None:
    """Wait until all processes are here, without a group."""
    (Path(folder) / f"{name}-{rank}").touch()
    while not all((Path(folder) / f"{name}-{r}").exists() for r in range(size)):
        time.sleep(0.001)
