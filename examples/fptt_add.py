"""Learn to add two marked numbers of a long sequence, by FPTT or BPTT, with LTC neurons.

    python examples/fptt_add.py --steps 200 --out runs/add200
    python examples/fptt_add.py --steps 1000 --batches 600 --out runs/add1000
    python examples/fptt_add.py --out runs/add1000 --resume [--beside runs/another]

Each step shows a number from U(0, 1) and a marker, which is set once in each half of the sequence;
the target is the sum of the two marked numbers. Always answering 1 has a mean squared error of
1/6. A run leaves result.json, curve.png and the checkpoint last.pt in --out. The authors of FPTT
train 10,000 batches with --alpha 0.5 --parts 10, --lr 1e-3 at T = 200 and 3e-3 at T = 1000. Look at
the firing rate: the readout sees membranes, which can do without spikes.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from resuming import parse_args
from torch import Tensor, nn
from tqdm import tqdm

from sj_ottt._files import atomic_write
from sj_ottt.analysis import firing_rates
from sj_ottt.errors import InputError
from sj_ottt.learning import FPTT, predict, reset_state, train_step
from sj_ottt.neuron import ASRRecurrent, LTCRecurrent
from sj_ottt.run.checkpoint import load_checkpoint, save_checkpoint

NEURONS = {"ltc": LTCRecurrent, "asr": ASRRecurrent}
TEST_SEED = 2**40  # above those of the training batches
NOT_IN_RESULT = ("out", "resume", "beside")
FREE_ON_RESUME = ("every", *NOT_IN_RESULT)


class AddNet(nn.Module):
    """A recurrent layer that starts at rest, its membrane read out: [N, 2] → [N, 1] a step."""

    prediction = "last"

    def __init__(self, neuron: str, hidden: int) -> None:
        super().__init__()
        self.layer = NEURONS[neuron](2, hidden, start="zero")
        self.readout = nn.Linear(hidden, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Do one time step: [N, 2] → [N, 1]."""
        self.layer(x)
        return self.readout(self.layer.v)


def draw(steps: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n sequences [T, n, 2] and their targets [n]."""
    rng = torch.Generator().manual_seed(seed)
    numbers, markers = torch.rand(steps, n, generator=rng), torch.zeros(steps, n)
    half = steps // 2
    for low, high in ((0, half), (half, steps)):
        markers[torch.randint(low, high, (n,), generator=rng), torch.arange(n)] = 1
    return torch.stack((numbers, markers), 2), (numbers * markers).sum(0)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of outputs [N, 1] against targets [N]."""
    return F.mse_loss(output.squeeze(1), target)


def bptt_step(model: nn.Module, optimizer: torch.optim.Optimizer, x_seq: Tensor, y: Tensor) -> None:
    """Train on a batch with the gradient of the last output's loss through all steps.

    Args:
        model: The network.
        optimizer: Of its parameters.
        x_seq: [T, N, 2].
        y: Targets [N].

    Raises:
        InputError: The loss is not finite.
    """
    reset_state(model)
    optimizer.zero_grad()
    for x in x_seq:
        output = model(x)
    loss = squared_error(output, y)
    if not loss.isfinite():
        raise InputError(f"the loss is {loss.item()}: lower --lr")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    reset_state(model)


def write_result(args: argparse.Namespace, history: list[dict], seconds: float) -> None:
    """Write result.json."""
    result = {
        **{name: value for name, value in vars(args).items() if name not in NOT_IN_RESULT},
        "mse": history[-1]["mse"],
        "best_mse": min(row["mse"] for row in history),
        "firing_rate": history[-1]["firing_rate"],
        "seconds": round(seconds, 3),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "history": history,
    }
    with atomic_write(args.out / "result.json") as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())


