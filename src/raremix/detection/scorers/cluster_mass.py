"""The mass of a row's cluster: how many others were put into the same drawer.

It keeps rows and ids in a reference bank, and the centres of their clusters.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raremix.detection.bank import ReferenceBank
from raremix.detection.scorers.clusters import assign, find_centres
from raremix.errors import NotEnoughReferenceError, OptionError
from raremix.inputs import ArrayLike, as_embeddings
from raremix.neighbors.index import unit_rows
from raremix.options import check_count
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["ClusterMass"]

# Centres are found anew once this share of the bank has been added since they were found last.
_STALE_SHARE = 0.25


class ClusterMass:
    """How small the cluster is that an embedding falls into: -log(its share of the reference).

    The only score here that counts members instead of measuring distances: a wide common class
    stays common, and a single outlier beside a large cluster stays common too. It works when there
    are about as many clusters as classes; many more, and common classes fall apart into small
    pieces (average precision 0.68, 0.33 and 0.05 with 30, 100 and 300 clusters for 10 simulated
    classes).

    k-means ends in another place from every start, so the score is the mean over ``repeats`` of
    them: average precision 0.195 on CamVid crops and 0.259 on CIFAR-10-LT by MobileNetV2, against
    0.126 to 0.186 and 0.148 to 0.252 of a single one; 0.066 by SimCLR, below chance.

    Args:
        clusters: About as many as there are classes, rare ones included; at least 2.
        repeats: Clusterings to take the mean over. With 1, all rows of a cluster score alike, so
            that a threshold flags whole clusters or none.
        normalize: Whether to scale rows to unit length first; a row of zeros stays zero.
        capacity: The most embeddings kept by ``update``; ``fit`` keeps all it is given.
        seed: Seeds the starts of k-means.

    Example:
        >>> rows = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
        >>> ClusterMass(clusters=2).fit(rows)  # -log(3/4) and -log(1/4)
        tensor([0.2877, 0.2877, 0.2877, 1.3863])
    """

    def __init__(
        self,
        clusters: int = 20,
        *,
        repeats: int = 5,
        normalize: bool = False,
        capacity: int = 65_536,
        seed: int = 0,
    ) -> None:
        self.clusters = check_count("ClusterMass", "clusters", clusters, least=2)
        self.repeats = check_count("ClusterMass", "repeats", repeats, least=1)
        self.normalize = bool(normalize)
        self.seed = check_count("ClusterMass", "seed", seed, least=0)
        self.bank = ReferenceBank(capacity)
        if capacity < self.clusters:
            raise OptionError(
                f"ClusterMass expects a capacity of at least clusters={clusters}, got {capacity}; "
                "raise capacity."
            )
        self._centres: list[Tensor] = []  # of every clustering; none yet
        self._added = 0  # rows since the centres were found
        # The cluster of every row of the bank, in every clustering.
        self._labels = torch.empty((0, repeats), dtype=torch.int64, device="cpu")
        self._version = -1  # of the bank, when the labels were made

    def __repr__(self) -> str:
        return (
            f"ClusterMass(clusters={self.clusters}, repeats={self.repeats}, normalize={self.normalize}, "
            f"capacity={self.bank.capacity}, seed={self.seed})"
        )

    @property
    def ready(self) -> bool:
        """Whether as many embeddings have been seen as there are clusters."""
        return bool(self._centres) and len(self.bank) > 0

    def fit(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """Take these (n, dim) embeddings as the reference; return their leave-one-out scores.

        Leaving a row out and asking how large its cluster would be with it gives the cluster's
        share as it stands. The centres are not found anew for every row.
        """
        rows = as_embeddings(embeddings, caller="ClusterMass.fit")
        if len(rows) < self.clusters:
            raise NotEnoughReferenceError(
                f"ClusterMass.fit expects at least clusters={self.clusters} embeddings, got "
                f"{len(rows)}; pass more, or build ClusterMass with fewer clusters."
            )
        self.bank.fill(rows, ids)
        self._centres = []
        self._follow(len(rows))
        own = torch.arange(len(rows), device="cpu") if ids is None else ids
        return self._mass(self._labels, own.cpu(), own.cpu()).to(rows.device)

    def score(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """Measure how small the cluster is that each row would join; larger is rarer.

        Args:
            embeddings: Finite floats of shape (batch, dim).
            ids: (batch,) integers; a reference row of the same id is not counted.

        Returns:
            Float32 of shape (batch,), on the device of ``embeddings``.

        Raises:
            EmbeddingShapeError: If ``embeddings`` is not (batch, dim) of the reference's width.
            NotEnoughReferenceError: If fewer embeddings have been seen than there are clusters.
            OptionError: If ids are given and the reference has none.
        """
        rows = as_embeddings(embeddings, caller="ClusterMass.score", dim=self.bank.dim)
        if not self.ready:
            raise NotEnoughReferenceError(
                f"ClusterMass.score needs clusters={self.clusters} reference embeddings and has "
                f"seen {len(self.bank)}; call fit or update with more."
            )
        self.bank.check_ids(ids, caller="ClusterMass.score")
        return self._mass(self._assigned(rows), ids, self.bank.ids).to(rows.device)

    def update(self, embeddings: ArrayLike, ids: Tensor | None = None) -> None:
        """Add (batch, dim) embeddings to the reference; a known id replaces its rows."""
        rows = as_embeddings(embeddings, caller="ClusterMass.update", dim=self.bank.dim)
        self.bank.add(rows, ids)
        self._follow(len(rows))

    def _directed(self, rows: Tensor) -> Tensor:
        return unit_rows(rows) if self.normalize else rows

    def _assigned(self, rows: Tensor) -> Tensor:
        directed = self._directed(rows)
        labels = [assign(directed, centres.to(rows.device)).cpu() for centres in self._centres]
        return torch.stack(labels, dim=1)

    def _follow(self, added: int) -> None:
        """Bring centres and labels to the rows that are now in the bank."""
        self._added += added
        if not self._centres or self._added >= _STALE_SHARE * len(self.bank):
            if len(self.bank) < self.clusters:
                self._centres = []  # they were those of rows that have been forgotten
                return
            directed = self._directed(self.bank.rows)
            self._centres = [
                find_centres(directed, self.clusters, seed=self.seed + repeat)
                for repeat in range(self.repeats)
            ]
            self._added, self._version = 0, -1
        self._relabel()

    def _relabel(self) -> None:
        changed = self.bank.changes_since(self._version)
        if changed is None:
            changed = torch.arange(len(self.bank), device="cpu")
        labels = torch.zeros((len(self.bank), self.repeats), dtype=torch.int64, device="cpu")
        kept = min(len(labels), len(self._labels))
        labels[:kept] = self._labels[:kept]
        if len(changed):
            labels[changed] = self._assigned(self.bank.rows[changed.to(self.bank.rows.device)])
        self._labels, self._version = labels, self.bank.version

    def _mass(self, labels: Tensor, ids: Tensor | None, known: Tensor | None) -> Tensor:
        """-log of the share of each row's cluster, its own rows left out and itself put in."""
        rows = torch.full((len(labels),), len(self._labels), dtype=torch.int64, device="cpu")
        mine = theirs = None
        if ids is not None and known is not None:
            _, numbers = torch.unique(torch.cat([ids.cpu(), known]), return_inverse=True)
            mine, theirs = numbers[: len(ids)], numbers[len(ids) :]
            rows = rows - torch.bincount(theirs, minlength=int(numbers.max()) + 1)[mine]
        total = torch.zeros(len(labels), dtype=torch.float64, device="cpu")
        for repeat, centres in enumerate(self._centres):
            own, held, size = labels[:, repeat], self._labels[:, repeat], len(centres)
            members = torch.bincount(held, minlength=size)[own]
            if mine is not None and theirs is not None:
                most = (int(max(mine.max(), theirs.max())) + 1) * size
                of_id = torch.bincount(theirs * size + held, minlength=most)
                members = members - of_id[mine * size + own]
            share = (members + 1).to(torch.float64) / (rows + 1).to(torch.float64)
            total -= share.log()
        return (total / len(self._centres)).clamp(min=0.0).to(torch.float32)

    def state_dict(self) -> State:
        """The settings, the reference and the centres."""
        content: State = {
            **self._settings(),
            "bank": self.bank.state_dict(),
            "centres": {str(at): centres.clone() for at, centres in enumerate(self._centres)},
            "added": self._added,
        }
        return sealed_state("ClusterMass", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved reference and its centres; the settings must be the saved ones."""
        keys = (*self._settings(), "bank", "centres", "added")
        content = open_state(state, kind="ClusterMass", version=1, keys=keys)
        check_settings("ClusterMass", content, self._settings())
        self.bank.load_state_dict(content["bank"])
        self._centres = [centres.clone() for centres in content["centres"].values()]
        self._added, self._version = content["added"], -1
        if self._centres:
            self._relabel()

    def _settings(self) -> State:
        return {
            "clusters": self.clusters,
            "repeats": self.repeats,
            "normalize": self.normalize,
            "seed": self.seed,
        }
