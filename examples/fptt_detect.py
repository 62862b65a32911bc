"""Find small objects in cluttered scenes by a spiking detector that learns by FPTT.

    pip install "sj-ottt[detect]"
    python examples/fptt_detect.py --out runs/detect [--images fashion_mnist.npz] [--resume]

Scenes are made on the fly: scikit-learn's digits and, with --images, those of a packed npz file
(see `sj_ottt.data.ImageSet`), on clutter. A still scene is shown for --steps time steps, with an
update after each. A run leaves result.json, boxes.png (held-out scenes) and the checkpoint last.pt
in --out. It shows the method; it is no claim about any detection benchmark.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detector import Detector, assign, detect, detection_loss, make_cells
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from resuming import parse_args
from scenes import SIZE, Items, Scene, draw_scene, load_items
from torch import Tensor
from torchvision.ops import box_iou
from tqdm import tqdm

from sj_ottt._files import atomic_write
from sj_ottt.errors import InputError
from sj_ottt.learning import FPTT, predict, train_step
from sj_ottt.run.checkpoint import load_checkpoint, save_checkpoint
from sj_ottt.run.evaluation import fixed_seed

if TYPE_CHECKING:
    from torchmetrics.detection import MeanAveragePrecision

TEST_SEED = 2**40  # above those of the training batches
FREE_ON_RESUME = ("every", "images", "out", "resume")
CELLS = make_cells(SIZE, SIZE)
SHOWN = 0.4  # least score of a box in the picture


def draw(items: Items, n: int, seed: int) -> list[Scene]:
    """Return n scenes."""
    return [draw_scene(items, np.random.default_rng((seed, i))) for i in range(n)]


def stack(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Return the images [n, 1, H, W] of scenes and the targets of their cells [n, cells, 5]."""
    targets = [assign(scene.boxes, scene.labels, CELLS) for scene in scenes]
    return torch.stack([scene.image for scene in scenes]), torch.stack(targets)


def find(model: Detector, scenes: list[Scene], steps: int) -> list[dict[str, Tensor]]:
    """Return what the model sees in scenes, the same at every call."""
    found = []
    with fixed_seed(torch.device("cpu")):  # the membranes start at random
        for start in range(0, len(scenes), 50):
            images, _ = stack(scenes[start : start + 50])
            found += detect(predict(model, images, steps), CELLS)
    return found


