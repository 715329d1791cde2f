"""The part of a weight that structured pruning leaves: densities count within it alone.

Whole rows and columns that are masked away will be cut out, so unstructured masks are chosen among
the rest; the rest of a matrix is a matrix again.
"""

from torch import Tensor, nn

from compress.prune.channel_masks import ChannelMask
from compress.transforms import transforms_of


class Live:
    """Rows and columns of one layer that stay; everything where no channel is masked."""

    def __init__(self, layer: nn.Module) -> None:
        """Reads the layer's channel masks as they stand now."""
        masks = [t for t in transforms_of(layer) if isinstance(t, ChannelMask)]
        self.rows = masks[0].rows.flatten().nonzero().flatten() if masks else None
        self.columns = masks[0].columns.flatten().nonzero().flatten() if masks else None

    def cut(self, values: Tensor) -> Tensor:
        """The live part of something shaped like the weight (a copy where anything is cut)."""
        if self.rows is None or self.columns is None:
            return values
        return values.index_select(0, self.rows).index_select(1, self.columns)

    def embed(self, mask: Tensor, *, like: Tensor) -> Tensor:
        """A mask of the live part in the weight's own shape; False elsewhere."""
        if self.rows is None or self.columns is None:
            return mask
        whole = mask.new_zeros(like.shape)
        whole[self.rows[:, None], self.columns] = mask
        return whole
