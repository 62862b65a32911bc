"""Data sets: folders of recordings, still images, published and embedded sets."""