def make_metric() -> "MeanAveragePrecision":
    """Return torchmetrics' mAP@.5, that of each class too.

    Raises:
        InputError: torchmetrics or its backend is not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        return MeanAveragePrecision(iou_thresholds=[0.5], class_metrics=True)
    except ImportError as error:
        raise InputError('the score needs torchmetrics: pip install "sj-ottt[detect]"') from error


def average_precision(
    metric: "MeanAveragePrecision", found: list[dict[str, Tensor]], scenes: list[Scene]
) -> tuple[float, dict[int, float]]:
    """Return mAP@.5 of what was found, and the average precision of each class in the scenes."""
    metric.reset()
    metric.update(found, [{"boxes": s.boxes, "labels": s.labels} for s in scenes])
    score = metric.compute()
    classes, values = (score[key].view(-1).tolist() for key in ("classes", "map_per_class"))
    return score["map"].item(), {k: v for k, v in zip(classes, values, strict=True) if v >= 0}


def picture(
    found: list[dict[str, Tensor]], scenes: list[Scene], classes: tuple[str, ...]
) -> Figure:
    """Draw scenes, their objects (dashed) and the boxes that a model sees (solid)."""
    figure = Figure(figsize=(12, 9.4), layout="constrained")
    for axes in figure.subplots(3, 4).flat:
        axes.set_axis_off()
    for axes, seen, scene in zip(figure.axes, found, scenes, strict=False):
        axes.imshow(scene.image[0].numpy(), cmap="gray", vmin=0, vmax=1)
        for box in scene.boxes:
            _outline(axes, box, "white", linestyle="--")
        overlaps = box_iou(seen["boxes"], scene.boxes)
        boxes = (seen["boxes"], seen["scores"], seen["labels"])
        for box, score, label, overlap in zip(*boxes, overlaps, strict=True):
            if score < SHOWN:
                continue
            right = (overlap.ge(0.5) & scene.labels.eq(label)).any()
            colour = "limegreen" if right else "orangered"
            _outline(axes, box, colour)
            x, across = (box[0], "left") if box[0] < SIZE / 2 else (box[2], "right")
            text = axes.text(x, box[1] - 0.9, f"{classes[label]} {score:.2f}", fontsize=8)
            text.set(ha=across, va="bottom" if box[1] > 4 else "top", in_layout=False)
            text.set_bbox({"facecolor": colour, "edgecolor": "none", "pad": 0.8})
    figure.suptitle("held-out scenes: objects dashed, boxes found green where right, red where not")
    return figure


def _outline(axes: Axes, box: Tensor, colour: str, **style: Any) -> None:
    x, y, right, bottom = box.tolist()
    corner = (x - 0.5, y - 0.5)  # pixel 0 is drawn around 0
    axes.add_patch(Rectangle(corner, right - x, bottom - y, fill=False, color=colour, **style))


def run(args: argparse.Namespace) -> None:
    """Train, test every --every batches, and write what came of it.

    Raises:
        InputError: --out holds another run, or none to resume; or as in `load_items` and
            `make_metric`.
    """
    items, held_out = (load_items(part, args.images) for part in ("train", "test"))
    classes = items.classes
    scenes = draw(held_out, args.test_scenes, TEST_SEED)
    metric = make_metric()
    torch.manual_seed(args.seed)
    model = Detector(len(classes), args.width)
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    fptt = FPTT(optimizer, args.alpha, parts=args.parts)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.batches)
    loss_fn = partial(detection_loss, cells=CELLS)
    first, seconds, history = 0, 0.0, []
    options = {k: v for k, v in vars(args).items() if k not in FREE_ON_RESUME}
    options["classes"] = list(classes)
    if args.resume:
        state = load_checkpoint(args.out)
        if state["options"] != options:
            raise InputError(f"{args.out} was started with other --images: give the same")
        model.load_state_dict(state["model"])
        fptt.load_state_dict(state["fptt"])
        schedule.load_state_dict(state["schedule"])
        first, seconds, history = state["batch"], state["seconds"], state["history"]
    elif (args.out / "last.pt").exists():
        raise InputError(f"{args.out} holds a run: continue it with --resume, or choose --out")

    start = time.process_time() - seconds
    with tqdm(total=args.batches, initial=first, unit="batch", dynamic_ncols=True) as bar:
        for batch in range(first, args.batches):
            seed = args.seed * 10**6 + batch
            images, target = stack(draw(items, args.batch_size, seed))
            torch.manual_seed(seed)  # so that a resumed run goes on as one that never stopped
            loss, _ = train_step(model, fptt, images, target, loss_fn=loss_fn, steps=args.steps)
            schedule.step()
            bar.update()
            if (batch + 1) % args.every and batch + 1 < args.batches:
                continue
            with fptt.averaged():
                found = find(model, scenes, args.steps)
            score, per_class = average_precision(metric, found, scenes)
            history.append({"batch": batch + 1, "loss": loss.item(), "map_50": score})
            bar.set_postfix(loss=f"{loss.item():.2f}", map_50=f"{score:.3f}")
            seconds = time.process_time() - start
            named = {classes[k]: round(value, 4) for k, value in per_class.items()}
            result = {**options, "map_50": score, "average_precision": named}
            result |= {"cpu_seconds": round(seconds, 3), "history": history}
            state = {"model": model.state_dict(), "fptt": fptt.state_dict()}
            state |= {"schedule": schedule.state_dict(), "batch": batch + 1}
            state |= {"seconds": seconds, "history": history, "options": options}
            save_checkpoint(args.out, state)
            with atomic_write(args.out / "boxes.png") as file:
                picture(found, scenes, classes).savefig(file, format="png", dpi=100)
            with atomic_write(args.out / "result.json") as file:
                file.write((json.dumps(result, indent=2) + "\n").encode())
    print(f"mAP@.5 {history[-1]['map_50']:.3f} on {len(scenes)} held-out scenes: {args.out}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="npz file of grey images to find as well")
    parser.add_argument("--batches", type=int, default=1600, help="of fresh scenes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="time steps that show a scene, T")
    parser.add_argument("--parts", type=int, help="of fptt; default: one a time step")
    parser.add_argument("--alpha", type=float, default=0.1, help="of fptt")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest; falls to 0 by a cosine")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="batches between two tests")
    parser.add_argument("--test-scenes", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/detect"))
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    try:
        args = parse_args(parser, FREE_ON_RESUME)
    except InputError as error:
        parser.error(str(error))
    for name in ("batches", "batch_size", "steps", "width", "every", "test_scenes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.lr <= 0 or args.seed < 0:
        parser.error("--lr must be above 0, and --seed at least 0")
    try:
        run(args)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
