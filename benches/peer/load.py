"""Time and peak memory of making a ViT from a checkpoint, beside PyTorch's torch.load and load_state_dict.

    python benches/peer/load.py --models large huge --endings pth safetensors --rounds 5 --directory /tmp

Writes the files, of random weights, where they are not there yet. Both run in processes of their own, in turn; what
PyTorch's model costs by itself is not counted: it is made before, and on the memory of its weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SIZES = {"base": "vit_base_patch16_224", "large": "vit_large_patch16_224", "huge": "vit_huge_patch14_224"}


def write(path, model):
    import timm
    import torch
    from safetensors.torch import save_file

    state = timm.create_model(SIZES[model], num_classes=1000).state_dict()
    if path.endswith(".pth"):
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"format": "pt"})


def peer(path, model):
    import resource

    import timm
    import torch
    from safetensors.torch import load_file

    model = timm.create_model(SIZES[model], num_classes=1000)
    start = time.perf_counter()
    state = torch.load(path) if path.endswith(".pth") else load_file(path)
    model.load_state_dict(state)
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "file_bytes": os.path.getsize(path)}))


def run(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["large", "huge"])
    parser.add_argument("--endings", nargs="+", choices=["pth", "safetensors"], default=["pth", "safetensors"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=".")
    parser.add_argument("--peer", nargs=2, metavar=("FILE", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--bench", nargs="+", default=["cargo", "bench", "-q", "--bench", "load", "--"])
    flags = parser.parse_args()
    if flags.peer:
        return peer(*flags.peer)
    for model in flags.models:
        for ending in flags.endings:
            path = os.path.join(flags.directory, f"{SIZES[model]}.{ending}")
            if not os.path.exists(path):
                write(path, model)
            ours, theirs = [], []
            for _ in range(flags.rounds):
                ours.append(run([*flags.bench, "--file", path, "--model", f"mae-{model}"]))
                theirs.append(run([sys.executable, __file__, "--peer", path, model]))
            ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(ours, theirs))
            file = ours[0]["file_bytes"]
            median = lambda runs, key: statistics.median(run[key] for run in runs)  # noqa: E731
            memory = [median(runs, "peak_bytes") / file for runs in (ours, theirs)]
            print(
                f"{SIZES[model]}.{ending}: {median(ours, 'seconds'):.2f} s beside {median(theirs, 'seconds'):.2f} s, "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
                f"peak memory {memory[0]:.2f} of the file's {file >> 20} MiB beside {memory[1]:.2f}"
            )


if __name__ == "__main__":
    main()
