"""File formats of event recordings, one module each: what the bytes mean.

Each ``sniff`` says whether a file's first bytes are of its format. Each ``stream`` takes a path and
`ReadOptions` and returns a `Source`, whose events come block by block. It raises `InputError` where
the file is of a kind that it does not read or, on the way, where it is damaged. The module
`sj_ottt.data.recordings.readers` chooses among them.
"""
