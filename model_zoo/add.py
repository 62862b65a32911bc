"""Put the best model of a run into the zoo: weights, a row of the manifest, and the card.

    python model_zoo/add.py RUN --tag TAG --commit HASH --about TEXT --recipe FILE

The card's results are read from the run's result.json. Its words on the neuron, the input and the
origin of the recordings are fixed, and fit the recipe fashion_events: mend them for another.
"""

import argparse
import hashlib
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save

import sj_ottt  # registers the models in timm  # noqa: F401

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


def main() -> None:
    """Write the weights, the row of the manifest and the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--tag", required=True, help="the weights' tag, as in timm")
    parser.add_argument("--commit", required=True, help="commit that the run was made on")
    parser.add_argument("--about", required=True, help="what the model was trained on, a sentence")
    parser.add_argument("--recipe", required=True, help="recipe file of the run, in the project")
    args = parser.parse_args()

    result = json.loads((args.run / "result.json").read_text())
    config = result["config"]
    arch = config["model"].partition(".")[0]
    name = f"{arch}.{args.tag}"
    classes = list(result["data"]["samples_per_class"])
    # Saved anew: a run's own metadata holds paths of the machine that it ran on.
    data = save(load_file(args.run / "best.safetensors"), metadata={"format": "pt", "name": name})
    sha256 = hashlib.sha256(data).hexdigest()
    height, width = result["data"]["frame_size"]
    features = (
        timm.create_model(arch, in_chans=2)
        .eval()
        .forward_features(torch.zeros(1, 2, height, width))
    )
    (ZOO / f"{name}.safetensors").write_bytes(data)

    file = ZOO / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest[name] = {
        "file": f"{name}.safetensors",
        "sha256": sha256,
        "test_accuracy": result["test_accuracy"],
        "cfg": {
            "input_size": [2, height, width],
            "pool_size": list(features.shape[-2:]),
            "num_classes": len(classes),
            "label_names": classes,
            "mean": [0.0, 0.0],
            "std": [1.0, 1.0],
            "crop_pct": 1.0,
            "license": "apache-2.0",
        },
    }
    file.write_text(json.dumps(manifest, indent=2) + "\n")
    (ZOO / f"{name}.md").write_text(
        CARD.format(
            name=name,
            arch=arch,
            about=args.about,
            parameters=result["parameters"],
            height=height,
            width=width,
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


if __name__ == "__main__":
    main()
