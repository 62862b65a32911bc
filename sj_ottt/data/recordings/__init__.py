"""Recordings: files of event cameras read, found, labelled and cut into windows."""
