"""A compact spiking object detector: network, cells and their boxes, loss and decoding.

The image is covered by two grids of cells, of 4 and of 8 pixels. Every cell says whether it sees
the middle of an object (objectness), where its box is, and of which class it is. There is one
anchor for each grid, a square with sides of three cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import (
    batched_nms,
    box_area,
    box_convert,
    complete_box_iou_loss,
    sigmoid_focal_loss,
)

from sj_ottt.neuron import LeakyReadout, LTCConvNode

STRIDES = (4, 8)
"""Pixels per cell of either grid."""
ANCHOR = 3.0
"""Width and height of a grid's anchor, in its cells."""
NOTHING = -1.0
"""The label of a cell that sees no object."""


def make_cells(height: int, width: int) -> Tensor:
    """Return the cells of an image: middle x, middle y and stride, [cells, 3]."""
    grids = []
    for stride in STRIDES:
        y, x = (stride * (torch.arange(n // stride) + 0.5) for n in (height, width))
        y, x = torch.meshgrid(y, x, indexing="ij")
        grids.append(torch.stack((x, y, torch.full_like(x, stride)), -1).flatten(0, 1))
    return torch.cat(grids)


def decode(raw: Tensor, cells: Tensor) -> Tensor:
    """Return the boxes x1, y1, x2, y2 in pixels, [..., cells, 4], that a network's numbers mean.

    The middle is the cell's, moved by up to 1.5 cells; the sides are the anchor's times exp(raw).
    """
    middle, stride = cells[:, :2], cells[:, 2:]
    middle = middle + 3 * stride * (raw[..., :2].sigmoid() - 0.5)
    sides = ANCHOR * stride * raw[..., 2:].clamp(-3, 3).exp()
    return box_convert(torch.cat((middle, sides), -1), "cxcywh", "xyxy")


def assign(boxes: Tensor, labels: Tensor, cells: Tensor) -> Tensor:
    """Return the target of every cell.

    A box belongs to the grid whose anchor is nearest to it in size, the root of the area, and
    there to the cells whose middle is less than one cell away from its own in x and in y. Of
    several boxes, a cell sees the smallest.

    Args:
        boxes: x1, y1, x2, y2 in pixels, [n, 4].
        labels: Class indices [n].
        cells: As `make_cells`.

    Returns:
        Label, or `NOTHING`, and box of each cell, [cells, 5].
    """
    target = torch.full((len(cells), 5), NOTHING)
    anchors = ANCHOR * torch.tensor(STRIDES)
    order = box_area(boxes).argsort(descending=True)
    for box, label in zip(boxes[order], labels[order], strict=True):
        middle, side = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).prod().sqrt()
        stride = STRIDES[int((side / anchors).log().abs().argmin())]
        near = ((cells[:, :2] - middle).abs() < stride).all(1) & (cells[:, 2] == stride)
        target[near] = torch.cat((label[None].float(), box))
    return target


def detection_loss(output: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Return the loss of a batch: focal loss of objectness, CIoU loss of boxes, cross entropy.

    Each is a sum over the batch, divided by the number of cells that see an object.

    Args:
        output: [N, cells, 5 + classes]: box as in `decode`, objectness and classes as logits.
        target: [N, cells, 5], as `assign`.
        cells: As `make_cells`.
    """
    seen = target[..., 0] != NOTHING
    n = seen.sum().clamp(min=1)
    objectness = sigmoid_focal_loss(output[..., 4], seen.to(output), reduction="sum")
    boxes = complete_box_iou_loss(
        decode(output[..., :4], cells)[seen], target[..., 1:][seen], reduction="sum"
    )
    classes = F.cross_entropy(output[..., 5:][seen], target[..., 0][seen].long(), reduction="sum")
    return (objectness + 2 * boxes + classes) / n


def detect(
    output: Tensor, cells: Tensor, least: float = 0.05, overlap: float = 0.45
) -> list[dict[str, Tensor]]:
    """Return what a network sees in each image of a batch: boxes [n, 4], scores [n], labels [n].

    Args:
        output: As in `detection_loss`.
        cells: As `make_cells`.
        least: Score, objectness times probability of the class, below which a box is left out.
        overlap: Intersection over union with a better box of its class, above which a box is left
            out.
    """
    scores, labels = output[..., 5:].softmax(-1).max(-1)
    scores = scores * output[..., 4].sigmoid()
    found = []
    for box, score, label in zip(decode(output[..., :4], cells), scores, labels, strict=True):
        box, score, label = (x[score >= least] for x in (box, score, label))
        kept = batched_nms(box, score, label, overlap)
        found.append({"boxes": box[kept], "scores": score[kept], "labels": label[kept]})
    return found


def _stage(in_chans: int, channels: int, pool: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        LTCConvNode(channels),
    )


class Detector(nn.Module):
    """LTC convolutions with heads on two grids: [N, 1, H, W] → [N, cells, 5 + classes] a step.

    As in YOLOv4-tiny, the fine grid's head sees the last feature map too, upsampled. The outputs
    are leaky integrators; the prediction is that of the last step.

    Args:
        classes: Number of classes.
        width: Channels of the first stage.
    """

    prediction = "last"

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(_stage(1, width, pool=True), _stage(width, 2 * width, pool=True))
        self.deep = nn.Sequential(
            _stage(2 * width, 4 * width, pool=True), _stage(4 * width, 4 * width)
        )
        self.up = nn.Sequential(nn.Conv2d(4 * width, 2 * width, 1), nn.Upsample(scale_factor=2))
        self.necks = nn.ModuleList((_stage(4 * width, 2 * width), _stage(4 * width, 4 * width)))
        self.heads = nn.ModuleList(nn.Conv2d(n * width, 5 + classes, 1) for n in (2, 4))
        self.integrator = LeakyReadout(5 + classes)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
            nn.init.constant_(head.bias[4:5], -4.0)  # few cells see something

    def forward(self, x: Tensor) -> Tensor:
        """Do one time step: [N, 1, H, W] → [N, cells, 5 + classes]."""
        fine = self.stem(x)
        coarse = self.deep(fine)
        fine = torch.cat((fine, self.up(coarse)), 1)
        outputs = [
            head(neck(maps)).flatten(2).mT
            for maps, neck, head in zip((fine, coarse), self.necks, self.heads, strict=True)
        ]
        return self.integrator(torch.cat(outputs, 1))
