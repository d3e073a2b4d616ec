"""How bits stand for states where more than signs says what they were: what is binarized, restored, stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import btr_kernels

from .store import TokenTables
from .store.tables import pad_bits_set, set_bits

_BYTES = ("mask", "majority")
# Those that are there together or not at all.
_GROUPS = ({"scale", "bias"}, {"weight", "centroids", "places"}, {"mask", "majority"})


def mask_signs(signs: Tensor, ids: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
    """Masked bits in training: what a token does not store is its vocabulary id's majority, and has no gradient.

    signs: ±1 `(..., d)`. ids: int64 `(...)`. mask, fill: uint8 `(V, w)`, the tables of the ids: channels that are
    stored, and the majority.
    """
    d = signs.shape[-1]
    stored = btr_kernels.unpack_bits(mask[ids], d, dtype=signs.dtype) > 0
    return torch.where(stored, signs, btr_kernels.unpack_bits(fill[ids], d, dtype=signs.dtype))


class SignCode(nn.Module):
    """Restores states from their signs: scale * (±1) + bias, and more where vocabulary id and place say more.

    scale, bias: `(d,)`, parameters; the ablation without calibration has 1 and 0, which are not trained. mask,
    majority: uint8 `(V, w)`, the tables of masked bits, or None: a bit that is not stored is its id's majority.
    centroids, places: float `(V, d)` and `(T, d)`, or None for both: what the vocabulary id and the place in the
    passage foretell of a value, added up; values are normalised states of a BERT, and states as they are of a T5. With
    them a sign is that of what they do not foretell, the state is restored as
    weight * (centroid + place) + scale * (±1) + bias, and a bit that is not stored adds nothing.
    """

    def __init__(
        self,
        scale: Tensor,
        bias: Tensor,
        calibrated: bool = True,
        weight: Tensor | None = None,
        centroids: Tensor | None = None,
        places: Tensor | None = None,
        mask: Tensor | None = None,
        majority: Tensor | None = None,
    ):
        super().__init__()
        self.calibrated = calibrated
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=calibrated)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=calibrated)
        self.weight = None if weight is None else nn.Parameter(weight.detach().clone(), requires_grad=calibrated)
        # Constants of a reader: stores are made with them, so that training leaves them as they are.
        tables = {"centroids": centroids, "places": places, "mask": mask, "majority": majority}
        for name, table in tables.items():
            self.register_buffer(name, table)

    @classmethod
    def blank(
        cls, channels: int, vocabulary: int, *, places: int = 0, masked: bool = False, calibrated: bool = True
    ) -> SignCode:
        """A code of zeros to load a state into. places: how many it has, 0 for one without centroids."""
        table = torch.zeros(vocabulary, -(-channels // 8), dtype=torch.uint8)
        masks = {"mask": table, "majority": table.clone()} if masked else {}
        if places:
            masks |= {"weight": torch.zeros(channels), "centroids": torch.zeros(vocabulary, channels)}
            masks["places"] = torch.zeros(places, channels)
        return cls(torch.zeros(channels), torch.zeros(channels), calibrated, **masks)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        where: str,
        channels: int,
        vocabulary: int,
        places: int | None = None,
        calibrated: bool = True,
    ) -> SignCode:
        """The code with this state, which was read from a file. places: how many it must have, None for any number.

        Raises `ValueError` naming `where` for tensors that do not fit together or to the reader.
        """
        d, width = channels, -(-channels // 8)
        if places is None:
            places = len(tensors["places"]) if "places" in tensors else 0
        shapes = {"scale": (d,), "bias": (d,), "weight": (d,), "centroids": (vocabulary, d), "places": (places, d)}
        shapes |= dict.fromkeys(_BYTES, (vocabulary, width))
        for name, tensor in tensors.items():
            dtype = torch.uint8 if name in _BYTES else torch.float32
            if tuple(tensor.shape) != shapes.get(name) or tensor.dtype != dtype or not len(tensor):
                raise ValueError(f"{where}: tensor code.{name} {tensor.dtype} {tuple(tensor.shape)} is unexpected")
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"{where}: tensor code.{name} must be finite")
        if "centroids" in tensors and bool(tensors.get("majority", torch.zeros(1)).any()):
            raise ValueError(f"{where}: tensor code.majority must be 0: with centroids what is not stored adds nothing")
        if "mask" in tensors:
            stored = set_bits(tensors["mask"])
            if pad_bits_set(tensors["mask"], channels) or not stored[0] or bool((stored != stored[0]).any()):
                raise ValueError(f"{where}: tensor code.mask must have as many bits in every row, 1 to {channels}")
        missing = _GROUPS[0].union(*(names for names in _GROUPS if names & tensors.keys())) - tensors.keys()
        if missing:
            raise ValueError(f"{where}: tensor code.{min(missing)} is missing")
        return cls(calibrated=calibrated, **tensors)

    @property
    def channels(self) -> int:
        return len(self.scale)

    @property
    def stored_bits(self) -> int:
        """Bits that a store is to keep of each token, 0 for all."""
        return 0 if self.mask is None else int(btr_kernels.unpack_bits(self.mask[:1], self.channels).gt(0).sum())

    def tables(self) -> TokenTables | None:
        """The tables of a store of this code's bits; None where all bits are stored."""
        if self.mask is None:
            return None
        return TokenTables(self.mask.cpu().numpy(), self.majority.cpu().numpy(), self.stored_bits)

    def check_passage_length(self, length: int) -> None:
        """`ValueError` for passages of more tokens than places are known."""
        if self.places is not None and length > len(self.places):
            raise ValueError(
                f"passage_length must be at most {len(self.places)}, the places that its centroids are of, got {length}"
            )

    def deviation(self, values: Tensor, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """What the signs are of: values `(..., T, d)` of tokens with ids `(..., T)` at positions `(..., T)` of their
        passage, None for 0, 1, ..., T - 1, less what these foretell."""
        return values if self.centroids is None else values - self._foretold(ids, positions)

    def restore(self, signs: Tensor, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """States `(..., T, d)` from signs `(..., T, d)`, as a store gives them back: one that is not stored does not
        count, and has no gradient."""
        if self.centroids is None:
            signs = signs if self.mask is None else mask_signs(signs, ids, self.mask, self.majority)
            return torch.addcmul(self.bias, signs, self.scale)
        if self.mask is not None:
            signs = signs * (btr_kernels.unpack_bits(self.mask[ids], self.channels, dtype=signs.dtype) > 0)
        return torch.addcmul(self.bias, signs, self.scale) + self.weight * self._foretold(ids, positions)

    def restore_bits(self, bits: Tensor, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """The same from packed bits uint8 `(..., T, w)`, as a store gives them."""
        if self.centroids is None:
            return btr_kernels.unpack_bits(bits, self.channels, scale=self.scale.detach()) + self.bias
        return self.restore(btr_kernels.unpack_bits(bits, self.channels), ids, positions)

    def _foretold(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        places = self.places[: ids.shape[-1]] if positions is None else self.places[positions.long()]
        return self.centroids[ids] + places
