"""Times the neighbour search against plain FAISS and scikit-learn; a script, not a test.

    python tests/benchmarks/bench_neighbors.py --repeats 7 --threads 2

Every contender runs once in each round, so that a slow moment of the machine falls on all of them.
The last column is the share of this machine's own float32 matrix product rate, measured in the same
rounds, that the 2 * n * m * dim operations of the search would need at the least.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import faiss
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from raremix.neighbors import nearest

SHAPES = [(64, 16_384, 384), (256, 65_536, 384), (1024, 20_000, 384), (4000, 20_000, 384)]
PLAIN_FAISS = "plain faiss IndexFlatL2"
PRODUCT_SIDE = 2048


def contenders(queries: Tensor, bank: Tensor, k: int) -> dict[str, Callable[[], object]]:
    """The searches to time; building an index is part of none, since peers keep theirs."""
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.numpy())
    peer = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank.numpy())
    return {
        "raremix, auto": lambda: nearest(queries, bank, k),
        "raremix, torch": lambda: nearest(queries, bank, k, engine="torch"),
        "raremix, faiss": lambda: nearest(queries, bank, k, engine="faiss"),
        PLAIN_FAISS: lambda: index.search(queries.numpy(), k),
        "scikit-learn brute": lambda: peer.kneighbors(queries.numpy()),
    }


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(n: int, m: int, dim: int, k: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, bank = (torch.randn(rows, dim, generator=generator) for rows in (n, m))
    square = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, generator=generator)
    runs: dict[str, Callable[[], object]] = contenders(queries, bank, k)
    runs["product"] = partial(torch.mm, square, square)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for work in runs.values():
        work()  # warm caches and threads
    for _ in range(repeats):
        for name, work in runs.items():
            times[name].append(seconds(work))

    rate = 2 * PRODUCT_SIDE**3 / statistics.median(times.pop("product"))
    print(f"\n{n} queries x {m} rows x {dim}, k={k}; matrix product {rate / 1e9:.0f} GFLOP/s")
    plain = statistics.median(times[PLAIN_FAISS])
    for name, taken in times.items():
        median = statistics.median(taken)
        spread = f"{min(taken) * 1e3:.0f} to {max(taken) * 1e3:.0f}"
        print(
            f"  {name:24} {median * 1e3:8.1f} ms ({spread:>14})  "
            f"{median / plain:5.2f} x plain faiss  {2 * n * m * dim / rate / median:5.0%} of product"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds to take the median of")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--shapes", type=int, nargs="*", help="which shapes, counted from 0")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    chosen = range(len(SHAPES)) if options.shapes is None else options.shapes
    for place in chosen:
        compare(*SHAPES[place], k=options.k, repeats=options.repeats)


if __name__ == "__main__":
    main()
