"""The detection example: which cell sees what, what boxes mean, the loss, the score, the script."""

import json
import math
import sys
from functools import partial

import detector
import fptt_detect
import numpy as np
import pytest
import scenes
import torch
from detector import ANCHOR, assign, decode, detect, detection_loss, make_cells
from torch import nn

from sj_ottt import InputError
from sj_ottt.learning import FPTT, train_step
from sj_ottt.run import checkpoint

CELLS = make_cells(32, 32)  # 64 of 4 pixels, then 16 of 8


def outputs(target, classes=5):
    """What a network would have to say for these targets, sure of everything."""
    output = torch.zeros(*target.shape[:-1], 5 + classes)
    seen = target[..., 0] >= 0
    output[..., 4] = torch.where(seen, 20.0, -20.0)
    middle, sides = (target[..., 1:3] + target[..., 3:]) / 2, target[..., 3:] - target[..., 1:3]
    stride = CELLS[:, 2:]
    output[..., :2] = torch.logit((middle - CELLS[:, :2]) / (3 * stride) + 0.5)
    output[..., 2:4] = (sides / (ANCHOR * stride)).log()
    output[~seen] = torch.tensor([0.0] * 4 + [-20.0] + [0.0] * classes)
    for index in seen.nonzero().tolist():
        output[(*index, 5 + int(target[(*index, 0)]))] = 40
    return output


@pytest.fixture(scope="module")
def items():
    return scenes.load_items("train")


def test_cells_cover_the_image_row_by_row():
    cells = make_cells(16, 24)
    assert cells.shape == (4 * 6 + 2 * 3, 3)
    assert cells[[0, 1, 6, 23, 24, 29]].tolist() == [
        [2, 2, 4], [6, 2, 4], [2, 6, 4], [22, 14, 4], [4, 4, 8], [20, 12, 8],
    ]  # fmt: skip


def test_boxes_go_to_the_grid_of_their_size_and_the_cells_around_their_middle():
    boxes = torch.tensor([[5.0, 7, 17, 19], [1, 2, 25, 30]])  # middles (11, 13) and (13, 16)
    target = assign(boxes, torch.tensor([3, 1]), CELLS)
    seen = (target[:, 0] >= 0).nonzero().flatten()
    assert CELLS[seen].tolist() == [
        [10, 10, 4], [14, 10, 4], [10, 14, 4], [14, 14, 4],
        [12, 12, 8], [20, 12, 8], [12, 20, 8], [20, 20, 8],
    ]  # fmt: skip
    assert target[seen].tolist() == [[3, 5, 7, 17, 19]] * 4 + [[1, 1, 2, 25, 30]] * 4
    assert (target[target[:, 0] < 0] == detector.NOTHING).all()
    # The anchors are 12 and 24 pixels, the middle of their logarithms is 16.97.
    for side, stride in ((16.9, 4), (17.1, 8)):
        target = assign(torch.tensor([[0, 0, side, side]]), torch.tensor([0]), CELLS)
        assert set(CELLS[target[:, 0] == 0, 2].tolist()) == {stride}


def test_a_cell_sees_the_smallest_of_several_boxes():
    boxes = torch.tensor([[6.0, 6, 16, 16], [4.0, 4, 18, 18]])
    for order in ([0, 1], [1, 0]):
        target = assign(boxes[order], torch.tensor([0, 1])[order], CELLS)
        assert set(target[:, 0].tolist()) == {detector.NOTHING, 0}
    assert set(assign(boxes[:0], torch.zeros(0), CELLS).flatten().tolist()) == {detector.NOTHING}


def test_decode_by_hand():
    raw = torch.zeros(len(CELLS), 4)
    raw[0] = torch.tensor([math.log(3), -math.log(3), math.log(2), math.log(0.5)])  # σ: 3/4, 1/4
    boxes = decode(raw, CELLS)
    # Cell 0, middle (2, 2): moved by 12 (± 1/4) pixels, twice and half of 12 pixels.
    torch.testing.assert_close(boxes[0], torch.tensor([5.0 - 12, -1 - 3, 5 + 12, -1 + 3]))
    assert boxes[1].tolist() == [0, -4, 12, 8]  # middle (6, 2), 12 pixels
    assert boxes[-1].tolist() == [16, 16, 40, 40]  # middle (28, 28), 24 pixels
    far = decode(torch.full((1, len(CELLS), 4), 1e4), CELLS)
    assert far.isfinite().all() and far.shape == (1, len(CELLS), 4)


def test_what_decodes_to_the_targets_has_no_loss_and_finds_every_object_once():
    boxes = torch.tensor([[5.0, 7, 17, 19], [18, 3, 29, 15], [1, 2, 25, 30]])
    labels = torch.tensor([3, 3, 1])
    target = assign(boxes, labels, CELLS)[None]
    output = outputs(target)
    seen = target[..., 0] >= 0
    torch.testing.assert_close(decode(output[..., :4], CELLS)[seen], target[..., 1:][seen])
    assert detection_loss(output, target, CELLS).item() == pytest.approx(0, abs=1e-4)
    (found,) = detect(output, CELLS)
    order = found["boxes"][:, 0].argsort()
    torch.testing.assert_close(found["boxes"][order], boxes[[2, 0, 1]])
    assert found["labels"][order].tolist() == [1, 3, 3] and (found["scores"] > 0.999).all()
    output[..., 4] = -4.0  # a score of 0.018
    assert len(detect(output, CELLS)[0]["boxes"]) == 0
    assert len(detect(output, CELLS, least=0.001, overlap=1.0)[0]["boxes"]) == len(CELLS)


