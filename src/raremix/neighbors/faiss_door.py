"""The only place that imports FAISS, and what to tell a user when that goes wrong.

FAISS wheels of several kinds provide the same module, so an import can fail in more ways than
ImportError, or succeed as an empty leftover folder.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

# FAISS must not meet a forked loader worker before torch has set up its threads: it hangs there.
import torch.utils.data

from raremix.errors import EngineUnavailableError

__all__ = ["installed_builds", "load_faiss", "load_faiss_gpu"]

_WAY_OUT = 'or search with engine="torch", which needs no FAISS.'
_ONE_BUILD = (
    "Remove every FAISS package and install one again (on x86-64 Linux "
    "`pip uninstall -y faiss-gpu faiss-cpu && pip install faiss-gpu`, elsewhere the same with "
    f"faiss-cpu), {_WAY_OUT}"
)
# Packages that bring a module `faiss`; pip installs several at once without a word, and the last
# one overwrites the files of the others. conda calls its package "faiss".
_BUILDS = ("faiss", "faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs")

_first_process: int | None = None  # the one whose threads FAISS may have started


def load_faiss(caller: str) -> ModuleType:
    """Import FAISS and make sure that it can search.

    Args:
        caller: The call to name in an error.

    Raises:
        EngineUnavailableError: If FAISS is missing, broken, an empty leftover of an uninstall, or
            asked for where its threads hang: inside a DataLoader worker, or in a process forked
            from one that has used it.
    """
    global _first_process
    if torch.utils.data.get_worker_info() is not None:
        raise EngineUnavailableError(
            f"{caller} would run FAISS inside a DataLoader worker, where its threads can hang "
            f"after a fork; search in the main process, {_WAY_OUT}"
        )
    if _first_process not in (None, os.getpid()):
        # torch's own threads hang here as well, so naming its engine is no way out by itself.
        raise EngineUnavailableError(
            f"{caller} would run FAISS in process {os.getpid()}, forked from process "
            f"{_first_process}, which has used it: its threads do not survive a fork, and the search "
            'would hang. Start the process with multiprocessing\'s "spawn", or call '
            'torch.set_num_threads(1) in it and name engine="torch".'
        )
    try:
        import faiss
    except (ImportError, RuntimeError, OSError) as cause:
        # A GPU build without its CUDA libraries raises RuntimeError, a foreign one OSError.
        raise EngineUnavailableError(
            f"{caller} cannot use FAISS: importing it failed with {type(cause).__name__}: {cause}. "
            f"{_several()}{_ONE_BUILD}"
        ) from cause
    if not hasattr(faiss, "IndexFlatL2"):
        raise EngineUnavailableError(
            f"{caller} found an empty `faiss` module, the leftover of an uninstalled second FAISS "
            f"package. {_several()}{_ONE_BUILD}"
        )
    _first_process = os.getpid()
    module: ModuleType = faiss
    return module


def load_faiss_gpu(caller: str) -> ModuleType:
    """Import FAISS and make sure that it can search on a GPU.

    Args:
        caller: The call to name in an error.

    Raises:
        EngineUnavailableError: If ``load_faiss`` does, if several FAISS packages are installed, or
            if this build has no code for GPUs or sees none.
    """
    faiss = load_faiss(caller)
    builds = installed_builds()
    if len(builds) > 1:
        raise EngineUnavailableError(
            f"{caller} cannot tell which FAISS it would run. {_several()}{_ONE_BUILD}"
        )
    if not hasattr(faiss, "StandardGpuResources"):
        raise EngineUnavailableError(
            f"{caller} needs a FAISS with code for GPUs, and {builds[0] if builds else 'this one'} "
            "has none; `pip uninstall -y faiss-cpu && pip install faiss-gpu` (x86-64 Linux), "
            f"{_WAY_OUT}"
        )
    # To be asked before anything else: without a GPU, FAISS's search ends the whole process.
    if faiss.get_num_gpus() == 0:
        raise EngineUnavailableError(
            f"{caller} needs a CUDA device, and FAISS sees none here; check `nvidia-smi` and "
            f"CUDA_VISIBLE_DEVICES, {_WAY_OUT}"
        )
    return faiss


def installed_builds() -> list[str]:
    """Name and version of every installed package that brings a module ``faiss``."""
    found = []
    for name in _BUILDS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _several() -> str:
    """A sentence about several installed FAISS packages, if there are."""
    builds = installed_builds()
    if len(builds) < 2:
        return ""
    return (
        f"{len(builds)} packages provide it ({', '.join(builds)}) and have overwritten each "
        "other's files. "
    )
