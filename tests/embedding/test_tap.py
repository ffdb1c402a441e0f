import copy
import gc
import io
import timeit
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from raremix import BufferedMixSampler, FlagRate, KNNDistance, OODDetector, RareMemoryBuffer
from raremix.embedding.tap import EmbeddingTap
from raremix.errors import EmbeddingShapeError, OptionError, TapError

ROWS = 6


def images(count: int, seed: int = 0, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def wanted_of(expected: Tensor) -> list[tuple[Any, Tensor]]:
    """For each way of asking, what is to be given of (views, rows, dim)."""
    return [(0, expected[0]), (1, expected[1]), ("mean", expected.mean(dim=0))]


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Returns(nn.Module):
    """Gives what a framework's backbone would, made of its input."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, given: Tensor) -> Any:
        return self.wrap(given)


def test_one_call_with_all_views_gives_the_rows_of_the_view_that_was_asked_for() -> None:
    backbone, shown = convnet(), images(2 * ROWS)
    expected = backbone(shown).detach().view(2, ROWS, 5)
    for view, wanted in wanted_of(expected):
        with EmbeddingTap(backbone, view=view) as tap:
            backbone(shown)
            assert torch.equal(tap.take(ROWS), wanted)


def test_one_call_for_each_view_is_the_same_as_one_call_with_all() -> None:
    trunk, shown = convnet()[:3], images(2 * ROWS)  # (batch, 5, 1, 1), as lightly's backbones give
    expected = trunk(shown).detach().flatten(1).view(2, ROWS, 5)
    for view, wanted in wanted_of(expected):
        with EmbeddingTap(trunk, view=view) as tap:
            for one in torch.split(shown, ROWS):
                trunk(one)
            torch.testing.assert_close(tap.take(ROWS), wanted)


@settings(deadline=None)
@given(
    rows=st.integers(1, 5),
    layout=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
)
def test_any_layout_of_calls_gives_the_view_counted_over_all_of_them(
    rows: int, layout: list[int], data: st.DataObject
) -> None:
    module = nn.Identity()
    shown = torch.arange(float(sum(layout) * rows * 2)).view(-1, 2)
    view = data.draw(st.integers(0, sum(layout) - 1))
    with EmbeddingTap(module, view=view) as one, EmbeddingTap(module, view="mean") as mean:
        for part in torch.split(shown, [views * rows for views in layout]):
            module(part)
        assert torch.equal(one.take(rows), shown[view * rows : (view + 1) * rows])
        torch.testing.assert_close(mean.take(rows), shown.view(-1, rows, 2).mean(dim=0))


def test_the_mean_is_over_the_views_of_the_first_resolution_only() -> None:
    backbone, large, small = convnet(), images(2 * ROWS), images(4 * ROWS, seed=1, side=4)
    expected = backbone(large).detach().view(2, ROWS, 5).mean(dim=0)
    with EmbeddingTap(backbone, view="mean") as mean, EmbeddingTap(backbone, view=3) as local:
        for _ in range(2):
            backbone(large)
            last = backbone(small)
            assert torch.equal(mean.take(ROWS), expected)
            assert torch.equal(local.take(ROWS), last[ROWS : 2 * ROWS])


def test_images_given_by_name_have_a_resolution_too() -> None:
    class Named(nn.Module):
        def forward(self, *, pixel_values: Tensor) -> Tensor:
            return pixel_values.mean(dim=(2, 3))

    module, large, small = Named(), images(ROWS), images(ROWS, seed=1, side=4)
    with EmbeddingTap(module, view="mean") as tap:
        module(pixel_values=large)
        module(pixel_values=small)
        assert torch.equal(tap.take(ROWS), large.mean(dim=(2, 3)))


def test_feature_maps_are_averaged_over_their_cells() -> None:
    module = nn.Identity()
    with EmbeddingTap(module) as tap:
        maps = module(images(ROWS).half())
        torch.testing.assert_close(tap.take(ROWS), maps.float().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda x: {"x_norm_clstoken": x, "x_prenorm": x}, r"dict of 'x_norm_clstoken', 'x_pre"),
        (lambda x: {"x_norm_clstoken": x}, r"select=lambda output: output\['x_norm_clstoken'\]"),
        (
            lambda x: {"last_hidden_state": x[:, None], "pooler_output": x},
            r"output\['last_hidden_state'\]\[:, 0\], the class token",
        ),
        (lambda x: {"mine": x}, r"select=lambda output: output\['mine'\]"),
        (lambda x: (x, x), "a tuple of 2; .*select="),
        (lambda x: [x], "a list of 1; .*select="),
        (lambda x: x[:, None], r"shape \(6, 1, 4\); .*tokens\[:, 0\]"),
        (lambda x: x.long(), "int64"),
        (lambda x: x[:0], r"shape \(0, 4\)"),
    ],
)
def test_an_output_that_is_no_embedding_is_refused_with_its_names(
    wrap: Callable[[Tensor], Any], named: str
) -> None:
    module = Returns(wrap)
    with EmbeddingTap(module), pytest.raises(EmbeddingShapeError, match=named):
        module(torch.ones(ROWS, 4))


def test_select_finds_the_embeddings_in_a_dict() -> None:
    tokens = torch.randn(ROWS, 9, 4)
    module = Returns(lambda x: {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, 1:]})
    with EmbeddingTap(module, select=lambda output: output["x_norm_clstoken"]) as tap:
        module(tokens)
        found = tap.take(ROWS)
    assert torch.equal(found, tokens[:, 0])
    assert found.untyped_storage().nbytes() == found.numel() * 4


def test_what_select_returns_is_checked_as_well() -> None:
    module = nn.Identity()
    with (
        EmbeddingTap(module, select=lambda output: output[:, 0]) as tap,
        pytest.raises(EmbeddingShapeError, match=r"from select, got torch.float32 of shape \(6,\)"),
    ):
        module(torch.ones(ROWS, 4))
    with pytest.raises(TapError):
        tap.take(ROWS)


@pytest.mark.parametrize("view", [0, 1, "mean"])
@pytest.mark.parametrize("calls", [1, 2])
def test_rows_are_plain_float32_in_memory_of_their_own(view: Any, calls: int) -> None:
    shown = images(2 * ROWS).to(memory_format=torch.channels_last)
    module = convnet().to(torch.float64)
    with EmbeddingTap(module, view=view) as tap:
        for part in shown.double().chunk(calls):
            module(part)
        found = tap.take(ROWS)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == ROWS * 5 * 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_of_feature_maps_are_contiguous_in_every_layout(layout: torch.memory_format) -> None:
    module = nn.Identity()
    for side in (1, 3):
        with EmbeddingTap(module) as tap:
            module(torch.randn(ROWS, 5, side, side).to(memory_format=layout))
            assert tap.take(ROWS).is_contiguous()


def test_the_rows_are_those_from_before_a_change_in_place() -> None:
    torch.manual_seed(0)
    linear, shown = nn.Linear(4, 4), torch.randn(ROWS, 4)
    model = nn.Sequential(linear, nn.ReLU(inplace=True))
    with EmbeddingTap(linear) as tap:
        model(shown)
        assert torch.equal(tap.take(ROWS), F.linear(shown, linear.weight, linear.bias))


def test_neither_graph_nor_output_is_kept_alive() -> None:
    model = nn.Linear(4, 4)
    tap = EmbeddingTap(model)
    output = model(torch.ones(ROWS, 4))
    held = weakref.ref(output)
    del output
    gc.collect()
    assert held() is None
    assert len(tap.take(ROWS)) == ROWS


def test_rows_heard_in_inference_mode_serve_autograd() -> None:
    model = nn.Linear(4, 3)
    for take_inside in (False, True):
        with EmbeddingTap(model, view=1) as tap:
            with torch.inference_mode():
                model(torch.ones(2 * ROWS, 4))
                found = tap.take(ROWS) if take_inside else None
            found = tap.take(ROWS) if found is None else found
        assert not found.is_inference()
        weight = torch.ones(3, requires_grad=True)
        torch.autograd.backward(
            (found * weight).sum()
        )  # an inference tensor cannot be saved for it
        assert weight.grad is not None


def test_rows_are_float32_under_autocast() -> None:
    model = nn.Linear(4, 3)
    with EmbeddingTap(model, view="mean") as tap, torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(torch.randn(2 * ROWS, 4))
        found = tap.take(ROWS)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(found, half.detach().float().view(2, ROWS, 3).mean(dim=0))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_second_forward_of_activation_checkpointing_is_not_heard(use_reentrant: bool) -> None:
    model, shown = convnet(), images(2 * ROWS)
    with EmbeddingTap(model, views=2) as tap:
        for _ in range(2):
            shown.requires_grad_()
            output = checkpoint(model, shown, use_reentrant=use_reentrant)
            output.square().sum().backward()
            assert torch.equal(tap.take(ROWS), output[:ROWS])


def test_under_gradient_accumulation_every_part_is_taken_by_itself() -> None:
    model, shown = convnet(), images(4 * ROWS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with EmbeddingTap(model) as tap:
        for part in torch.split(shown, 2 * ROWS):
            output = model(part)
            (output.square().sum() / 2).backward()
            assert torch.equal(tap.take(ROWS), output[:ROWS])
        optimizer.step()


def test_a_step_that_passes_its_batch_in_parts_is_told_to_take_after_each() -> None:
    module = nn.Identity()
    with EmbeddingTap(module) as tap:
        for part in torch.split(torch.ones(ROWS, 4), 2):
            module(part)
        with pytest.raises(EmbeddingShapeError, match=r"2 rows.* no multiple of 6; .*every part"):
            tap.take(ROWS)
        module(torch.ones(ROWS, 4))  # what was refused is forgotten
        assert len(tap.take(ROWS)) == ROWS


def test_a_short_last_batch_is_taken_like_any_other() -> None:
    module = nn.Identity()
    with EmbeddingTap(module, view=1) as tap:
        for rows in (ROWS, ROWS, 1):
            shown = torch.randn(2 * rows, 4)
            module(shown)
            assert torch.equal(tap.take(rows), shown[rows:])


def test_taking_twice_or_from_a_module_that_is_not_called_says_so() -> None:
    model = convnet()
    with EmbeddingTap(model) as tap:
        model(images(ROWS))
        tap.take(ROWS)
        with pytest.raises(TapError, match=r"heard no call of Sequential; take once after every"):
            tap.take(ROWS)
        model.forward(images(ROWS))  # type: ignore[no-untyped-call]  # runs no hook
        with pytest.raises(TapError, match="not by its forward"):
            tap.take(ROWS)
        with tap.paused(), pytest.raises(TapError, match="since it is paused"):
            tap.take(ROWS)
    assert repr(tap) == "EmbeddingTap(Sequential, removed)"
    with pytest.raises(TapError, match="from which it was removed"):
        tap.take(ROWS)


def test_a_removed_tap_leaves_no_hook_and_may_be_removed_again() -> None:
    model = convnet()
    tap = EmbeddingTap(model)
    assert repr(tap) == "EmbeddingTap(Sequential, view=0)"
    tap.remove()
    tap.remove()
    assert not model._forward_hooks


def test_a_tap_that_is_let_go_of_leaves_no_hook() -> None:
    model = convnet()
    tap = EmbeddingTap(model)
    tap = EmbeddingTap(model)  # as where a cell of a notebook runs again
    gc.collect()
    model(images(ROWS))
    assert len(model._forward_hooks) == 1
    assert len(tap.take(ROWS)) == ROWS


def test_nothing_is_heard_while_paused() -> None:
    model, shown = convnet(), images(ROWS)
    with EmbeddingTap(model) as tap:
        output = model(shown)
        with tap.paused(), tap.paused():
            model.eval()
            model(images(40, seed=1))
        model.train()
        assert torch.equal(tap.take(ROWS), output)
        with pytest.raises(ZeroDivisionError), tap.paused():
            raise ZeroDivisionError
        model(shown)
        assert torch.equal(tap.take(ROWS), output)


def test_validation_that_is_heard_is_refused_and_then_forgotten() -> None:
    model, shown = convnet(), images(2 * ROWS)
    with EmbeddingTap(model) as tap:
        expected = model(shown)[:ROWS]
        assert torch.equal(tap.take(ROWS), expected)
        for _ in range(3):
            model(images(ROWS, seed=1))
        model(shown)
        with pytest.raises(TapError, match=r"heard 5 views .* where a step has 2; .*paused\(\)"):
            tap.take(ROWS)
        model(shown)
        assert torch.equal(tap.take(ROWS), expected)


def test_validation_before_the_first_step_is_refused_where_views_are_given() -> None:
    model = convnet()
    with EmbeddingTap(model, views=2) as tap:
        model(images(ROWS))
        model(images(2 * ROWS))
        with pytest.raises(TapError, match="heard 3 views"):
            tap.take(ROWS)


def test_a_step_that_failed_is_forgotten_by_clear() -> None:
    model, shown = convnet(), images(ROWS)
    with EmbeddingTap(model, views=1) as tap:
        model(images(ROWS, seed=1))  # the step fails after this
        tap.clear()
        expected = model(shown)
        assert torch.equal(tap.take(ROWS), expected)


def test_a_call_that_fails_is_not_heard() -> None:
    model, shown = convnet(), images(ROWS)
    with EmbeddingTap(model, views=1) as tap:
        with pytest.raises(RuntimeError):
            model(torch.ones(ROWS, 99))
        expected = model(shown)
        assert torch.equal(tap.take(ROWS), expected)


def test_a_tap_that_nobody_takes_from_does_not_fill_memory() -> None:
    module = nn.Identity()
    with EmbeddingTap(module, view="mean") as tap:
        for _ in range(1000):
            module(torch.ones(ROWS, 4))
        assert sum(call.rows is not None for call in tap._calls) <= 256
        with pytest.raises(TapError, match="at least 256 views"):
            tap.take(ROWS)


def test_a_view_that_was_not_shown_is_refused() -> None:
    module = nn.Identity()
    with EmbeddingTap(module, view=2) as tap:
        module(torch.ones(2 * ROWS, 4))
        with pytest.raises(TapError, match="view 2 and heard 2"):
            tap.take(ROWS)


def test_copies_of_a_tapped_module_are_deaf() -> None:
    student = convnet()
    tap = EmbeddingTap(student)
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    for teacher in (copy.deepcopy(student), torch.load(file, weights_only=False)):
        shown = images(ROWS)
        teacher(images(ROWS, seed=1))
        with pytest.raises(TapError, match="heard no call"):
            tap.take(ROWS)
        expected = student(shown)
        assert torch.equal(tap.take(ROWS), expected)
        assert torch.equal(teacher(shown), expected)


def test_a_tap_itself_cannot_be_copied() -> None:
    tap = EmbeddingTap(convnet())
    with pytest.raises(TapError, match="keep it outside the model"):
        copy.deepcopy(tap)


def test_the_replicas_of_data_parallel_are_refused() -> None:
    model = convnet()
    with EmbeddingTap(model) as tap:
        replica = model._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        for name, child in model.named_children():
            setattr(replica, name, child)
        replica(images(ROWS))
        with pytest.raises(TapError, match=r"replicas of Sequential.*tap the nn.DataParallel"):
            tap.take(ROWS)
        expected = model(images(ROWS))
        assert torch.equal(tap.take(ROWS), expected)


def test_data_parallel_itself_can_be_tapped() -> None:
    model = nn.DataParallel(convnet())
    with EmbeddingTap(model) as tap:
        expected = model(images(ROWS))
        assert torch.equal(tap.take(ROWS), expected)


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("where", ["what compile returns", "module.compile()", "a part, before"])
def test_a_compiled_module_is_heard(backend: str, where: str) -> None:
    torch._dynamo.reset()
    model, shown = convnet(), images(2 * ROWS)
    expected = model(shown).detach()[:ROWS]
    if where == "a part, before":
        tap = EmbeddingTap(model[3])
        compiled: Any = torch.compile(model, backend=backend)
    elif where == "module.compile()":
        model.compile(backend=backend)
        tap, compiled = EmbeddingTap(model), model
    else:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        tap = EmbeddingTap(compiled)
    for _ in range(3):
        compiled(shown)
        torch.testing.assert_close(tap.take(ROWS), expected)
    torch._dynamo.reset()


def test_rows_can_be_taken_and_observed_in_a_thread_of_callbacks() -> None:
    model = convnet()
    detector = OODDetector(KNNDistance(3), FlagRate(0.2, warmup_scores=8))
    with EmbeddingTap(model, view="mean") as tap, ThreadPoolExecutor(1) as callbacks:

        def called_back(ids: Tensor) -> Tensor:
            return detector.observe(tap.take(ROWS), ids=ids).scores

        scores = []
        for step in range(8):
            model(images(2 * ROWS, seed=step))
            ids = torch.arange(step * ROWS, (step + 1) * ROWS)
            scores.append(callbacks.submit(called_back, ids).result())
    assert torch.cat(scores[2:]).isfinite().all()


def test_torchvisions_resnet_is_heard_at_its_pooling() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model, shown = resnet18(weights=None), images(4, side=32)
    model.eval()
    with EmbeddingTap(model.avgpool) as tap, torch.no_grad():
        logits = model(shown)
        found = tap.take(4)
        assert found.shape == (4, 512)
        torch.testing.assert_close(model.fc(found), logits)


def test_timms_vit_is_heard_where_its_step_calls_forward_features() -> None:
    timm = pytest.importorskip("timm", reason="needs the extra frameworks")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0).eval()
    shown = images(2 * ROWS, side=32)
    with (
        EmbeddingTap(model.norm, select=lambda tokens: tokens[:, 0]) as tap,
        EmbeddingTap(model) as whole,
        torch.no_grad(),
    ):
        tokens = model.forward_features(shown)
        assert torch.equal(tap.take(ROWS), tokens[:ROWS, 0])
        with pytest.raises(TapError, match="tap a module that the step calls itself"):
            whole.take(ROWS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightly")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch")  # weight_norm of lightly's head
def test_lightlys_dino_step_is_heard_and_not_changed() -> None:
    pytest.importorskip("lightly", reason="needs the extra frameworks")
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    def run(*, is_tapped: bool) -> tuple[list[float], list[Tensor], list[Tensor]]:
        student = convnet()[:3]
        head, teacher_head = (DINOProjectionHead(5, 8, 4, 16) for _ in range(2))
        teacher = copy.deepcopy(student)
        criterion = DINOLoss(output_dim=16, warmup_teacher_temp_epochs=1)
        optimizer = torch.optim.SGD([*student.parameters(), *head.parameters()], lr=0.1)
        losses, heard, expected = [], [], []
        tap = EmbeddingTap(teacher) if is_tapped else None
        for step in range(3):
            views = [images(ROWS, 2 * step), images(ROWS, 2 * step + 1), images(ROWS, 9, side=5)]
            update_momentum(student, teacher, m=0.9)
            update_momentum(head, teacher_head, m=0.9)
            with torch.no_grad():
                taught = [teacher(view).flatten(1) for view in views[:2]]
                targets = [teacher_head(rows) for rows in taught]
            guesses = [head(student(view).flatten(1)) for view in views]
            loss = criterion(targets, guesses, epoch=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            expected.append(taught[0])
            if tap is not None:
                heard.append(tap.take(ROWS))
        return losses, heard, expected

    losses, heard, expected = run(is_tapped=True)
    assert torch.equal(torch.stack(heard), torch.stack(expected))
    assert run(is_tapped=False)[0] == losses


def test_the_rows_taken_carry_the_ids_of_the_batch() -> None:
    rows = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    teacher = nn.Linear(3, 3)
    buffer = RareMemoryBuffer(8)
    detector = OODDetector(KNNDistance(3), FlagRate(0.2, warmup_scores=16))
    plain = DataLoader(TensorDataset(rows), batch_size=10, shuffle=True)
    loader = BufferedMixSampler.wrap(plain, buffer, replay=0.2, lag=1)
    with EmbeddingTap(teacher) as tap:
        for _ in range(3):
            for (shown,) in loader:
                teacher(torch.cat([shown, shown + 1.0]))
                batch = loader.batch
                embeddings = tap.take(len(batch))
                torch.testing.assert_close(embeddings, teacher(rows[batch.ids]).detach())
                tap.clear()  # the line above called it once more
                buffer.add(
                    batch, detector.observe(embeddings, batch.ids, is_replay=batch.is_replay)
                )
    assert len(buffer) > 0


def test_a_call_costs_less_than_50_microseconds_more() -> None:
    module, shown = nn.Identity(), torch.ones(64, 64)

    def fastest() -> float:
        return min(timeit.repeat(lambda: module(shown), number=1, repeat=200))

    without = fastest()
    with EmbeddingTap(module):
        assert fastest() - without < 50e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": -1}, "view as a whole number of at least 0"),
        ({"view": "last"}, "view as a whole number"),
        ({"views": 0}, "views as a whole number of at least 1"),
        ({"view": 2, "views": 2}, "counts views from 0, got view=2 of 2"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EmbeddingTap(nn.Identity(), **options)


def test_something_else_than_a_module_or_a_number_of_rows_is_refused() -> None:
    with pytest.raises(OptionError, match=r"a module such as teacher.backbone, got function"):
        EmbeddingTap(convnet)  # type: ignore[arg-type]
    with EmbeddingTap(nn.Identity()) as tap:
        for rows in (0, 2.0, torch.arange(3)):
            with pytest.raises(OptionError, match="rows as a whole number of at least 1"):
                tap.take(rows)  # type: ignore[arg-type]
