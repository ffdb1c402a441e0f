"""Times the neighbour search against the libraries that one would use instead; a script, not a test.

    python tests/benchmarks/bench_neighbors.py --job step self --threads 2 --out neighbors-table.md
    python tests/benchmarks/bench_neighbors.py --quick

``pip install raremix[bench]`` brings the peers. They are fitted outside the timer and run with as
many threads. Every contender runs once in each round, so that a slow moment of the machine falls on
all of them, and a ratio is the median of the ratios of the rounds. All rows have unit length, so
that Euclidean distance, cosine and inner product order them alike.

The limit is this machine's own float32 matrix product, by torch or numpy, whichever is faster in
the same rounds: the share of it says how much of that rate the 2 * n * m * dim operations of a
plain search, over the time taken, come to. A search that does less work can exceed it.
"""

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from raremix import FusedDistance, KNNDistance, OODDetector
from raremix.neighbors import FaissGpuEngine, NeighborIndex, nearest

K = 10
OURS = "raremix, prepared bank"
LEAVE_ONE_OUT = "raremix, leave_one_out"
PRODUCT_SIDE = 2048
SLOW_ROUNDS = 3
# The threads of BLAS libraries spin for some tens of milliseconds after their work, in the way of
# whoever comes next.
SETTLE_SECONDS = 0.2
# Settings that would slow down some contenders only.
HANDICAPS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_NUM_THREADS",
    "NPY_DISABLE_CPU_FEATURES",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
)