def test_loss_of_a_network_that_says_nothing_by_hand():
    """Zeros: objectness 1/2, equal classes, and each cell's box is its anchor."""
    target = assign(torch.tensor([[8.0, 8, 20, 20]]), torch.tensor([2]), CELLS)[None]
    (seen,) = (target[0, :, 0] >= 0).nonzero().flatten().tolist()
    assert CELLS[seen].tolist() == [14, 14, 4]  # its neighbours' middles are a whole cell away
    output = torch.zeros(1, len(CELLS), 10)
    objectness = (0.25 + 0.75 * (len(CELLS) - 1)) * 0.5**2 * math.log(2)
    expected = objectness + math.log(5)
    assert detection_loss(output, target, CELLS).item() == pytest.approx(expected)
    output[0, seen, 2:4] = math.log(2)  # four times the area: IoU 1/4
    assert detection_loss(output, target, CELLS).item() == pytest.approx(expected + 2 * 0.75)
    # An empty scene beside it adds its cells, but none that the loss is divided by.
    empty = torch.full_like(target, detector.NOTHING)
    alone = 0.75 * len(CELLS) * 0.5**2 * math.log(2)
    assert detection_loss(torch.zeros_like(output), empty, CELLS).item() == pytest.approx(alone)
    both = torch.cat((output, torch.zeros_like(output))), torch.cat((target, empty))
    assert detection_loss(*both, CELLS).item() == pytest.approx(expected + 2 * 0.75 + alone)


def test_average_precision_of_perfect_and_of_shifted_boxes():
    pytest.importorskip("torchmetrics", reason="needs the extra detect")
    metric = fptt_detect.make_metric()
    boxes = torch.tensor([[5.0, 7, 17, 19], [1, 2, 25, 30]])
    scene = scenes.Scene(torch.zeros(1, 32, 32), boxes, torch.tensor([3, 1]))
    found = detect(outputs(assign(boxes, scene.labels, CELLS)[None]), CELLS)
    perfect = fptt_detect.average_precision(metric, found, [scene])
    assert perfect == (1.0, {1: 1.0, 3: 1.0})
    shifted = [{**found[0], "boxes": found[0]["boxes"] + 12}]
    assert fptt_detect.average_precision(metric, shifted, [scene]) == (0.0, {1: 0.0, 3: 0.0})
    one = [{key: value[found[0]["labels"] == 3] for key, value in found[0].items()}]
    assert fptt_detect.average_precision(metric, one, [scene]) == (0.5, {1: 0.0, 3: 1.0})


def test_score_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    with pytest.raises(InputError, match=r"sj-ottt\[detect\]"):
        fptt_detect.make_metric()


@pytest.mark.slow
def test_network_learns_a_scene(items):
    """Every parameter takes part, and some neurons fire but not all."""
    torch.manual_seed(0)
    drawn = [scenes.draw_scene(items, np.random.default_rng(seed)) for seed in (0, 1)]
    images, target = fptt_detect.stack(drawn)
    model = detector.Detector(10, width=4)
    model(images)
    output = model(images)
    assert output.shape == (2, 16 * 16 + 8 * 8, 15)
    output.square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.norm() > 0, name
    for module in model.modules():
        if isinstance(module, detector.LTCConvNode):
            assert 0.01 < module.spike.mean() < 0.99
    loss_fn = partial(detection_loss, cells=fptt_detect.CELLS)
    fptt = FPTT(torch.optim.Adam(model.parameters(), 0.01), alpha=0.1)
    losses = [
        train_step(model, fptt, images, target, loss_fn=loss_fn, steps=3)[0].item()
        for _ in range(30)
    ]
    assert losses[-1] < 0.6 * losses[0], losses


