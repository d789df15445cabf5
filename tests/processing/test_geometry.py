from __future__ import annotations

from vltrain.processing.geometry import FixedGeometry


def test_every_image_costs_the_same():
    geometry = FixedGeometry(tokens_per_image=576)
    sizes = [(1, 1), (1, 4000), (4000, 1), (1024, 768)]
    assert [geometry.image_tokens(*size) for size in sizes] == [576] * 4


def test_digest_fields_tell_geometries_apart():
    assert FixedGeometry(tokens_per_image=576).digest_fields() == {
        "kind": "fixed",
        "tokens_per_image": 576,
    }
    assert (
        FixedGeometry(tokens_per_image=16).digest_fields()
        != FixedGeometry(tokens_per_image=576).digest_fields()
    )
