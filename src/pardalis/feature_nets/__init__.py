"""Frozen pretrained networks for perceptual losses and image metrics."""

from pardalis.feature_nets.config import FeatureNetConfig
from pardalis.feature_nets.load import load_feature_net
from pardalis.feature_nets.net import FeatureNet
from pardalis.feature_nets.perceptual import PerceptualDistance, load_perceptual_distance