@dataclass(frozen=True)
class Contender:
    """A search to time.

    Attributes:
        name: What the table calls it.
        run: The search.
        answer: Turns what ``run`` returns into one number for each query.
        expected: The same of the true distances (n, K or more), ascending.
        is_slow: Whether it takes part in the first three rounds only.
        share: The share of the queries that it is given; its time is scaled up.
    """

    name: str
    run: Callable[[], Any]
    answer: Callable[[Any], Any]
    expected: Callable[[Tensor], Tensor] = lambda truth: truth[:, K - 1]
    is_slow: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Options:
    quick: bool
    repeats: int
    scratch: Path

    def size(self, rows: int) -> int:
        """As many rows as asked for, or few."""
        return max(rows // 20, 64) if self.quick else rows


def unit(rows: Tensor) -> Tensor:
    scaled: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return scaled


def gaussian(n: int, dim: int) -> Tensor:
    """The worst case: no structure that a search could use, all distances nearly alike."""
    return unit(torch.randn(n, dim, generator=torch.Generator().manual_seed(0)))


def long_tailed(n: int, dim: int) -> Tensor:
    """500 clusters whose sizes fall as 1 / rank, in a spectrum that falls as 1 / sqrt(rank)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(1, 501).reciprocal()
    labels = torch.multinomial(weights, n, replacement=True, generator=generator)
    spectrum = torch.arange(1, dim + 1).rsqrt()
    centres = torch.randn(500, dim, generator=generator) * spectrum * 1.5
    rows = centres[labels] + torch.randn(n, dim, generator=generator) * spectrum
    return unit(rows)


KINDS = {"Gaussian": gaussian, "long-tailed": long_tailed}


def peer(module: str) -> Any:
    """A package to compare with; None, and a line that says so, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


def peers(queries: Tensor, bank: Tensor, *, slow_share: float = 1.0) -> Iterator[Contender]:
    """Everyone else, fitted. Those built on scikit-learn may be given a share of the queries."""
    rows, shown = bank.numpy(), queries.numpy()
    flat, inner = faiss.IndexFlatL2(rows.shape[1]), faiss.IndexFlatIP(rows.shape[1])
    for index in (flat, inner):
        index.add(rows)
    yield Contender("faiss IndexFlatL2", lambda: flat.search(shown, K), _of_faiss)
    yield Contender("faiss IndexFlatIP", lambda: inner.search(shown, K), _of_products)

    few = shown[: max(1, round(slow_share * len(shown)))]
    share = len(few) / len(shown)
    from sklearn.neighbors import NearestNeighbors

    brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(rows)
    yield Contender(
        "scikit-learn NearestNeighbors",
        lambda: brute.kneighbors(few),
        lambda found: found[0][:, -1],
        is_slow=True,
        share=share,
    )
    ood = peer("pytorch_ood.detector")
    if ood is not None:
        detector = ood.KNN(None, k=K).fit_features(bank, torch.zeros(len(bank)))
        some = torch.from_numpy(few)
        yield Contender(
            "pytorch-ood KNN",
            lambda: detector.predict_features(some),
            lambda kth: kth,
            is_slow=True,
            share=share,
        )
    pyod = peer("pyod.models.knn")
    if pyod is not None:
        # Its fit also searches the whole bank for itself, which takes minutes; the index is then
        # exchanged for one of the bank.
        model = pyod.KNN(n_neighbors=K, n_jobs=-1).fit(rows[:100])
        model.neigh_.fit(rows)
        yield Contender(
            "PyOD KNN",
            lambda: model.decision_function(few),
            lambda kth: kth,
            is_slow=True,
            share=share,
        )
    cleanlab = peer("cleanlab.outlier")
    if cleanlab is not None:
        # What its fit makes for features wider than three; fit would search the bank for itself.
        knn = NearestNeighbors(n_neighbors=K, metric="cosine").fit(rows)
        outliers = cleanlab.OutOfDistribution({"knn": knn, "k": K})
        yield Contender(
            "cleanlab OutOfDistribution",
            lambda: outliers.score(features=few),
            # exp(-mean / scale), the mean over the cosine distances, which are d^2 / 2 here.
            lambda scores: -np.log(scores) * outliers.params["scaling_factor"],
            lambda truth: truth[:, :K].square().mean(dim=1) / 2,
            is_slow=True,
            share=share,
        )


def _of_faiss(found: Any) -> Any:
    return np.sqrt(np.maximum(found[0][:, -1], 0.0))


def _of_products(found: Any) -> Any:
    return np.sqrt(np.maximum(2.0 - 2.0 * found[0][:, -1], 0.0))


def ours(queries: Tensor, bank: Tensor) -> Iterator[Contender]:
    index = NeighborIndex(bank)
    index.search(queries[:1], K)  # prepares the bank
    yield Contender(OURS, lambda: index.search(queries, K), _of_ours)
    yield Contender("raremix, nearest", lambda: nearest(queries, bank, K), _of_ours)


def _of_ours(found: Any) -> Any:
    return found.distances[:, -1].cpu()


def products(dim: int) -> dict[str, Callable[[], object]]:
    """The matrix products whose rate is the limit."""
    left = torch.randn(PRODUCT_SIDE, dim)
    right = torch.randn(PRODUCT_SIDE, dim).T.contiguous()
    first, second = left.numpy(), right.numpy()
    return {"torch": lambda: torch.mm(left, right), "numpy": lambda: first @ second}


def seconds(work: Callable[[], object]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def true_distances(queries: Tensor, bank: Tensor, count: int) -> Tensor:
    """The nearest ``count`` distances of a few queries, by float64 differences."""
    parts: tuple[Tensor, ...] = torch.split(bank.cpu(), 8192)
    found = []
    for query in queries.cpu():
        squared = torch.cat([(part.double() - query.double()).square().sum(1) for part in parts])
        found.append(squared.topk(count, largest=False).values.sort().values.sqrt())
    return torch.stack(found)


def compare(
    title: str,
    contenders: list[Contender],
    options: Options,
    *,
    operations: float,
    dim: int,
    truth: Tensor,
    first: str = OURS,
) -> list[str]:
    """Time the contenders in rounds and write a table; ``truth`` is for the first queries."""
    limits = products(dim)
    taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    rates: dict[str, list[float]] = {name: [] for name in limits}
    errors: dict[str, str] = {}
    for contender in contenders:
        if not contender.is_slow:
            contender.run()  # warms caches and threads
    for turn in range(options.repeats):
        for name, work in limits.items():
            rates[name].append(2 * PRODUCT_SIDE**2 * dim / seconds(work)[0])
        for contender in contenders:
            if contender.is_slow and turn >= SLOW_ROUNDS:
                continue
            time.sleep(SETTLE_SECONDS)
            took, result = seconds(contender.run)
            taken[contender.name].append(took / contender.share)
            if contender.name not in errors:
                told = torch.as_tensor(contender.answer(result))[: len(truth)].double()
                expected = contender.expected(truth)[: len(told)]
                error = float(((told - expected) / expected).abs().max())
                if error > 1e-3:
                    raise SystemExit(f"{contender.name} found other neighbours: {told}, {expected}")
                errors[contender.name] = f"{error:.0e}"
    limit = max(statistics.median(rate) for rate in rates.values())
    lines = [
        f"### {title}",
        "",
        f"float32 product {limit / 1e9:.0f} GFLOP/s ("
        + ", ".join(f"{name} {statistics.median(r) / 1e9:.0f}" for name, r in rates.items())
        + ")",
        "",
        "| | median | rounds | times ours | of the product | largest error |",
        "|---|---|---|---|---|---|",
    ]
    for contender in contenders:
        times = taken[contender.name]
        # In the first rounds only, against ours in the same rounds.
        ratio = statistics.median(
            t / o for t, o in zip(times, taken[first][: len(times)], strict=True)
        )
        median = statistics.median(times)
        name = contender.name
        if contender.share < 1:
            name += f" (scaled up from {contender.share:.0%} of the queries)"
        lines.append(
            f"| {name} | {median * 1e3:,.1f} ms | {len(times)} | {ratio:.2f} | "
            f"{operations / median / limit:.0%} | {errors[contender.name]} |"
        )
    return [*lines, ""]


def job_bulk(options: Options) -> Iterator[str]:
    """4,000 queries, 20,000 and 50,000 rows, narrow and wide."""
    for rows in (20_000, 50_000):
        for dim in (384, 2048):
            for kind in KINDS:
                yield from search_against_peers(kind, 4000, rows, dim, options)


def job_step(options: Options) -> Iterator[str]:
    """A training step: 256 queries against a bank of 65,536 that is kept from step to step."""
    for kind in KINDS:
        yield from search_against_peers(kind, 256, 65_536, 384, options)


def search_against_peers(
    kind: str, n: int, m: int, dim: int, options: Options, slow_share: float = 1.0
) -> list[str]:
    n, m = options.size(n), options.size(m)
    rows = KINDS[kind](n + m, dim)
    queries, bank = rows[:n].clone(), rows[n:].clone()
    return compare(
        f"{n:,} queries x {m:,} rows x {dim}, k {K}, {kind}",
        [*ours(queries, bank), *peers(queries, bank, slow_share=slow_share)],
        options,
        operations=2 * n * m * dim,
        dim=dim,
        truth=true_distances(queries[:16], bank, K),
    )


def job_self(options: Options) -> Iterator[str]:
    """Leave-one-out of 50,000 rows.

    FAISS is asked for one neighbour more, since it finds the row itself. The others are asked for
    k, the row itself among them.
    """
    for kind in KINDS:
        n = options.size(50_000)
        bank = KINDS[kind](n, 384)
        rows = bank.numpy()
        index = NeighborIndex(bank)
        flat, inner = faiss.IndexFlatL2(384), faiss.IndexFlatIP(384)
        for plain in (flat, inner):
            plain.add(rows)
        own = torch.arange(n)
        alone = functools.partial(nearest, bank, bank, K, query_ids=own, bank_ids=own)
        more = (
            functools.partial(flat.search, rows, K + 1),
            functools.partial(inner.search, rows, K + 1),
        )
        contenders = [
            Contender(LEAVE_ONE_OUT, functools.partial(index.leave_one_out, K), _of_ours, _last),
            Contender("raremix, nearest with ids", alone, _of_ours, _last),
            Contender("faiss IndexFlatL2", more[0], _of_faiss, _last),
            Contender("faiss IndexFlatIP", more[1], _of_products, _last),
        ]
        others = peers(bank, bank, slow_share=0.1)  # the whole takes minutes
        contenders += [peer for peer in others if not peer.name.startswith("faiss")]
        yield from compare(
            f"leave-one-out of {n:,} x 384, k {K}, {kind}",
            contenders,
            options,
            operations=2 * n * n * 384,
            dim=384,
            truth=true_distances(bank[:16], bank, K + 1),
            first=LEAVE_ONE_OUT,
        )


def _last(truth: Tensor) -> Tensor:
    return truth[:, -1]


MAPPED_DIM = 256
MAPPED_QUERIES = 2000


def job_mapped(options: Options) -> Iterator[str]:
    """A bank of a million rows in a file: memory and throughput of processes of their own."""
    n = options.size(1_000_000)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        path = Path(folder) / "bank.npy"
        bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, MAPPED_DIM))
        for start in range(0, n, 50_000):
            stop = min(start + 50_000, n)
            generator = torch.Generator().manual_seed(start)
            bank[start:stop] = torch.randn(stop - start, MAPPED_DIM, generator=generator).numpy()
        bank.flush()
        del bank
        yield f"### {MAPPED_QUERIES:,} queries x {n:,} rows x {MAPPED_DIM} in a file, k {K}"
        yield ""
        yield (
            f"max_memory 512 MB; the file has {path.stat().st_size / 2**20:,.0f} MB. Start and peak "
            "are resident memory of the process; what lies between is what the search took."
        )
        yield ""
        yield "| | median | peak | at the start | between |"
        yield "|---|---|---|---|---|"
        runs: dict[str, list[dict[str, float]]] = {"mapped": [], "in memory": []}
        for _ in range(min(options.repeats, 3)):
            for way, found in runs.items():
                command = [sys.executable, __file__, "--child", way, str(path)]
                command += ["--threads", str(torch.get_num_threads())]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append(json.loads(done.stdout))
        for way, found in runs.items():
            median = {key: statistics.median(one[key] for one in found) for key in found[0]}
            yield (
                f"| {way} | {median['seconds']:.1f} s | {median['peak']:,.0f} MB | "
                f"{median['start']:,.0f} MB | {median['peak'] - median['start']:,.0f} MB |"
            )
        same = runs["mapped"][0]["sum"] == runs["in memory"][0]["sum"]
        yield ""
        yield f"The distances are {'the same to the bit' if same else 'NOT THE SAME'}."
        yield ""


