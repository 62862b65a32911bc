"""Learning curves of finished runs as one file: ``python -m docs.pictures.collect RUNS NAME``.

RUNS is the folder that ``python -m benchmarks rules --runs RUNS`` has filled; the file is
``benchmarks/results/curves-NAME.csv``.
"""

import argparse
import csv
import json
import statistics
from pathlib import Path

from benchmarks.rules import ROWS
from docs.generated import RESULTS


def main() -> None:
    """Write the mean and the standard deviation over the seeds of each rule and epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    rows = []
    for rule in ROWS:
        slug = "".join(c if c.isalnum() else "_" for c in rule.lower())  # as benchmarks.rules
        results = sorted(args.runs.glob(f"{slug}-[0-9]*/result.json"))
        histories = [json.loads(path.read_text())["history"] for path in results]
        for epoch in zip(*histories, strict=True):
            accuracy = [100 * row["train_accuracy"] for row in epoch]
            rows.append(
                {
                    "rule": rule,
                    "epoch": epoch[0]["epoch"],
                    "accuracy": f"{statistics.mean(accuracy):.2f}",
                    "sd": f"{statistics.stdev(accuracy) if len(accuracy) > 1 else 0:.2f}",
                    "seeds": len(accuracy),
                }
            )
    path = RESULTS / f"curves-{args.name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path)


if __name__ == "__main__":
    main()
