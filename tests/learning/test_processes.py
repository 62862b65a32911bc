"""Several processes that train one network: the gradient is that of the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sj_ottt import InputError
from sj_ottt.learning.passes.processes import Processes, _buckets
from tests.forks import FORKS
from tests.learning import parallel_cases
from tests.learning.parallel_cases import CASES

pytestmark = pytest.mark.slow
SIZES = (2,)  # with 3, all of this holds too, and takes half a minute more


def in_processes(folder: Path, size: int) -> list[dict]:
    """Run all cases in so many processes; return what each has found."""
    folder.mkdir()
    started = [
        FORKS.Process(target=parallel_cases.run_all, args=(folder, rank, size))
        for rank in range(size)
    ]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(180)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return {size: in_processes(folder / str(size), size) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_several_processes_train_as_one(name, size, found):
    alone = CASES[name](0, 1)
    shared = [process[name] for process in found[size]]
    for key, expected in alone.items():
        values = [process[key] for process in shared]
        if key == "loss":  # of its own samples, each weighed by how many there are
            values = [sum(values)] * size
        for value in values:
            assert torch.equal(value, values[0]), key
            if torch.is_floating_point(expected):
                error = (value - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
                assert error < 1e-9, key
    assert shared[0].keys() == alone.keys()


def test_a_mean_of_means_is_another_gradient():
    """The control: what averaging without the shares would give for parts of 3 and 2 samples."""
    name = "ottt accumulate"
    whole = CASES[name](0, 1)["grad 0.weight"]
    halves = []
    for rank in range(2):
        net = parallel_cases.network()
        x_seq, target = parallel_cases.batch()
        mine = parallel_cases.part(rank, 2, len(target))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        parallel_cases.train_step(net, optimizer, x_seq[:, mine], target[mine])
        halves.append(net[0].weight.grad)
    assert whole.abs().max() > 1e-4  # no silent network
    net = parallel_cases.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    parallel_cases.train_step(net, optimizer, *parallel_cases.batch())
    expected = net[0].weight.grad
    error = (sum(halves) / 2 - expected).abs().max() / expected.abs().max()
    assert error > 1e-3
    weighed = (3 * halves[0] + 2 * halves[1]) / 5
    assert (weighed - expected).abs().max() / expected.abs().max() < 1e-9


@pytest.mark.parametrize("size", SIZES)
def test_what_goes_wrong_in_one_process_stops_all(size, found):
    results = [process["together"] for process in found[size]]
    for update in ("accumulate", "online"):
        said = [result[f"nan {update}"] for result in results]
        assert "the loss of time step 0 is nan" in said[1]
        assert all("a loss of another process is not finite" in s for s in said[:1] + said[2:])
        assert not any(result[f"nan {update} moved"] for result in results)
    assert [result["overflow"] for result in results] == [(32.0, True)] * size
    for key, words in (
        ("other weights", "0.weight differs between the processes: call torch.manual_seed"),
        ("lengths online", "lengths in several processes"),
        ("no sample", "no process has a sample"),
        ("inside", "0 is wrapped in DistributedDataParallel inside of the model"),
        ("sharded", "sharded by FSDP"),
        ("other T, update", "3 time steps in one process and 4 in another"),
        ("other T, backward_steps", "3 time steps in one process and 4 in another"),
    ):
        assert all(words in result[key] for result in results), (key, results[0][key])
    assert all(torch.equal(result["weights"], results[0]["weights"]) for result in results)
    assert not any(result["other T, chunk"] for result in results)  # one update, whatever T
    assert all(result["own group"] for result in results)


def test_copies_of_a_network_are_refused():
    copied = nn.DataParallel(parallel_cases.network())
    net = nn.Sequential(copied)
    x_seq, target = parallel_cases.batch()
    copied.device_ids = [0, 1]  # as where there are two GPUs
    with pytest.raises(InputError, match="0 is wrapped in DataParallel, which copies it"):
        parallel_cases.train_step(net, torch.optim.SGD(net.parameters(), 0.1), x_seq, target)


def test_one_process_has_nothing_to_add():
    alone = Processes()
    assert alone.all_and_any(True, False) == (True, False) and alone.agreed([3, 1]) == [3, 1]
    loss = torch.tensor(2.0)
    assert alone.weighed(loss) is loss


def test_buckets_keep_order_and_kind(monkeypatch):
    monkeypatch.setattr("sj_ottt.learning.passes.processes._BUCKET_BYTES", 40)
    tensors = [torch.zeros(n) for n in (3, 3, 5, 100, 1)]
    tensors += [torch.zeros(2).double(), torch.zeros(2)]
    buckets = list(_buckets(tensors))
    assert [len(bucket) for bucket in buckets] == [2, 1, 1, 1, 1, 1]
    assert [id(t) for bucket in buckets for t in bucket] == [id(t) for t in tensors]
