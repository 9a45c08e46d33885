"""Tests that weights arrive as they were sent, and that errors name the tensors that did not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rollout.errors import WeightSyncError
from rollout.faults import corrupt
from rollout.weight_sync import weights
from rollout.weight_sync.weights import Transport, WeightUpdate, pack_weights, unpack_weights


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (5, 4), "layers.0.q.weight": (4, 4), "layers.0.q.bias": (4,), "scale": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(params=["host", "nixl"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """As bytes, and as tensors."""
    return request.param


@pytest.fixture
def update(transport: Transport) -> WeightUpdate:
    return pack_weights(tensors(1).items(), 7, torch.bfloat16, transport)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_round_trip_keeps_every_bit(dtype: torch.dtype, transport: Transport) -> None:
    received = unpack_weights(pack_weights(tensors(1).items(), 7, dtype, transport))
    assert received.keys() == tensors(1).keys()
    for name, sent in tensors(1).items():
        assert received[name].dtype == dtype and torch.equal(received[name], sent.to(dtype))


def test_a_noncontiguous_view_keeps_its_layout() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert unpack_weights(pack_weights({"t": matrix.T}.items(), 0, torch.bfloat16))["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_packed_update_is_a_copy(transport: Transport) -> None:
    weight = torch.ones(2, 2)
    update = pack_weights({"w": weight}.items(), 0, torch.float32, transport)
    weight += 1
    assert unpack_weights(update)["w"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("transport", ["host"], indirect=True)
def test_writing_to_received_tensors_leaves_the_update_unchanged(update: WeightUpdate) -> None:
    unpack_weights(update)["layers.0.q.weight"].zero_()
    assert torch.equal(unpack_weights(update)["layers.0.q.weight"], tensors(1)["layers.0.q.weight"].bfloat16())


def with_payload(update: WeightUpdate, **changes: np.ndarray | torch.Tensor | None) -> WeightUpdate:
    payload = {**update.payload, **changes}
    return replace(update, payload={name: raw for name, raw in payload.items() if raw is not None})


def test_a_dropped_tensor_is_named(update: WeightUpdate) -> None:
    with pytest.raises(WeightSyncError, match=r"version 7 .*: scale was not received$"):
        unpack_weights(with_payload(update, scale=None))


def test_an_extra_tensor_is_named(update: WeightUpdate) -> None:
    with pytest.raises(WeightSyncError, match=r": extra was received but never sent$"):
        unpack_weights(with_payload(update, extra=update.payload["scale"]))


def test_a_stale_tensor_is_named(update: WeightUpdate, transport: Transport) -> None:
    stale = pack_weights(tensors(0).items(), 6, torch.bfloat16, transport).payload["embed.weight"]
    with pytest.raises(WeightSyncError, match=r": embed.weight differs from what was sent \(shape \[5, 4\], bfloat16\)$"):
        unpack_weights(with_payload(update, **{"embed.weight": stale}))


def test_a_transposed_tensor_is_named(update: WeightUpdate, transport: Transport) -> None:
    transposed = pack_weights({"w": tensors(1)["layers.0.q.weight"].T}.items(), 7, torch.bfloat16, transport).payload["w"]
    with pytest.raises(WeightSyncError, match=r": layers.0.q.weight differs from what was sent"):
        unpack_weights(with_payload(update, **{"layers.0.q.weight": transposed}))


def test_a_tensor_of_another_size_is_named(update: WeightUpdate) -> None:
    with pytest.raises(WeightSyncError, match=r": layers.0.q.bias differs from what was sent"):
        unpack_weights(with_payload(update, **{"layers.0.q.bias": update.payload["layers.0.q.bias"][:-2]}))


@pytest.mark.parametrize("bit", range(0, 8 * 40, 13))
def test_one_flipped_bit_is_enough(update: WeightUpdate, bit: int) -> None:
    sent = update.payload["embed.weight"]
    raw = sent.copy() if isinstance(sent, np.ndarray) else sent.clone()
    as_bytes = raw if isinstance(raw, np.ndarray) else raw.view(torch.uint8).reshape(-1).numpy()
    as_bytes[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WeightSyncError, match="embed.weight"):
        unpack_weights(with_payload(update, **{"embed.weight": raw}))


def test_the_checksum_covers_every_part_of_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack_weights([("w", torch.arange(999.0))], 0, torch.float32, "nixl")
    monkeypatch.setattr(weights, "CHECKSUM_WORDS", 7)
    assert torch.equal(unpack_weights(whole)["w"], torch.arange(999.0))  # the same checksum, however many parts
    swapped = torch.arange(999.0)
    swapped[[3, 900]] = swapped[[900, 3]]
    with pytest.raises(WeightSyncError, match="w differs from what was sent"):
        unpack_weights(with_payload(whole, w=swapped))


def test_all_wrong_tensors_are_named_at_once(update: WeightUpdate) -> None:
    with pytest.raises(WeightSyncError) as raised:
        unpack_weights(with_payload(update, scale=None, extra=np.zeros(2, np.uint8), **{"embed.weight": np.zeros(40, np.uint8)}))
    assert [problem.split()[0] for problem in str(raised.value).partition("sent: ")[2].split("; ")] == ["embed.weight", "extra", "scale"]


@pytest.mark.parametrize(
    ("fault", "said"), [("drop", "was not received"), ("stale", "differs from what was sent"), ("transpose", "differs from what was sent")]
)
def test_every_injected_corruption_is_found(
    update: WeightUpdate, transport: Transport, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setenv("GRPO_FAULT", fault)
    with pytest.raises(WeightSyncError, match=f"layers.0.q.weight {said}"):
        unpack_weights(corrupt(update, before=pack_weights(tensors(0).items(), 6, torch.bfloat16, transport)))
