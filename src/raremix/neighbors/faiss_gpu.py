"""FAISS's exact flat search on the GPU, given the addresses of torch's own tensors.

It knows tensors and FAISS, not ids, not metrics, and not when a GPU search pays.
"""

from typing import Any

import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError, EngineUnavailableError
from raremix.neighbors.faiss_door import load_faiss, load_faiss_gpu
from raremix.options import check_count

__all__ = ["FaissGpuEngine"]

# The widest selection that FAISS compiles for GPUs, faiss/gpu/utils/DeviceDefs.cuh.
_MOST_CANDIDATES = 2048


class FaissGpuEngine:
    """FAISS's exact flat search, on the device of the tensors.

    Nothing travels over the CPU, and no class of FAISS is patched. Tensors on the CPU are copied
    to the current CUDA device by FAISS itself. One engine serves one thread at a time.

    Args:
        max_memory: Bytes of the device that FAISS may keep for its tiles between searches.

    Raises:
        EngineUnavailableError: On use, if FAISS cannot be imported, is installed twice, has no code
            for GPUs or sees none; in a loader's worker or after a fork; and for more than 2,048
            candidates, which is k, the siblings of a row and a few more.

    Example:
        >>> engine = FaissGpuEngine()
        >>> nearest(queries.cuda(), bank.cuda(), k=10, engine=engine)  # doctest: +SKIP
    """

    def __init__(self, *, max_memory: int = 2**29) -> None:
        self.max_memory = check_count("FaissGpuEngine", "max_memory", max_memory, least=2**20)
        self._resources: Any = None  # FAISS has no types

    def candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See ``CandidateEngine``."""
        caller = "FaissGpuEngine.candidates"
        if self._resources is None:
            faiss = load_faiss_gpu(caller)
            self._resources = faiss.StandardGpuResources()
            self._resources.setTempMemory(self.max_memory)
        faiss = load_faiss(caller)
        if count > _MOST_CANDIDATES:
            raise EngineUnavailableError(
                f"{caller} was asked for {count} candidates, and FAISS finds at most "
                f'{_MOST_CANDIDATES} on a GPU; lower k, or name engine="torch".'
            )
        # FAISS is given addresses: it would read beyond a narrower bank, or on another device.
        if bank.shape[1:] != queries.shape[1:] or bank.device != queries.device:
            raise EmbeddingShapeError(
                f"{caller} expects queries and bank of one width on one device, got "
                f"{tuple(queries.shape)} on {queries.device} and {tuple(bank.shape)} on "
                f"{bank.device}."
            )
        queries, bank = (rows.float().contiguous() for rows in (queries, bank))
        squared = queries.new_empty((len(queries), count))
        indices = queries.new_empty((len(queries), count), dtype=torch.int64)

        request = faiss.GpuDistanceParams()
        request.metric = faiss.METRIC_L2
        request.k = count
        request.dims = queries.shape[1]
        request.vectors = faiss.cast_integer_to_void_ptr(bank.data_ptr())
        request.vectorType = faiss.DistanceDataType_F32
        request.vectorsRowMajor = True
        request.numVectors = len(bank)
        request.queries = faiss.cast_integer_to_void_ptr(queries.data_ptr())
        request.queryType = faiss.DistanceDataType_F32
        request.queriesRowMajor = True
        request.numQueries = len(queries)
        request.outDistances = faiss.cast_integer_to_float_ptr(squared.data_ptr())
        request.outIndicesType = faiss.IndicesDataType_I64
        request.outIndices = faiss.cast_integer_to_void_ptr(indices.data_ptr())
        request.device = -1 if queries.device.index is None else queries.device.index
        if queries.is_cuda:
            # On torch's stream, so that each waits for what the other has written.
            stream = torch.cuda.current_stream(queries.device).cuda_stream
            self._resources.setDefaultStream(
                request.device, faiss.cast_integer_to_cudastream_t(stream)
            )
        faiss.bfKnn(self._resources, request)
        return squared, indices