def child(way: str, path: str) -> None:
    """Search a file and print what it took; a process of its own, so that its peak is its own."""
    queries = gaussian(MAPPED_QUERIES, MAPPED_DIM) * MAPPED_DIM**0.5
    nearest(queries[:600], queries, K)  # imports, compiles, tries engines
    bank = np.load(path, mmap_mode="r" if way == "mapped" else None)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak starts anew, from what is resident now
    start = _peak()
    took, found = seconds(lambda: nearest(queries, bank, K, max_memory=2**29))
    total = float(found.distances.double().sum())
    print(json.dumps({"seconds": took, "start": start, "peak": _peak(), "sum": total}))


def _peak() -> float:
    """The most resident memory that this process has had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count what the parent had before it started this process.
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return float(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def job_observe(options: Options) -> Iterator[str]:
    """What a detector adds to a training step, beside the forward pass of a ResNet-50 alone.

    The default score learns all anew once a bank of samples has gone by; that is timed apart and
    shared out over the steps between.
    """
    from torchvision.models import resnet50

    rows, images = options.size(65_536), 32 if options.quick else 256
    bank = long_tailed(rows, 384)
    detectors = {
        "OODDetector()": OODDetector(FusedDistance(capacity=rows)),
        f"OODDetector(KNNDistance({K}))": OODDetector(KNNDistance(K, capacity=rows)),
    }
    learning = {
        name: seconds(functools.partial(detector.scorer.update, bank, torch.arange(rows)))[0]
        for name, detector in detectors.items()
    }
    model, batch = resnet50(weights=None).eval(), torch.randn(images, 3, 224, 224)
    steps = {name: iter(range(10**6)) for name in detectors}

    def observe(name: str) -> None:
        # Revisits: the bank stays full, and every step replaces the rows of its batch.
        at = (next(steps[name]) * images) % (rows - images)
        detectors[name].observe(bank[at : at + images], torch.arange(at, at + images))

    def forward() -> None:
        with torch.no_grad():
            model(batch)

    taken: dict[str, list[float]] = {name: [] for name in (*detectors, "forward")}
    for name in detectors:
        for _ in range(2):
            observe(name)  # prepares the bank
    for _ in range(options.repeats):
        taken["forward"].append(seconds(forward)[0])
        for name in detectors:
            taken[name].append(seconds(functools.partial(observe, name))[0])
    whole = statistics.median(taken["forward"])
    yield f"### observe of {images} against {rows:,} x 384, and a ResNet-50 forward of {images}"
    yield ""
    yield "| | median of a step | learning anew, once in a bank of samples | of the forward pass, both |"
    yield "|---|---|---|---|"
    for name in detectors:
        shared = learning[name] * images / rows
        ratio = statistics.median(
            (o + shared) / f for o, f in zip(taken[name], taken["forward"], strict=True)
        )
        median = statistics.median(taken[name]) * 1e3
        yield f"| {name}.observe | {median:,.1f} ms | {learning[name]:,.1f} s | {ratio:.2%} |"
    yield f"| ResNet-50, 3 x 224 x 224, no grad | {whole * 1e3:,.1f} ms | | |"
    yield ""


def job_gpu(options: Options) -> Iterator[str]:
    """On CUDA tensors: ours, FAISS in place, and a plain product and top-k."""
    if not torch.cuda.is_available():
        yield "### GPU"
        yield ""
        yield "There is no CUDA device here: not measured."
        yield ""
        return
    for kind in KINDS:
        for n, m, dim in ((256, 65_536, 384), (4000, 50_000, 384), (4000, 50_000, 2048)):
            n, m = options.size(n), options.size(m)
            rows = KINDS[kind](n + m, dim).cuda()
            queries, bank = rows[:n].clone(), rows[n:].clone()
            plain = FaissGpuEngine()
            contenders = list(ours(queries, bank))
            contenders += [
                Contender(
                    "raremix, faiss on the GPU",
                    functools.partial(nearest, queries, bank, K, engine=FaissGpuEngine()),
                    _of_ours,
                ),
                Contender(
                    "faiss bfKnn",
                    functools.partial(plain.candidates, queries, bank, K),
                    lambda found: found[0][:, -1].clamp_min(0).sqrt().cpu(),
                ),
                Contender(
                    "torch product and top-k",
                    functools.partial(_plain_product, queries, bank),
                    lambda found: (2 - 2 * found[0][:, -1]).clamp_min(0).sqrt().cpu(),
                ),
            ]
            yield from compare(
                f"GPU: {n:,} queries x {m:,} rows x {dim}, k {K}, {kind}",
                contenders,
                options,
                operations=2 * n * m * dim,
                dim=dim,
                truth=true_distances(queries[:16], bank, K),
            )


def _plain_product(queries: Tensor, bank: Tensor) -> Any:
    return (queries @ bank.T).topk(K)


JOBS: dict[str, Callable[[Options], Iterator[str]]] = {
    "bulk": job_bulk,
    "step": job_step,
    "self": job_self,
    "mapped": job_mapped,
    "observe": job_observe,
    "gpu": job_gpu,
}


def facts(options: Options) -> Iterator[str]:
    """What was measured on what."""
    names = ("faiss-gpu", "faiss-cpu", "scikit-learn", "pytorch-ood", "pyod", "cleanlab")
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"numpy {np.__version__}"]
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    described = dict(line.split(":", 1) for line in lines if ":" in line)
    described = {key.strip(): value.strip() for key, value in described.items()}
    flags = described.get("flags", described.get("Features", "")).split()
    wide = ("avx", "fma", "amx", "f16c", "asimd", "sve", "bf16")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    yield f"- {described.get('model name', platform.processor())}, {os.cpu_count()} CPUs, "
    yield f"  {torch.get_num_threads()} threads for everyone, load {load} at the start"
    yield f"- {' '.join(flag for flag in flags if flag.startswith(wide))}"
    yield f"- {', '.join(versions)}"
    if torch.cuda.is_available():
        yield f"- {torch.cuda.get_device_name()}"
    quick = "; --quick, sizes a twentieth: a check of the script, no measurement"
    yield f"- {options.repeats} rounds{quick if options.quick else ''}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", nargs="*", choices=JOBS, default=list(JOBS))
    parser.add_argument("--repeats", type=int, default=5, help="rounds to take the median of")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--scratch", type=Path, help="folder for a file of 1 GB")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    handicaps = [name for name in HANDICAPS if name in os.environ]
    if handicaps:
        # The libraries have read them by now, so the process starts anew without them.
        print(f"restarting without {', '.join(handicaps)}", file=sys.stderr, flush=True)
        kept = {name: value for name, value in os.environ.items() if name not in handicaps}
        os.execve(sys.executable, [sys.executable, *sys.argv], kept)
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    with threadpool_limits(given.threads):
        if given.child:
            child(*given.child)
            return
        options = Options(given.quick, 2 if given.quick else given.repeats, given.scratch)
        written = []
        for line in (*facts(options), *(line for job in given.job for line in JOBS[job](options))):
            written.append(line)
        print("\n".join(written))
    if given.out is not None:
        given.out.write_text("\n".join(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
