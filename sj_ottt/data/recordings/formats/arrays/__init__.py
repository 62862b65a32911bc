"""Events in files of arrays: npy, npz, mat and HDF5."""
