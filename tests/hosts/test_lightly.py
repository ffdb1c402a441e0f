"""lightly's DINO example, its loop as it stands in their documents, with the four lines of ours."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from raremix import BufferedMixSampler, FlagRate, KNNDistance, OODDetector, RareMemoryBuffer

pytest.importorskip("lightly", reason="needs the extra frameworks")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightly"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),  # weight_norm of lightly's head
]

TOTAL = 64
WIDTH = 16
EPOCHS = 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as this one gain nothing by more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Patches(Dataset[tuple[Any, int]]):
    """32-pixel pictures of coloured patches, every eighth of fine ones; lightly sets transform."""

    transform: Any = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        across = 16 if index % 8 == 0 else 4
        patches = np.random.default_rng(int(index)).integers(0, 256, (across, across, 3))
        pixels = patches.repeat(32 // across, 0).repeat(32 // across, 1)
        return self.transform(Image.fromarray(pixels.astype(np.uint8))), int(index)

    def __len__(self) -> int:
        return TOTAL


class DINO(nn.Module):
    """As in lightly's example, with a narrow network."""

    def __init__(self, backbone: nn.Module, input_dim: int) -> None:
        from lightly.models.modules import DINOProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(input_dim, 32, 16, 64, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(input_dim, 32, 16, 64)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, x: Tensor) -> Any:
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def forward_teacher(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.teacher_backbone(x).flatten(start_dim=1)
        return self.teacher_head(y), y


def small_resnet() -> tuple[nn.Module, int]:
    from torchvision.models.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, [1, 1, 1, 1])
    return nn.Sequential(*list(network.children())[:-1]), 512


def train(
    *, replay: float, epochs: int = EPOCHS
) -> tuple[list[list[int]], list[list[bool]], RareMemoryBuffer, Tensor]:
    """The ids and the replays of each batch, the buffer, and the losses."""
    from lightly.data import LightlyDataset
    from lightly.loss import DINOLoss
    from lightly.models.utils import update_momentum
    from lightly.transforms.dino_transform import DINOTransform
    from lightly.utils.scheduler import cosine_schedule

    torch.manual_seed(0)
    model = DINO(*small_resnet())
    # Milder than the default, so that an untrained network knows a picture again.
    transform = DINOTransform(
        global_crop_size=32,
        global_crop_scale=(0.8, 1.0),
        local_crop_size=16,
        n_local_views=2,
        cj_strength=0.1,
        random_gray_scale=0.0,
        gaussian_blur=(0.0, 0.0, 0.0),
        solarization_prob=0.0,
    )
    dataset = LightlyDataset.from_torch_dataset(
        Patches(), transform=transform, index_to_filename=lambda dataset, index: f"{index}.png"
    )
    # As lightly hands it to its own loader: a DataLoader like any other.
    loader: Any = DataLoader(dataset, batch_size=WIDTH, shuffle=True, drop_last=True)
    criterion = DINOLoss(output_dim=64, warmup_teacher_temp_epochs=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    buffer = RareMemoryBuffer(capacity=12)
    detector = OODDetector(KNNDistance(k=3), FlagRate(0.1, warmup_scores=32))
    loader = BufferedMixSampler.wrap(loader, buffer, replay=replay, lag=1)

    ids, replays, losses = [], [], []
    for epoch in range(epochs):
        momentum = cosine_schedule(epoch, EPOCHS, 0.996, 1)
        for batch in loader:
            views = batch[0]
            update_momentum(model.student_backbone, model.teacher_backbone, m=momentum)
            update_momentum(model.student_head, model.teacher_head, m=momentum)
            global_views = views[:2]
            teacher_out, embeddings = zip(
                *[model.forward_teacher(view) for view in global_views], strict=True
            )
            student_out = [model.forward(view) for view in views]
            loss = criterion(teacher_out, student_out, epoch=epoch)
            loss.backward()
            model.student_head.cancel_last_layer_gradients(current_epoch=epoch)
            optimizer.step()
            optimizer.zero_grad()

            rows = loader.batch
            found = detector.observe(embeddings[0], ids=rows.ids, is_replay=rows.is_replay)
            buffer.add(rows, found)

            losses.append(loss.detach())
            assert batch[1].tolist() == rows.ids.tolist()
            assert list(batch[2]) == [f"{index}.png" for index in rows.ids.tolist()]
            assert [len(view) for view in views] == [WIDTH] * 4
            ids.append(rows.ids.tolist())
            replays.append(rows.is_replay.tolist())
    return ids, replays, buffer, torch.stack(losses)


def test_the_example_trains_on_and_sees_again_what_the_detector_called_rare() -> None:
    ids, replays, buffer, losses = train(replay=0.25)
    assert losses.isfinite().all()
    assert len(ids) == EPOCHS * TOTAL // WIDTH
    # Two batches warm the threshold up; a batch replays a quarter of its rows once there are some.
    assert not any(map(any, replays[:3]))
    counts = [sum(row) for row in replays]
    assert max(counts) == WIDTH // 4
    assert sum(counts) >= len(counts)
    seen: set[int] = set()
    for batch, is_replay in zip(ids, replays, strict=True):
        replayed = {key for key, again in zip(batch, is_replay, strict=True) if again}
        assert replayed <= seen  # what was never trained on cannot have been called rare
        seen.update(batch)
    metrics = buffer.metrics()
    assert metrics["replays"] == sum(counts)
    assert metrics["late"] == 0


def test_without_replay_the_example_sees_each_row_once() -> None:
    ids, replays, _, _ = train(replay=0.0, epochs=1)
    assert not any(map(any, replays))
    assert sorted(key for batch in ids for key in batch) == list(range(TOTAL))
