"""How good embeddings are for telling classes apart, with the tail of the distribution apart.

Two probes that train nothing but themselves: votes of the nearest neighbours, and one linear
layer. They see embeddings and labels and know nothing of the model that made them.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raremix.errors import LabelError, OptionError, RaremixWarning
from raremix.evaluation.groups import GROUPS, Group, class_groups
from raremix.inputs import ArrayLike, as_embeddings
from raremix.neighbors import nearest

__all__ = ["ProbeResult", "knn_probe", "linear_probe"]


@dataclass(frozen=True)
class ProbeResult:
    """The accuracy of a probe on the test set.

    Attributes:
        accuracy: Share of the test samples that were named right.
        balanced_accuracy: Mean over the classes of each class's accuracy; equal to ``accuracy``
            when all classes have as many test samples.
        per_class: Accuracy of each class 0, 1, ...; NaN for a class without test samples.
        groups: Mean accuracy of the classes that are many, medium and few in training, one vote
            per class; NaN for a group without test samples, empty with fewer than three classes.
    """

    accuracy: float
    balanced_accuracy: float
    per_class: tuple[float, ...]
    groups: Mapping[Group, float]


def knn_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    k: int = 10,
    weighted: bool = True,
    temperature: float = 0.07,
    class_counts: Sequence[int] | None = None,
) -> ProbeResult:
    """Name each test sample by the votes of its k nearest training samples, by cosine.

    Args:
        train_x: Finite floats of shape (n, dim).
        train_y: (n,) class indices 0, 1, ...
        test_x: Finite floats of shape (m, dim).
        test_y: (m,) class indices.
        k: How many neighbours vote, at most n.
        weighted: Weigh a vote by exp(cosine / temperature), as the self-supervised papers do;
            otherwise each counts one. Of classes with equal votes the smallest index wins.
        temperature: Of the weights; smaller lets the nearest decide.
        class_counts: Samples of each class in the set that decides what is many, medium and few;
            counted in ``train_y`` if not given. Pass it when the bank was balanced.

    Returns:
        Accuracies, overall and by group.

    Raises:
        EmbeddingShapeError: If the embeddings are not (n, dim) and (m, dim).
        LabelError: If labels are not one whole number from 0 on per row.
        NotEnoughReferenceError: If there are fewer than k training rows.
        OptionError: If ``k`` or ``temperature`` is out of range.

    Source:
        Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR
        2018, https://arxiv.org/abs/1805.01978, section 3.4.

    Example:
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 2])
        >>> knn_probe(x, y, 2 * x, y, k=1).accuracy
        1.0
    """
    if not temperature > 0:
        raise OptionError(f"knn_probe expects a temperature above 0, got {temperature}.")
    data = _Probed(train_x, train_y, test_x, test_y, class_counts, caller="knn_probe")
    found = nearest(data.test_x, data.train_x, k, metric="cosine")
    if weighted:
        # Unit rows at distance d have cosine 1 - d^2 / 2; subtracting the best one first keeps
        # the exponent in range and changes no vote.
        cosine = 1 - found.distances.double().square() / 2
        weights = ((cosine - cosine[:, :1]) / temperature).exp()
    else:
        weights = torch.ones_like(found.distances, dtype=torch.float64)
    votes = weights.new_zeros(len(data.test_x), data.classes)
    votes.scatter_add_(1, data.train_y[found.indices], weights)
    return data.result(votes.argmax(dim=1))


def linear_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    l2: float = 1e-4,
    balanced: bool = False,
    standardize: bool = True,
    max_steps: int = 1000,
    class_counts: Sequence[int] | None = None,
) -> ProbeResult:
    """Train multinomial logistic regression on the embeddings and test it.

    Minimises the mean cross-entropy plus ``l2 / 2`` times the squared weights (the bias is free)
    by L-BFGS from zero, in float64. The problem is convex and nothing is drawn at random, so the
    same data give the same answer.

    Args:
        train_x: Finite floats of shape (n, dim).
        train_y: (n,) class indices 0, 1, ...
        test_x: Finite floats of shape (m, dim).
        test_y: (m,) class indices.
        l2: Weight of the penalty, above 0. scikit-learn's ``C`` is ``1 / (l2 * n)``.
        balanced: Let every class weigh the same in the loss, however few samples it has.
        standardize: Bring each column of the training set to mean 0 and variance 1 first, and the
            test set by the same shift and scale.
        max_steps: L-BFGS steps at most; a warning says when they did not suffice.
        class_counts: Samples of each class in the set that decides what is many, medium and few;
            counted in ``train_y`` if not given.

    Returns:
        Accuracies, overall and by group.

    Raises:
        EmbeddingShapeError: If the embeddings are not (n, dim) and (m, dim).
        LabelError: If labels are not one whole number from 0 on per row, or ``train_y`` holds
            only one class.
        OptionError: If ``l2`` or ``max_steps`` is out of range.

    Example:
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 2])
        >>> linear_probe(x, y, 2 * x, y).accuracy
        1.0
    """
    if not l2 > 0 or max_steps < 1:
        raise OptionError(
            f"linear_probe expects l2 above 0 and max_steps of at least 1, got {l2} and "
            f"{max_steps}."
        )
    data = _Probed(train_x, train_y, test_x, test_y, class_counts, caller="linear_probe")
    counts = torch.bincount(data.train_y, minlength=data.classes)
    if int((counts > 0).sum()) < 2:
        raise LabelError("linear_probe needs at least 2 classes to train on, train_y holds one.")
    train, test = data.train_x.double(), data.test_x.double()
    if standardize:
        mean, scale = train.mean(dim=0), train.std(dim=0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        train, test = (train - mean) / scale, (test - mean) / scale
    row_weight = train.new_ones(len(train))
    if balanced:
        row_weight = (len(train) / ((counts > 0).sum() * counts))[data.train_y].double()

    weight = train.new_zeros(train.shape[1], data.classes, requires_grad=True)
    bias = train.new_zeros(data.classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_steps,
        max_eval=25 * max_steps,  # Steps alone decide; a line search tries 25 times at most.
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(train @ weight + bias, data.train_y, reduction="none")
        value = (row_weight * losses).mean() + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    if optimizer.state[weight]["n_iter"] >= max_steps:
        warnings.warn(
            f"linear_probe stopped after max_steps={max_steps} before it converged; raise "
            "max_steps or l2.",
            RaremixWarning,
            stacklevel=2,
        )
    return data.result((test @ weight + bias).argmax(dim=1))


class _Probed:
    """Checked training and test rows, and the arithmetic of their accuracies."""

    def __init__(
        self,
        train_x: ArrayLike,
        train_y: ArrayLike,
        test_x: ArrayLike,
        test_y: ArrayLike,
        class_counts: Sequence[int] | None,
        *,
        caller: str,
    ) -> None:
        self.train_x = as_embeddings(train_x, caller=caller)
        self.test_x = as_embeddings(test_x, caller=caller, dim=self.train_x.shape[1])
        self.train_y = _class_indices(train_y, self.train_x, f"{caller} (train_y)")
        self.test_y = _class_indices(test_y, self.test_x, f"{caller} (test_y)")
        self.classes = int(max(self.train_y.max(), self.test_y.max())) + 1
        counts = torch.bincount(self.train_y, minlength=self.classes).tolist()
        if class_counts is not None:
            if len(class_counts) != self.classes:
                raise LabelError(
                    f"{caller} got class_counts of {len(class_counts)} classes, but the labels "
                    f"hold classes 0 to {self.classes - 1}."
                )
            counts = list(class_counts)
        self._counts = counts

    def result(self, predicted: Tensor) -> ProbeResult:
        right = (predicted == self.test_y).double()
        total = torch.bincount(self.test_y, minlength=self.classes)
        hits = torch.bincount(self.test_y, weights=right, minlength=self.classes)
        per_class = hits / total  # 0 / 0 is NaN, which is what a class without samples is.
        groups: dict[Group, float] = {}
        if self.classes >= 3:
            group_of = class_groups(self._counts)
            for group in GROUPS:
                members = torch.tensor([other == group for other in group_of])
                groups[group] = float(per_class.cpu()[members].nanmean())
        return ProbeResult(
            accuracy=float(right.mean()),
            balanced_accuracy=float(per_class.nanmean()),
            per_class=tuple(per_class.tolist()),
            groups=groups,
        )


def _class_indices(labels: ArrayLike, rows: Tensor, caller: str) -> Tensor:
    values = torch.as_tensor(labels).detach()
    if (
        values.shape != rows.shape[:1]
        or values.is_floating_point()
        or values.is_complex()
        or bool((values.long() < 0).any())
    ):
        raise LabelError(
            f"{caller} expects {len(rows)} class indices, whole numbers from 0 on, one per row, "
            f"got {values.dtype} of shape {tuple(values.shape)}"
            + (f" with smallest {values.min().item()}." if values.numel() else ".")
        )
    return values.to(rows.device, torch.int64)
