"""Where a caption comes from and where it went: from image to trained model, and back."""

from blip.integrations.lineage.queries import lineage, texts_by_model
from blip.integrations.lineage.terminal import format_tree
from blip.integrations.lineage.trees import Tree, Written, to_json

__all__ = ["Tree", "Written", "format_tree", "lineage", "texts_by_model", "to_json"]
