#!/usr/bin/env python3
"""Times this crate's steps and PyTorch's in turn, so that what else the machine does hits both.

    cargo bench --bench step --no-run
    python3 benches/peer/compare.py --model deit3-small --batch 8 --rounds 5

A round is one process of each, with `--iters` measured steps. Prints medians over all rounds, and the median of the
rounds' ratios (crate / PyTorch: below 1 the crate is faster or smaller). With `--disturb` another process keeps one
core busy every other second, for both alike.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def bench_executable():
    """The newest build of the bench."""
    found = [p for p in (ROOT / "target/release/deps").glob("step-*") if not p.suffix and os.access(p, os.X_OK)]
    runs = [p for p in found if b"Time and peak memory" in p.read_bytes() or b"peak_rss_mib" in p.read_bytes()]
    if not runs:
        sys.exit("no bench found: run `cargo bench --bench step --no-run` first")
    return str(max(runs, key=lambda p: p.stat().st_mtime))


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def disturb():
    """Keeps the last core busy every other second, for ever."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    while True:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass
        time.sleep(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit3-small")
    parser.add_argument("--batch", default="8")
    parser.add_argument("--ratio", default="0.5")
    parser.add_argument("--drop-path", default="0")
    parser.add_argument("--iters", default="5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--what", nargs="+", default=["masksub"], choices=["forward", "evaluate", "plain", "masksub"])
    parser.add_argument("--disturb", action="store_true", help="with a process that takes one core half of the time")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch")
    flags = parser.parse_args()
    crate = [bench_executable(), "--json"]
    peer = [flags.python, str(ROOT / "benches/peer/step.py")]
    if flags.disturb:
        multiprocessing.Process(target=disturb, daemon=True).start()
    for what in flags.what:
        setting = ["--model", flags.model, "--batch", flags.batch, "--ratio", flags.ratio]
        setting += ["--drop-path", flags.drop_path, "--iters", flags.iters, "--what", what]
        rounds = [(run(crate + setting), run(peer + setting)) for _ in range(flags.rounds)]
        line = {"what": what, "model": flags.model, "batch": int(flags.batch), "ratio": float(flags.ratio)}
        line["drop_path"] = float(flags.drop_path)
        line["disturbed"] = flags.disturb
        for key in ["median_s", "peak_rss_mib"]:
            ours, theirs = zip(*[(a[key], b[key]) for a, b in rounds])
            ratios = [a / b for a, b in zip(ours, theirs)]
            line[key] = {
                "crate": round(statistics.median(ours), 3),
                "pytorch": round(statistics.median(theirs), 3),
                "crate/pytorch": round(statistics.median(ratios), 3),
                "from": round(min(ratios), 3),
                "to": round(max(ratios), 3),
            }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
