#!/usr/bin/env python3
"""The time of PyTorch's random masks, `argsort` of uniform noise, for `cargo bench --bench masks -- random`.

Prints the median in milliseconds for each number of positions.
"""

import statistics
import time

import torch


def main():
    torch.set_num_threads(2)
    for positions in [49, 196, 784, 3136]:
        seconds = []
        for _ in range(60):
            start = time.perf_counter()
            torch.argsort(torch.rand(256, positions), dim=1)
            seconds.append(time.perf_counter() - start)
        print(f"{positions} positions: {statistics.median(seconds) * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
