#!/usr/bin/env python3
"""Times decoding and the transforms of the recipes, the crate's and torchvision's, in turn, so that what else the machine does
hits both.

    cargo bench --bench pipeline --no-run
    python3 benches/peer/compare_pipeline.py --threads 2 --rounds 5

A round is one process of each on the same images. Prints median images per second over all rounds, and the median of the
rounds' ratios (crate / torchvision: above 1 the crate is faster).
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

from compare import ROOT, run


def bench_executable():
    """The newest build of the bench."""
    found = [p for p in (ROOT / "target/release/deps").glob("pipeline-*") if not p.suffix and os.access(p, os.X_OK)]
    if not found:
        sys.exit("no bench found: run `cargo bench --bench pipeline --no-run` first")
    return str(max(found, key=lambda p: p.stat().st_mtime))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["crop", "three-augment", "rand-augment", "eval"])
    parser.add_argument("--threads", default="2")
    parser.add_argument("--iters", default="3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch, torchvision and timm")
    flags = parser.parse_args()
    crate = [bench_executable(), "--json"]
    peer = [flags.python, str(ROOT / "benches/peer/pipeline.py")]
    with tempfile.TemporaryDirectory() as scratch:
        data = str(pathlib.Path(scratch) / "images")
        run(crate + ["--data", data, "--recipe", "crop", "--iters", "1"])  # makes the images
        for recipe in flags.recipe:
            setting = ["--data", data, "--recipe", recipe, "--threads", flags.threads, "--iters", flags.iters]
            rounds = [(run(crate + setting), run(peer + setting)) for _ in range(flags.rounds)]
            ours, theirs = zip(*[(a["images_per_s"], b["images_per_s"]) for a, b in rounds])
            ratios = [a / b for a, b in zip(ours, theirs)]
            line = {
                "recipe": recipe,
                "threads": int(flags.threads),
                "crate": round(statistics.median(ours), 1),
                "torchvision": round(statistics.median(theirs), 1),
                "crate/torchvision": round(statistics.median(ratios), 2),
                "from": round(min(ratios), 2),
                "to": round(max(ratios), 2),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
