"""Rare objects in ordinary scenes: regions of frames, their scores, their labels and their replay."""

from raremix.regions.bank import RegionBank
from raremix.regions.boxes import square_boxes, strongest_boxes, window_grid
from raremix.regions.components import Components, components
from raremix.regions.detector import FrameDetection, Kind, RegionDetector
from raremix.regions.encoders import CropEncoder, MapEncoder, RegionEncoder
from raremix.regions.encoding import encode_frames, iter_regions
from raremix.regions.frame_views import FrameViews
from raremix.regions.keys import box_of, frame_of, is_region, region_keys
from raremix.regions.labels import (
    CropLabels,
    RareObjects,
    label_crops_by_boxes,
    label_crops_by_mask,
    rare_in_frame,
)
from raremix.regions.neighbours import RegionNeighbour, nearest_regions, rarest_moments
from raremix.regions.regions import Regions
from raremix.regions.replay import RegionReplay

__all__ = [
    "Components",
    "CropEncoder",
    "CropLabels",
    "FrameDetection",
    "FrameViews",
    "Kind",
    "MapEncoder",
    "RareObjects",
    "RegionBank",
    "RegionDetector",
    "RegionEncoder",
    "RegionNeighbour",
    "RegionReplay",
    "Regions",
    "box_of",
    "components",
    "encode_frames",
    "frame_of",
    "is_region",
    "iter_regions",
    "label_crops_by_boxes",
    "label_crops_by_mask",
    "nearest_regions",
    "rare_in_frame",
    "rarest_moments",
    "region_keys",
    "square_boxes",
    "strongest_boxes",
    "window_grid",
]