def draw_curve(args: argparse.Namespace, history: list[dict]) -> None:
    """Write curve.png: the errors of the run, and of those of --beside."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    batches = [row["batch"] for row in history]
    axes.plot(batches, [row["mse"] for row in history], label=f"{args.neuron}, {args.rule}")
    for folder in args.beside:
        other = json.loads((folder / "result.json").read_text())
        batches = [row["batch"] for row in other["history"]]
        mse = [row["mse"] for row in other["history"]]
        axes.plot(batches, mse, label=f"{other['neuron']}, {other['rule']}")
    axes.axhline(1 / 6, color="grey", linestyle="--", label="always answering 1")
    axes.set(xlabel="batches", ylabel="mean squared error", yscale="log")
    axes.set_title(f"add task, T = {args.steps}", fontsize="medium")
    axes.legend(frameon=False)
    with atomic_write(args.out / "curve.png") as file:
        figure.savefig(file, format="png", dpi=120)


def run(args: argparse.Namespace) -> None:
    """Train, test every --every batches, and write what came of it.

    Raises:
        InputError: --out holds another run, or none to resume.
    """
    torch.manual_seed(args.seed)
    model = AddNet(args.neuron, args.hidden)
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    trainer = optimizer
    if args.rule == "fptt":
        trainer = FPTT(optimizer, alpha=args.alpha, parts=args.parts)
    first, seconds, history = 0, 0.0, []
    options = {k: v for k, v in vars(args).items() if k not in FREE_ON_RESUME}
    if args.resume:
        state = load_checkpoint(args.out)
        model.load_state_dict(state["model"])
        trainer.load_state_dict(state["trainer"])
        first, seconds, history = state["batch"], state["seconds"], state["history"]
    elif (args.out / "last.pt").exists():
        raise InputError(f"{args.out} holds a run: continue it with --resume, or choose --out")

    x_test, y_test = draw(args.steps, 1000, TEST_SEED)
    start = time.perf_counter() - seconds
    with tqdm(total=args.batches, initial=first, unit="batch", dynamic_ncols=True) as bar:
        for batch in range(first, args.batches):
            # Constant for two fifths of the run, then falling to 0 in a straight line.
            left = min(1.0, (1 - batch / args.batches) / 0.6)
            optimizer.param_groups[0]["lr"] = args.lr * left
            x_seq, target = draw(args.steps, args.batch_size, args.seed * 10**6 + batch)
            if args.rule == "fptt":
                train_step(model, trainer, x_seq, target, loss_fn=squared_error)
            else:
                bptt_step(model, optimizer, x_seq, target)
            bar.update()
            if (batch + 1) % args.every == 0 or batch + 1 == args.batches:
                # The weights themselves are tested here, not their averages, as in the reference.
                mse = squared_error(predict(model, x_test), y_test).item()
                rate = firing_rates(model, x_test[:, :100])["mean"]
                history.append({"batch": batch + 1, "mse": mse, "firing_rate": rate})
                bar.set_postfix(mse=f"{mse:.4f}", rate=f"{rate:.4f}")
                seconds = time.perf_counter() - start
                state = {"model": model.state_dict(), "trainer": trainer.state_dict()}
                state |= {"batch": batch + 1, "seconds": seconds, "history": history}
                save_checkpoint(args.out, {**state, "options": options})
                write_result(args, history, seconds)
                draw_curve(args, history)
    draw_curve(args, history)  # of a finished run too, for other runs beside it
    print(f"mean squared error {history[-1]['mse']:.4f} after {args.batches} batches: {args.out}")


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Complete the arguments, or end with what is wrong with them."""
    if args.steps < 2:
        parser.error("--steps must be at least 2: one marker in each half")
    for name in ("batches", "batch_size", "hidden", "every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < args.lr < float("inf") or not 0 <= args.seed < 10**6:
        parser.error("--lr must be a number above 0, and --seed from 0 to 999999")
    for folder in args.beside:
        try:
            json.loads((folder / "result.json").read_text())["history"][0]["mse"]
        except (OSError, ValueError, LookupError):
            parser.error(f"--beside {folder}: holds no result of this program")
    if args.rule == "bptt" and args.parts is not None:
        parser.error("--parts does not go with --rule bptt: leave it out")
    if args.rule == "fptt" and args.parts is None:
        args.parts = max(1, args.steps // 20)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="length of the sequences, T")
    parser.add_argument("--batches", type=int, default=3000, help="of fresh sequences")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rule", choices=("fptt", "bptt"), default="fptt")
    parser.add_argument("--parts", type=int, help="of fptt; default: 20 steps a part")
    parser.add_argument("--alpha", type=float, default=0.1, help="of fptt; the authors: 0.5")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest")
    parser.add_argument("--neuron", choices=NEURONS, default="ltc")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="batches between two tests")
    parser.add_argument("--out", type=Path, default=Path("runs/fptt_add"))
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="other runs, for the picture"
    )
    try:
        args = parse_args(parser, FREE_ON_RESUME)
        check(args, parser)
        run(args)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
