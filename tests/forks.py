"""Processes forked from a server that has the imports done: one more costs no start of PyTorch."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
# Python has one server, which takes the last list it is given: this one is for all tests.
FORKS.set_forkserver_preload(
    [
        "h5py",
        "hdf5plugin",
        "lz4.frame",
        "matplotlib.pyplot",
        "pytest",
        "scipy.io",
        "sj_ottt.cli.main",
        "sj_ottt.plots",
        "tests.helpers",
        "torch.utils.tensorboard",
        "zstandard",
    ]
)
