"""The only place that imports FAISS, and what to tell a user when that goes wrong.

FAISS wheels of several kinds provide the same module, so an import can fail in more ways than
ImportError, or succeed as an empty leftover folder.
"""

from types import ModuleType

# FAISS must not meet a forked loader worker before torch has set up its threads: it hangs there.
import torch.utils.data

from raremix.errors import EngineUnavailableError

__all__ = ["load_faiss"]

_WAY_OUT = 'or name engine="torch", which needs no FAISS.'


def load_faiss(caller: str) -> ModuleType:
    """Import FAISS and make sure that it can search.

    Args:
        caller: The call to name in an error.

    Raises:
        EngineUnavailableError: If FAISS is missing, broken, an empty leftover of an uninstall, or
            asked for inside a DataLoader worker, where its threads can hang.
    """
    if torch.utils.data.get_worker_info() is not None:
        raise EngineUnavailableError(
            f"{caller} would run FAISS inside a DataLoader worker, where its threads can hang "
            f"after a fork; search in the main process, {_WAY_OUT}"
        )
    try:
        import faiss
    except (ImportError, RuntimeError, OSError) as cause:
        # A GPU build without its CUDA libraries raises RuntimeError, a foreign one OSError.
        raise EngineUnavailableError(
            f"{caller} cannot use FAISS: importing it failed with {type(cause).__name__}: {cause}. "
            "Remove every FAISS package and install one again (on x86-64 Linux "
            "`pip uninstall -y faiss-gpu faiss-cpu && pip install faiss-gpu`, elsewhere the same "
            f"with faiss-cpu), {_WAY_OUT}"
        ) from cause
    if not hasattr(faiss, "IndexFlatL2"):
        raise EngineUnavailableError(
            f"{caller} found an empty `faiss` module, the leftover of an uninstalled second FAISS "
            "package; uninstall all faiss packages and install one again, "
            f"{_WAY_OUT}"
        )
    module: ModuleType = faiss
    return module
