"""Drawings that explain, without measured data."""

from docs.pictures.style import Drawing


def idea() -> str:
    """What BPTT keeps, and what OTTT keeps."""
    d = Drawing(372)
    d.text(10, 20, "BPTT: one backward pass through all steps, all kept", anchor="start", bold=True)
    steps = ("t = 1", "t = 2", "t = 3", "…", "t = T")
    for i, name in enumerate(steps):
        x = 10 + 82 * i
        if name == "…":
            d.text(x + 34, 83, "…", size=18)
        else:
            d.box(x, 58, 66, 42, name, edge="red")
        if i:
            d.arrow((x - 15, 72), (x - 1, 72))
            d.arrow((x - 1, 88), (x - 15, 88), ink="red", dashed=True)
    d.arrow((371, 130), (371, 102), ink="red", dashed=True)
    d.text(371, 146, "loss", ink="red")
    d.text(10, 146, "memory grows with T", anchor="start", ink="red")

    d.text(10, 196, "OTTT: a gradient at each step, one step kept", anchor="start", bold=True)
    for i, name in enumerate(steps):
        x = 10 + 82 * i
        if name == "…":
            d.text(x + 34, 259, "…", size=18)
        elif name == "t = T":
            d.box(x, 234, 66, 42, name, edge="blue")
        else:
            d.box(x, 234, 66, 42, name, edge="soft", dashed=True)
        if i:
            d.arrow((x - 15, 255), (x - 1, 255))
        if name != "…":
            d.arrow((x + 33, 306), (x + 33, 278), ink="blue", dashed=True)
            d.text(x + 33, 322, "loss", ink="blue")
    d.text(215, 226, "the membrane and a trace of past spikes go on", ink="soft")
    d.text(10, 354, "memory does not grow with T", anchor="start", ink="blue")
    return d.svg()


def step() -> str:
    """The data flow of one time step."""
    d = Drawing(430)
    d.text(10, 20, "forward", anchor="start", bold=True)
    d.box(10, 36, 106, 44, "spikes s[t]", "from below", size=12)
    d.box(157, 36, 106, 44, "weights W", "I = W s", size=12)
    d.box(304, 36, 106, 44, "membrane", "u = λv + I", size=12)
    d.arrow((116, 58), (155, 58))
    d.arrow((263, 58), (302, 58))
    d.box(304, 118, 106, 44, "spike", "u ≥ V_th", size=12)
    d.arrow((357, 80), (357, 116))
    d.arrow((357, 162), (357, 192))
    d.text(348, 208, "to the next layer", size=12, ink="soft")
    d.box(10, 118, 106, 44, "trace â[t] =", "λâ[t−1] + s[t]", size=11.5, edge="green")
    d.arrow((63, 80), (63, 116), ink="green")
    d.text(124, 137, "kept for the", size=12, anchor="start", ink="green")
    d.text(124, 153, "next time step", size=12, anchor="start", ink="green")

    d.text(10, 246, "backward, in the same step", anchor="start", bold=True)
    d.box(304, 262, 106, 44, "gradient of the", "step's loss", size=12, edge="red")
    d.box(
        296,
        346,
        118,
        58,
        "g_u[t] = error ×",
        "surrogate σ′",
        "(at u − V_th)",
        size=11.5,
        edge="red",
    )
    d.arrow((357, 306), (357, 344), ink="red")
    d.box(130, 346, 130, 58, "weight gradient", "∇W = g_u[t] â[t]ᵀ", size=12, edge="red")
    d.arrow((296, 375), (262, 375), ink="red")
    d.box(10, 346, 86, 58, "trace", "â[t]", size=12, edge="green")
    d.arrow((96, 375), (128, 375), ink="green")
    d.box(130, 262, 130, 44, "to the layer below", "Wᵀ g_u[t]", size=12, edge="red")
    d.arrow((296, 360), (280, 360), (280, 284), (262, 284), ink="red")
    return d.svg()


def road() -> str:
    """From a camera's files to labels."""
    d = Drawing(250)
    boxes = (
        ("camera files", "RAW, AEDAT, …"),
        ("samples", "data slice"),
        ("frames", "[T, 2, H, W]"),
        ("network", "train"),
        ("labels", "predict"),
        ("new scene", "adapt"),
    )
    places = ((10, 40), (157, 40), (304, 40), (304, 150), (157, 150), (10, 150))
    for (x, y), (name, how) in zip(places, boxes, strict=True):
        d.box(x, y, 106, 52, name, how, size=12)
    d.arrow((116, 66), (155, 66))
    d.arrow((263, 66), (302, 66))
    d.arrow((357, 92), (357, 148))
    d.arrow((304, 176), (265, 176))
    d.arrow((157, 176), (118, 176))
    d.text(210, 24, "a table of labels says what is to be seen when", size=12, ink="soft")
    d.text(210, 232, "adapt learns on from a few labelled recordings", size=12, ink="soft")
    return d.svg()
