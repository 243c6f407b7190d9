#!/usr/bin/env python3
"""Steps of candle-transformers' models with masksub::nn, beside this crate's own models and PyTorch's, in turn.

    .ci/drop-in EMPTY_DIRECTORY                       # builds target/release/run
    python3 benches/peer/drop_in.py --rounds 5

A step is forward and backward on two threads, in a process of its own. This crate's own models leave candle's threads
idle; a source made of candle's operations has two of them. PyTorch's models are timm's (`convnext_tiny`, `efficientnet_b0`) and transformers' (`BertModel`), eager, in float32, with nothing dropped.
Prints medians, and the median of the rounds' ratios with their range: below 1 the model with masksub::nn is faster or
smaller. A row that begins with "and" is the model after one more edit: `keep` is `ops::keep_freed_memory()` first in
`main`, the others are edits of its source, those of `.ci/drop-in`.

With `--keep-memory` PyTorch's processes keep what is freed, too: `KEEP` below.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Beside whom: the crate's own model, or PyTorch's.
BESIDE = {"vit-s": "own", "resnet50": "own", "convnext-t": "torch", "efficientnet-b0": "torch", "bert-base": "torch"}
# What makes models faster besides the import, as `.ci/drop-in` calls it, each on top of the ones before it.
EDITS = {"convnext-t": ["gelu", "scale"], "efficientnet-b0": ["silu", "scale"], "bert-base": ["gelu", "attention"]}
# Freed memory is used again, by all threads, in the place of fresh memory with a page fault for every 4 KiB.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_ARENA_MAX": "1"}
STEPS = 5


def peer(name):
    """Times PyTorch's model in this process: seconds of a step, MiB of the process."""
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    if name == "bert-base":
        import transformers

        config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model, xs = transformers.BertModel(config, add_pooling_layer=False), torch.randint(30522, (8, 128))
        logits = lambda: model(input_ids=xs).last_hidden_state
    else:
        import timm

        model = timm.create_model({"convnext-t": "convnext_tiny", "efficientnet-b0": "efficientnet_b0"}[name])
        xs = torch.randn(4 if name == "convnext-t" else 8, 3, 224, 224)
        logits = lambda: model(xs)
    model.train()
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        model.zero_grad(set_to_none=True)
        logits().square().sum().backward()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([statistics.median(times[1:]), peak]))


def run(command, variables):
    environment = {**os.environ, "RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BESIDE), choices=list(BESIDE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep-memory", action="store_true", help="have PyTorch's glibc keep what is freed, too")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch, timm and transformers")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.peer:
        return peer(flags.peer)
    ours = str(ROOT / "target/release/run")
    keep = KEEP if flags.keep_memory else {}

    def measured(name, which):
        """Seconds of a step, MiB of the process."""
        if which == "torch":
            return json.loads(run([flags.python, __file__, "--peer", name], keep))
        # The crate's own kernels run on rayon's threads; a source made of candle's operations wants candle's, too.
        threads = {"CANDLE_NUM_THREADS": "1" if which == "own" else "2"}
        return [float(number) for number in run([ours, "--time", name, which], threads).split()]

    print("| model | with masksub::nn | beside | time | memory |\n|---|---:|---:|---:|---:|")
    for name in flags.models:
        candidates = ["stand-in", *(edit + "+keep" for edit in ["stand-in", *EDITS.get(name, [])])]
        rounds = [[measured(name, which) for which in [*candidates, BESIDE[name]]] for _ in range(flags.rounds)]
        middle = lambda which: [statistics.median(every[which][i] for every in rounds) for i in (0, 1)]
        beside = "{}: {:.3f} s, {:.0f} MiB".format(BESIDE[name], *middle(-1))
        for which, candidate in enumerate(candidates):
            edit = "keep" if which == 1 else candidate.removesuffix("+keep")
            cells = [name if which == 0 else f"and {edit}", "{:.3f} s, {:.0f} MiB".format(*middle(which)), beside]
            for i in (0, 1):
                ratios = [every[which][i] / every[-1][i] for every in rounds]
                cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