def test_outputs_come_in_the_order_of_the_cells():
    class Place(nn.Module):
        def forward(self, maps):
            height, width = maps.shape[-2:]
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            return torch.stack((x, y, torch.full_like(x, 48 // width)))[None].float()

    model = detector.Detector(10, width=2)
    model.heads, model.integrator = nn.ModuleList((Place(), Place())), nn.Identity()
    (place,) = model(torch.rand(1, 1, 32, 48))
    cells = make_cells(32, 48)
    torch.testing.assert_close(place[:, :2] * cells[:, 2:] + cells[:, 2:] / 2, cells[:, :2])
    assert torch.equal(place[:, 2], cells[:, 2])


def test_scenes_hold_what_they_say(items):
    held_out = scenes.load_items("test")
    assert sum(map(len, items.images + held_out.images)) == 1797
    assert items.classes == held_out.classes == tuple("0123456789")
    seen, counts = set(), set()
    for seed in range(40):
        scene = scenes.draw_scene(items, np.random.default_rng(seed))
        assert scene.image.shape == (1, 64, 64) and 0 <= scene.image.min() < scene.image.max() <= 1
        assert len(scene.boxes) == len(scene.labels) >= 1
        assert (scene.boxes[:, :2] >= 0).all() and (scene.boxes[:, 2:] <= 64).all()
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (sides >= 4).all() and (sides.amax(1) >= 13).all() and (sides <= 30).all()
        for x, y, right, bottom in scene.boxes.int().tolist():  # ink is brighter than clutter
            assert scene.image[0, y:bottom, x:right].max() > 0.6
        seen |= set(scene.labels.tolist())
        counts.add(len(scene.labels))
        if len(scene.boxes) > 1:
            overlap = scenes.box_iou(scene.boxes, scene.boxes).fill_diagonal_(0)
            assert overlap.max() <= 0.02
    assert seen == set(range(10)) and counts == {1, 2, 3, 4}
    again = scenes.draw_scene(items, np.random.default_rng(39))
    assert all(torch.equal(a, b) for a, b in zip(scene, again, strict=True))


def pack(path, colour=(), labels=(0, 1, 0)):
    """Two classes: a bright square, and a bar in the middle."""
    images = np.zeros((3, 12, 12, *colour), np.uint8)
    images[::2, 2:10, 2:10] = 250
    images[1, 1:11, 4:7] = 250
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images, np.array(labels, np.uint8)
    np.savez(path, **arrays, class_names=np.array(["square", "bar"]))
    return path


def test_packed_images_come_after_the_digits_and_without_their_borders(tmp_path):
    items = scenes.load_items("test", pack(tmp_path / "items.npz"))
    assert items.classes == (*"0123456789", "square", "bar")
    assert [len(images) for images in items.images[-2:]] == [2, 1]
    assert items.images[10][1].shape == (8, 8) and items.images[11][0].shape == (10, 3)
    assert items.images[11][0].unique().tolist() == [pytest.approx(250 / 255)]
    for wrong, kwargs in (
        ("colour", {"colour": (3,)}),
        ("no test image of class bar", {"labels": (0, 0, 0)}),
    ):
        with pytest.raises(InputError, match=wrong):
            scenes.load_items("test", pack(tmp_path / "wrong.npz", **kwargs))
    with pytest.raises(InputError, match=r"none\.npz"):
        scenes.load_items("test", tmp_path / "none.npz")


@pytest.mark.slow
def test_script_resumes_where_it_stopped(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torchmetrics", reason="needs the extra detect")

    def find(name, *args):
        given = (
            "--width", 2, "--batch-size", 2, "--steps", 3, "--parts", 2, "--every", 2,
            "--batches", 4, "--test-scenes", 3, "--out", tmp_path / name, *args,
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["fptt_detect.py", *map(str, given)])
        fptt_detect.main()

    def save_and_stop(out, state):
        checkpoint.save_checkpoint(out, state)
        raise KeyboardInterrupt

    find("whole")
    assert "mAP@.5 0.0" in capsys.readouterr().out
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fptt_detect, "save_checkpoint", save_and_stop)
        find("halves")
    find("halves", "--resume")
    results = []
    for name in ("whole", "halves"):
        assert (tmp_path / name / "boxes.png").read_bytes()[:4] == b"\x89PNG"
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
        assert results[-1].pop("cpu_seconds") > 0
    assert results[0] == results[1] and results[0]["parts"] == 2
    assert [row["batch"] for row in results[0]["history"]] == [2, 4]
    states = [checkpoint.load_checkpoint(tmp_path / name)["model"] for name in ("whole", "halves")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    packed = pack(tmp_path / "items.npz")
    for args, words in (
        (["whole"], "holds a run"),
        (["whole", "--resume", "--lr", 1], "was started with"),
        (["whole", "--resume", "--images", packed], "was started with"),
        (["none", "--resume"], "nothing to resume"),
        (["none", "--batches", 0], "--batches must be at least 1"),
        (["none", "--lr", 0], "--lr must be above 0"),
        (["none", "--parts", 4], "x_seq has 3 time steps"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            find(*args)
        assert words in capsys.readouterr().err


def test_picture_tells_right_from_wrong():
    boxes = torch.tensor([[5.0, 7, 17, 19], [30.0, 7, 50, 30]])
    scene = scenes.Scene(torch.zeros(1, 64, 64), boxes, torch.tensor([0, 1]))
    found = {
        "boxes": torch.cat((boxes, boxes + 1)),
        "scores": torch.tensor([0.9, 0.9, 0.5, 0.1]),
        "labels": torch.tensor([0, 0, 1, 0]),
    }
    figure = fptt_detect.picture([found], [scene], ("a", "b"))
    texts = [(t.get_text(), t.get_bbox_patch().get_facecolor()) for t in figure.axes[0].texts]
    assert [text for text, _ in texts] == ["a 0.90", "a 0.90", "b 0.50"]
    assert texts[0][1] != texts[1][1] == texts[2][1]
