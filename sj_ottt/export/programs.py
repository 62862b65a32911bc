"""A network as a program for ONNX Runtime or `torch.export`: one time step, or all of them."""

import copy
import io
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt import layer
from sj_ottt.errors import InputError
from sj_ottt.inference import OneStep
from sj_ottt.layer.synapse import Synapse
from sj_ottt.learning.predict import as_sequence, combine_outputs, predicts_last

__all__ = ["AllSteps", "to_onnx", "to_torch"]

_PLAIN: dict[type, type] = {layer.WSConv2d: layer.Conv2d, layer.WSLinear: layer.Linear}


class AllSteps(nn.Module):
    """All time steps of a network in evaluation, from its state before the first one.

    x_seq [T, N, ...] → what `sj_ottt.predict` returns, [N, classes].

    Args:
        model: Called once per time step; copied, without gradients.
        example: Input of one time step, [N, ...].
        steps: T.

    Raises:
        InputError: If `steps` is no number above 0, the state before the first step is drawn at
            random, or as `OneStep`.
    """

    def __init__(self, model: nn.Module, example: Tensor, steps: int):
        super().__init__()
        as_sequence(example, steps)
        self.steps = steps
        self.prediction = "last" if predicts_last(model) else "sum"
        self.one_step = OneStep(model, example)
        starts = (self.one_step.initial_states(example[:1]) for _ in range(2))
        self._starts: list[str] = []
        for name, first, again in zip(self.one_step.state_names, *starts, strict=True):
            if not torch.equal(first, again):
                raise InputError(
                    f"{name} is drawn at random before the first step, which no graph of all steps "
                    "can do: export one step, which takes the state, or start at zero"
                )
            self.register_buffer(f"start_{len(self._starts)}", first)
            self._starts.append(f"start_{len(self._starts)}")

    def forward(self, x_seq: Tensor) -> Tensor:
        """Run T time steps."""
        n = x_seq.shape[1]
        starts = (self.get_buffer(name) for name in self._starts)
        states = [start.expand(n, *start.shape[1:]) for start in starts]
        outputs = []
        for t in range(self.steps):
            output, *states = self.one_step(x_seq[t], *states)
            outputs.append(output)
        prediction: Any = combine_outputs(self, outputs)
        return prediction


def to_torch(
    model: nn.Module,
    example: Tensor,
    steps: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a network as a file of `torch.export`, for `torch.export.load`.

    Standardized weights stand in it as they are multiplied with. The batch may be of any size. The
    metadata is in the extra file "sj_ottt.json".

    Args:
        model: Called once per time step.
        example: Input of one time step, [N, ...].
        steps: T: the program maps x_seq [T, N, ...] to what `sj_ottt.predict` returns. None: it
            does one time step, (x, *states) → (output, *states), as `inference.OneStep`.
        metadata: What is to be said of the model, beside the names of the inputs and outputs.

    Raises:
        InputError: As `AllSteps` and `OneStep`.
    """
    program, said, _, _ = _program(model, example, steps)
    buffer = io.BytesIO()
    text = json.dumps({**(metadata or {}), **said}, indent=1)
    torch.export.save(program, buffer, extra_files={"sj_ottt.json": text})
    return buffer.getvalue()


def to_onnx(
    model: nn.Module,
    example: Tensor,
    steps: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a network as an ONNX file.

    The metadata stands in the file's own, each value as JSON.

    Args:
        model: Called once per time step.
        example: Input of one time step, [N, ...].
        steps: As in `to_torch`.
        metadata: As in `to_torch`.

    Raises:
        InputError: If `onnx` or `onnxscript` is not installed, or as `AllSteps` and `OneStep`.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'ONNX needs the package {error.name}: install it with pip install "sj-ottt[export]"'
        ) from error
    program, said, inputs, outputs = _program(model, example, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that the exporter keeps to itself
        made = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False
        )
    assert made is not None
    proto = made.model_proto
    for key, value in {**(metadata or {}), **said}.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    data: bytes = proto.SerializeToString()
    return data


def _program(
    model: nn.Module, example: Tensor, steps: int | None
) -> tuple[torch.export.ExportedProgram, dict[str, Any], list[str], list[str]]:
    """Return the program, what there is to say of it, and the names of its inputs and outputs."""
    # A batch of one would be taken for a constant.
    example = torch.cat((example, example)) if len(example) == 1 else example
    model = _without_standardization(model)
    batch = torch.export.Dim("batch", min=1)
    if steps is not None:
        run = AllSteps(model, example, steps)
        x_seq = example.expand(steps, *example.shape).contiguous()
        program = torch.export.export(run, (x_seq,), dynamic_shapes=({1: batch},), strict=False)
        said = {"graph": "all steps", "steps": steps, "prediction": run.prediction}
        return program, said, ["x_seq"], ["prediction"]
    one_step = OneStep(model, example)
    states = one_step.initial_states(example)
    program = torch.export.export(
        one_step,
        (example, *states),
        dynamic_shapes=({0: batch}, tuple({0: batch} for _ in states)),
        strict=False,
    )
    names = one_step.state_names
    starts = {name: _start(state) for name, state in zip(names, states, strict=True)}
    prediction = "last" if predicts_last(model) else "sum"
    said = {"graph": "one step", "prediction": prediction, "start": starts}
    return program, said, ["x", *names], ["output", *(f"{name}.next" for name in names)]


def _start(state: Tensor) -> float | str:
    """Return the number that a state is full of before the first step; "drawn" for random ones."""
    first = state.flatten()[0]
    return float(first) if bool((state == first).all()) else "drawn"


def _without_standardization(model: nn.Module) -> nn.Module:
    """Return a copy whose synapses hold the weights that they multiply with."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Synapse) and type(module) in _PLAIN:
            weight = module.make_weight()
            del module.gain
            module.__class__ = _PLAIN[type(module)]
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model
